"""The command line as a user meets it: output, exit codes, interruption, missing extras."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import spectral_core as sc
from spectral_adapters.cli import main

FACTORY = """
import os
import time
from pathlib import Path
import torch
from torch import nn

def problem(weights=None, wait=lambda: None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 8))
    if weights is not None:
        model.load_state_dict(weights)
    model = model.double()
    x, y = torch.randn(40, 6), torch.randint(8, (40,))

    def forward(model, batch):
        wait()
        return model(batch[0]), batch[1]

    from spectral_backends.torch import CurvatureProblem
    return CurvatureProblem(model, nn.functional.cross_entropy, [(x, y)], forward=forward)

def halting():
    # Stands still once a layer is in the journal, until it is interrupted.
    def wait():
        journal = Path("report.json.journal")
        deadline = time.monotonic() + float(os.environ.get("HALT", 0))
        while time.monotonic() < deadline and journal.exists():
            if len(journal.read_text().splitlines()) < 2:
                break
            time.sleep(0.02)
    return problem(wait=wait)

def arguments():
    p = nn.Linear(6, 5)
    return p, nn.functional.cross_entropy, [(torch.randn(30, 6), torch.randint(5, (30,)))]

def nothing():
    return 5

def broken():
    raise RuntimeError("the user's own bug")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "experiment.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "spectral_core", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def test_measure_show_plot(folder, capsys):
    assert main(["measure", "experiment.py:problem", "--top-k", "5", "--plots", "figures"]) == 0
    out, err = capsys.readouterr()
    assert "αγ" in out and "report.json" in out and err == ""
    report = sc.SpectralReport.load("report.json")
    assert list(report) == ["0", "2", "4"] and not (folder / "report.json.journal").exists()
    figures = [
        "alpha_by_depth.png",
        "alpha_over_k.png",
        "curvature.png",
        "rank_profiles.png",
        "transfer.png",
    ]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == figures

    assert main(["show", "report.json"]) == 0
    assert capsys.readouterr().out == f"{report}\n"
    assert main(["show", "report.json", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == report.to_dict()
    assert main(["show", "report.json", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["show", "report.json", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| layer | kind |")
    assert main(["plot", "report.json", "--output", "again"]) == 0
    assert len(list((folder / "again").iterdir())) == 5


def test_converge(folder, capsys):
    options = [
        "--sizes",
        "10",
        "--sizes",
        "20",
        "--top-k",
        "5",
        "--layers",
        "2",
        "--plots",
        "plots",
    ]
    assert main(["converge", "experiment.py:problem", *options]) == 0
    found = sc.Convergence.load("convergence.json")
    assert list(found) == ["2"] and found["2"].sizes.tolist() == [10, 20, 40]
    files = [str(folder.joinpath("plots", f"{what}_by_size.png")) for what in ("alpha", "sigma")]
    assert capsys.readouterr().out.startswith(f"{found}\n\nconvergence.json\n")
    assert all(map(os.path.exists, files))


def test_decomposition(folder, capsys):
    options = [
        "--decompose",
        "--fisher-type",
        "empirical",
        "--kfac-approx",
        "reduce",
        "--plots",
        "figures",
    ]
    assert main(["measure", "experiment.py:problem", "--top-k", "5", *options]) == 0
    assert "α = β + φ + κ + ν" in capsys.readouterr().out
    report = sc.SpectralReport.load("report.json")
    assert report.provenance.factors == {"delta": "empirical", "sharing": "reduce"}
    assert main(["explain", "report.json"]) == 0
    sentences = capsys.readouterr().out.splitlines()
    assert sentences == [str(sc.explain(spectrum)) for spectrum in report.values()]
    assert len(report.decomposed()) == 3 and (folder / "figures" / "decomposition.png").exists()


def test_nothing_to_explain(folder, capsys):
    assert main(["measure", "experiment.py:problem", "--top-k", "5"]) == 0
    assert main(["explain", "report.json"]) == 1
    assert "measure again with --decompose" in capsys.readouterr().err


def test_selection_module_target_and_tuple(folder, capsys):
    options = ["--layers", "2", "--layers", "4", "--curvature", "ggn", "--output", "r.json"]
    assert main(["measure", "experiment:problem", "--top-k", "4", *options]) == 0
    report = sc.SpectralReport.load("r.json")
    assert list(report) == ["2", "4"] and report.provenance.curvature == "ggn"
    assert main(["measure", "experiment.py:arguments", "--output", "t.json"]) == 0
    assert list(sc.SpectralReport.load("t.json")) == ["weight"]


def test_weights(folder, capsys):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    code = {}
    exec(FACTORY, code)
    state = {k: v.float() for k, v in code["problem"]()._model.parameters.items()}
    safetensors.save_file(state, "w.safetensors")
    torch.save({"state_dict": state}, "w.pt")
    for file in ("w.safetensors", "w.pt"):
        arguments = ["--weights", file, "--top-k", "3", "--output", f"{file}.json"]
        assert main(["measure", "experiment.py:problem", *arguments]) == 0
    a, b = (sc.SpectralReport.load(f"{f}.json") for f in ("w.safetensors", "w.pt"))
    assert a.to_dict() == b.to_dict()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Usage"),
        (["measure"], 2, "Missing argument"),
        (["measure", "experiment.py:problem", "--top-k", "many"], 2, "not a valid integer"),
        (["unknown"], 2, "No such command"),
        (["measure", "experiment.py"], 1, "is not PATH_OR_MODULE:FACTORY"),
        (["measure", "none.py:problem"], 1, "no such file"),
        (["measure", "no_module:problem"], 1, "cannot be imported"),
        (["measure", "experiment.py:absent"], 1, "defines no function 'absent'"),
        (["measure", "experiment.py:nothing"], 1, "returned a int"),
        (["measure", "experiment.py:broken"], 1, "RuntimeError: the user's own bug"),
        (["measure", "experiment.py:problem", "--top-k", "0"], 1, "top_k: 0"),
        (["measure", "experiment.py:problem", "--layers", "x*"], 1, "'x*' matches none"),
        (["measure", "experiment.py:problem", "--weights", "no.pt"], 1, "there is no file no.pt"),
        (["measure", "experiment.py:problem", "--output", "experiment.py/r.json"], 1,
         "cannot be written"),
        (["show", "none.json"], 1, "cannot be read"),
        (["show", "experiment.py"], 1, "is not JSON"),
        (["plot", "experiment.py"], 1, "is not JSON"),
    ],
)  # fmt: skip
def test_exit_codes(folder, capsys, arguments, code, words):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert words in out + err and "Traceback" not in err


def test_help_and_version(capsys):
    assert main(["--help"]) == 0 and main(["measure", "--help"]) == 0
    assert main(["--version"]) == 0
    assert sc.__version__ in capsys.readouterr().out


def test_malicious_weights_run_nothing(folder, capsys):
    pytest.importorskip("torch")
    (folder / "evil.py").write_text(
        textwrap.dedent("""
        import os, torch
        class Evil:
            def __reduce__(self):
                return os.system, ("touch owned",)
        torch.save({"w": Evil()}, "evil.pt")
        """)
    )
    subprocess.run([sys.executable, "evil.py"], check=True)
    assert main(["measure", "experiment.py:problem", "--weights", "evil.pt"]) == 1
    assert "would run code" in capsys.readouterr().err and not (folder / "owned").exists()
    for name in ("cut.pt", "cut.safetensors"):
        (folder / name).write_bytes(b"PK\x03\x04 not much")
        assert main(["measure", "experiment.py:problem", "--weights", name]) == 1
        assert "is no complete" in capsys.readouterr().err


def test_interruption_keeps_what_is_finished(folder):
    """Ctrl-C gives 130 and a journal; the same command resumes to the same bytes."""
    one_by_one = ["--engine", "double-backward"]
    arguments = ["measure", "experiment.py:halting", "--top-k", "4", *one_by_one]
    process = subprocess.Popen(
        [sys.executable, "-m", "spectral_core", *arguments],
        env=os.environ | {"HALT": "60"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts background jobs with the signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    journal = folder / "report.json.journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and len(journal.read_text().splitlines()) >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "report.json.journal; the same command resumes" in err and "Traceback" not in err
    finished = journal.read_text().splitlines()
    assert len(finished) == 2 and not (folder / "report.json").exists()
    assert command(*arguments).returncode == 0
    resumed = (folder / "report.json").read_bytes()
    assert command(*arguments, "--fresh").returncode == 0
    assert (folder / "report.json").read_bytes() == resumed


def test_fresh_forgets_another_measurement(folder, capsys):
    (folder / "report.json.journal").write_text('{"other": 1}\n')
    assert main(["measure", "experiment.py:problem", "--top-k", "3"]) == 1
    assert "no journal" in capsys.readouterr().err
    assert main(["measure", "experiment.py:problem", "--top-k", "3", "--fresh"]) == 0


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("click", ["--version"], "cli"),
        ("rich", ["--version"], "cli"),
        ("matplotlib", ["plot", "report.json"], "plots"),
        ("torch", ["demo"], "demo"),
    ],
)
def test_missing_extras_name_the_command(folder, missing, arguments, extra):
    main(["measure", "experiment.py:problem", "--top-k", "4"])
    blocked = folder / "blocked" / "sitecustomize.py"
    blocked.parent.mkdir()
    blocked.write_text(f"import sys; sys.modules[{missing!r}] = None")
    environment = os.environ | {"PYTHONPATH": str(blocked.parent)}
    done = command(*arguments, env=environment)
    assert done.returncode == 1
    assert f"pip install 'spectral-core[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_that_closes_is_no_error(folder):
    main(["measure", "experiment.py:problem", "--top-k", "4"])
    done = subprocess.run(
        f"{sys.executable} -m spectral_core show report.json | head -1",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
