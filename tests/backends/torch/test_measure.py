"""`measure` end to end: reports, journals, resumption."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 9)
    ).double()
    x, y = torch.randn(60, 8, dtype=torch.float64), torch.randint(9, (60,))
    return CurvatureProblem(model, F.cross_entropy, [(x[:40], y[:40]), (x[40:], y[40:])])


@pytest.fixture(scope="module")
def report():
    return sc.measure(problem(), top_k=6)


def test_contents(report):
    assert list(report) == ["0", "2", "4"] and len(report) == 3
    spectrum = report["2"]
    assert spectrum.shape == (16, 16) and spectrum.kind == "linear"
    assert spectrum.sigma.shape == spectrum.curvature.shape == (6,)
    assert spectrum.alpha.interval[0] < spectrum.alpha.exponent < spectrum.alpha.interval[1]
    assert abs(spectrum.triangle.closure) < 1e-12
    found = spectrum.participation
    assert 1 <= found.ratio <= found.certified_bound <= found.count + 1e-12
    provenance = report.provenance
    assert provenance.top_k == 6 and provenance.curvature == "hessian"
    assert provenance.problem["n_terms"] == 60 and provenance.problem["dtype"] == "float64"
    assert {"spectral_core", "numpy", "python"} <= provenance.versions.keys()
    assert "torch" in provenance.problem["versions"]


def test_values_are_those_of_the_problem(report):
    p = problem()
    u, sigma, vh = torch.linalg.svd(p.gradients(["0"])["0"], full_matrices=False)
    np.testing.assert_allclose(report["0"].sigma, sigma[:6], rtol=1e-12)
    np.testing.assert_allclose(
        report["0"].curvature, p.curvatures("0", u[:, :6], vh.T[:, :6]), rtol=1e-9
    )


def test_print_names_everything(report):
    text = str(report)
    for spectrum in report.values():
        assert spectrum.name in text and f"{spectrum.alpha.exponent:.3f}" in text
    assert len({len(line) for line in text.split("\n\n")[1].splitlines()[1:2]}) == 1


def test_save_and_load(report, tmp_path):
    path = tmp_path / "deep" / "run.json"
    report.save(path)
    loaded = sc.SpectralReport.load(path)
    assert loaded.to_dict() == report.to_dict() and str(loaded) == str(report)
    np.testing.assert_array_equal(loaded["4"].sigma, report["4"].sigma)
    assert loaded["4"].rank_profile.winner == report["4"].rank_profile.winner
    loaded.save(path)
    assert sc.SpectralReport.load(path).to_dict() == report.to_dict()
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_nan_survives_json(tmp_path):
    spectrum = sc.measure(problem(), "4", top_k=2)
    assert np.isnan(spectrum["4"].alpha.exponent)
    spectrum.save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = sc.SpectralReport.load(tmp_path / "r.json")
    assert np.isnan(loaded["4"].alpha.exponent) and loaded["4"].alpha.reason


def corrupt(text, kind):
    data = json.loads(text)
    if kind == "truncated":
        return text[: len(text) // 2]
    if kind == "not json":
        return "spectral"
    if kind == "newer":
        return json.dumps(data | {"schema_version": 99})
    if kind == "other json":
        return "[1, 2]"
    if kind == "no layers":
        del data["spectra"]
    if kind == "odd layer":
        data["spectra"][0] = 5
    if kind == "binary":
        return "\udcff"
    return json.dumps(data)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "cut short"), ("not json", "not JSON"), ("newer", "schema 99.*pip install"),
        ("other json", "not a spectral-core report"), ("no layers", "not a complete report"),
        ("odd layer", "not a complete report"), ("binary", "not JSON"),
    ],
)  # fmt: skip
def test_damaged_reports(report, tmp_path, kind, words):
    path = tmp_path / "bad.json"
    path.write_text(corrupt(json.dumps(report.to_dict()), kind), errors="surrogateescape")
    with pytest.raises(sc.ReportError, match=words) as caught:
        sc.SpectralReport.load(path)
    assert "bad.json" in str(caught.value)


def test_missing_report_and_unwritable_folder(report, tmp_path):
    with pytest.raises(sc.ReportError, match="cannot be read"):
        sc.SpectralReport.load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(sc.ReportError, match="cannot be written"):
        report.save(tmp_path / "file" / "run.json")
    with pytest.raises(sc.ReportError, match="cannot be written"):
        sc.measure(problem(), resume=tmp_path / "file" / "run.journal")


def test_a_failed_save_keeps_the_old_report(report, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    report.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(sc.ReportError, match="No space left"):
        report.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Stop(Exception):
    pass


def stop_after(layers):
    def progress(done, total, name):
        if done == layers:
            raise Stop

    return progress


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_resuming_gives_the_same_bytes(report, tmp_path, layers):
    journal = tmp_path / "run.journal"
    with pytest.raises(Stop):
        sc.measure(problem(), top_k=6, resume=journal, progress=stop_after(layers))
    seen = []
    resumed = sc.measure(
        problem(), top_k=6, resume=journal, progress=lambda d, t, name: seen.append(name)
    )
    assert [name for name in seen if name in report or not name] == ["0", "2", "4", ""][layers:]
    for which, r in (("a", report), ("b", resumed)):
        r.save(tmp_path / which)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_torn_line_is_measured_again(report, tmp_path):
    journal = tmp_path / "run.journal"
    sc.measure(problem(), top_k=6, resume=journal)
    whole = journal.read_bytes()
    for cut in (5, len(whole) // 3, len(whole) - 1):
        journal.write_bytes(whole[:cut])
        assert sc.measure(problem(), top_k=6, resume=journal).to_dict() == report.to_dict()
        assert journal.read_bytes() == whole


def test_journals_of_other_measurements_are_refused(tmp_path):
    journal = tmp_path / "run.journal"
    sc.measure(problem(), top_k=6, resume=journal)
    with pytest.raises(sc.ReportError, match="differs: provenance.top_k"):
        sc.measure(problem(), top_k=5, resume=journal)
    with pytest.raises(sc.ReportError, match="provenance.problem.loss"):
        sc.measure(problem(seed=1), top_k=6, resume=journal)
    with pytest.raises(sc.ReportError, match="layers"):
        sc.measure(problem(), "2", top_k=6, resume=journal)
    journal.write_text("no journal\n")
    with pytest.raises(sc.ReportError, match="not JSON"):
        sc.measure(problem(), top_k=6, resume=journal)


def test_kill_and_resume(report, tmp_path):
    """SIGKILL after the first layer; the next process finishes to the same bytes."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        + textwrap.dedent(
            """
            import os, signal
            import spectral_core as sc
            from test_measure import problem

            def progress(done, total, name):
                if done == 1 and sys.argv[1] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)

            sc.measure(problem(), top_k=6, resume="run.journal", progress=progress).save("r.json")
            """
        )
    )
    for mode, code in (("kill", -9), ("finish", 0)):
        done = subprocess.run([sys.executable, script, mode], cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done.stderr
    report.save(tmp_path / "expected.json")
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


def test_silent_in_a_pipe(capfd):
    sc.measure(problem(), "2", top_k=3)
    assert capfd.readouterr() == ("", "")


def test_progress_on_request(capfd):
    sc.measure(problem(), top_k=3, progress=True)
    assert "3/3" in capfd.readouterr().err
