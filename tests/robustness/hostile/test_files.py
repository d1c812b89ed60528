"""Full disks, folders that cannot be written, and damaged or hostile files: nothing is lost."""

import errno
import io
import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_adapters.tables import to_rich
from spectral_backends.torch import CurvatureProblem
from spectral_core.measuring.journal import _line_of

OPTIONS = {"top_k": 3, "engine": "double-backward"}


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)
    ).double()
    x, y = torch.randn(20, 4).double(), torch.arange(20) % 4
    return CurvatureProblem(model, F.cross_entropy, [(x, y)])


PROBLEM = problem()


def measure(journal, **options):
    return sc.measure(PROBLEM, resume=journal, **OPTIONS | options)


@pytest.fixture(scope="module")
def report():
    return sc.measure(PROBLEM, **OPTIONS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a complete journal."""
    path = tmp_path_factory.mktemp("journal") / "run.journal"
    measure(path)
    return path.read_bytes()


def told_layers(journal, **options):
    """Measure, and return the report with the layers that were measured anew."""
    told = []
    found = measure(journal, progress=lambda done, total, name: told.append(name), **options)
    return found, list(dict.fromkeys(name for name in told if name in found))


class Failing:
    """Has the n-th call of a function of `os` fail, and those after it."""

    def __init__(self, monkeypatch, name, number, code):
        self.calls, self.number, self.code, self.real = 0, number, code, getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls >= self.number:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*arguments, **options)


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_the_disk_is_full_at_every_write_of_a_journal(name, report, whole, tmp_path, monkeypatch):
    for number in range(1, 5):  # a header and three layers
        journal = tmp_path / f"{name}{number}"
        with (
            monkeypatch.context() as patch,
            pytest.raises(sc.ReportError, match="No space left.*Free|free"),
        ):
            Failing(patch, name, number, errno.ENOSPC)
            measure(journal)
        kept = journal.read_bytes().count(b"\n")
        assert kept >= number - 1
        resumed, anew = told_layers(journal)
        assert len(anew) == 4 - max(kept, 1) and resumed.to_dict() == report.to_dict()
        assert journal.read_bytes() == whole


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_save_that_fails_leaves_the_old_report(name, code, report, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    report.save(path)
    before = path.read_bytes()
    with (
        monkeypatch.context() as patch,
        pytest.raises(sc.ReportError, match="choose another folder"),
    ):
        Failing(patch, name, 1, code)
        report.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.json"]


def test_a_limit_on_the_size_of_files(report, tmp_path):
    """A real one of the operating system: writes are cut short before they fail."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import resource, sys; sys.path[:0] = [{os.path.dirname(__file__)!r}]\n"
        "import spectral_core as sc\n"
        "from test_files import PROBLEM, OPTIONS\n"
        "import os\n"
        "report = sc.measure(PROBLEM, **OPTIONS)\n"
        "for limit in sys.argv[1:]:\n"
        "    os.chdir(limit)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))\n"
        "    for name in ('journal', 'report'):\n"
        "        try:\n"
        "            sc.measure(PROBLEM, resume='run.journal', **OPTIONS) if name == 'journal' else report.save('r.json')\n"
        "        except sc.ReportError as error:\n"
        "            print(limit, error)\n"
        "    os.chdir('..')\n"
    )
    limits = ("100", "3000", "5000", "7000")
    for limit in limits:
        (tmp_path / limit).mkdir()
    done = subprocess.run(
        [sys.executable, script, *limits], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    for limit in limits:
        folder = tmp_path / limit
        told = [line for line in done.stdout.splitlines() if line.startswith(f"{limit} ")]
        assert len(told) == 2 and all("cannot be written (File too large)" in x for x in told), done
        assert os.listdir(folder) == ["run.journal"]
        kept = max((folder / "run.journal").read_bytes().count(b"\n"), 1)
        resumed, anew = told_layers(folder / "run.journal")
        assert len(anew) == 4 - kept and resumed.to_dict() == report.to_dict()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(code, tmp_path, monkeypatch, report):
    with (
        monkeypatch.context() as patch,
        pytest.raises(sc.ReportError, match=r"run\.journal: cannot be written .*another folder"),
    ):
        Failing(patch, "open", 1, code)
        measure(tmp_path / "run.journal")
    with (
        monkeypatch.context() as patch,
        pytest.raises(sc.ReportError, match=r"run\.json: cannot be written .*another folder"),
    ):
        Failing(patch, "open", 1, code)
        report.save(tmp_path / "run.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0, 0o666)])
def test_new_files_have_usual_permissions(mask, mode, report, tmp_path):
    before = os.umask(mask)
    try:
        report.save(tmp_path / "run.json")
        measure(tmp_path / "run.journal")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "name", ["x" * 255, "報" * 85, "é" * 127, "🦆" * 63], ids=["1 byte", "3", "2", "4"]
)
def test_names_as_long_as_a_file_may_have(name, report, tmp_path):
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("names of files are shorter here")
    report.save(tmp_path / name)
    assert sc.SpectralReport.load(tmp_path / name).to_dict() == report.to_dict()
    assert os.listdir(tmp_path) == [name]


def test_folders_are_made_however_deep(report, tmp_path):
    for name, write in (("run.json", report.save), ("run.journal", measure)):
        for _ in range(2):  # also where they are there already
            write(tmp_path / name / "of" / "several" / name)
        assert (tmp_path / name / "of" / "several" / name).stat().st_size


def test_journals_cut_at_any_byte(report, whole, tmp_path):
    journal = tmp_path / "run.journal"
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {
        *range(0, len(whole), 97),
        *ends,
        *(end + 1 for end in ends),
        *(end - 1 for end in ends),
    }
    for cut in sorted(cuts):
        journal.write_bytes(whole[:cut])
        found, anew = told_layers(journal)
        assert found.to_dict() == report.to_dict() and journal.read_bytes() == whole
        assert len(anew) == 3 - max(sum(end < cut for end in ends) - 1, 0)


def test_journals_with_a_flipped_bit(report, whole, tmp_path):
    """A damaged layer is measured again, a damaged header is refused, and the file is kept."""
    rng = random.Random(0)
    journal, header = tmp_path / "run.journal", whole.index(b"\n")
    for _ in range(60):
        place, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        damaged = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        journal.write_bytes(damaged)
        try:
            found, anew = told_layers(journal)
        except sc.ReportError as error:
            assert place <= header and "run.journal" in str(error) and "choose" in str(error)
            assert journal.read_bytes() == damaged
        else:
            assert place >= header and found.to_dict() == report.to_dict() and 1 <= len(anew) <= 3


@pytest.mark.parametrize(
    "content",
    [b"a photograph, one of a kind", b"{}", b"\x80\x04\x95pickle", b"[" * 10**6 + b"\n", b"{}\n{}\n", b"null\n",
     b'{"provenance": 5}\n', b'{"a": ' * 10**5 + b"\n", b"\0" * 4096],
    ids=["text", "object", "pickle", "brackets", "objects", "null", "number", "nested", "NULs"],
)  # fmt: skip
def test_a_file_that_is_no_journal_is_not_touched(content, tmp_path):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(sc.ReportError, match=r"precious.*choose another"):
        measure(path)
    assert path.read_bytes() == content


def test_layers_that_nobody_asked_for(report, whole, tmp_path):
    """Lines with a right checksum, but of a layer that is none of these."""
    journal = tmp_path / "run.journal"
    other = sc.measure(PROBLEM, top_k=2)["0"]
    foreign = _line_of(replace(other, name="../../etc/passwd"))
    head, *rest = whole.splitlines(keepends=True)
    journal.write_bytes(head + foreign + b"".join(rest))
    found, anew = told_layers(journal)
    assert anew == [] and found.to_dict() == report.to_dict()


def test_a_pickle_in_a_journal_runs_nothing(report, whole, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch owned",)

    monkeypatch.chdir(tmp_path)
    head, *rest = whole.splitlines(keepends=True)
    evil = pickle.dumps(Evil()) + b"\n"
    Path("run.journal").write_bytes(
        head + evil + b"!!python/object/apply:os.system ['touch owned']\n" + b"".join(rest)
    )
    found, anew = told_layers("run.journal")
    assert anew == [] and found.to_dict() == report.to_dict() and os.listdir() == ["run.journal"]


def test_journals_beyond_bounds(tmp_path):
    journal = tmp_path / "run.journal"
    with journal.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(sc.ReportError, match="1099511627776 bytes.*choose another"):
        measure(journal)
    os.unlink(journal)
    os.mkfifo(journal)
    with pytest.raises(sc.ReportError, match="no regular file"):
        measure(journal)


def test_reports_cut_at_any_byte(report, tmp_path):
    path = tmp_path / "run.json"
    text = (json.dumps(report.to_dict()) + "\n").encode()
    for cut in range(0, len(text) - 2, 7):
        path.write_bytes(text[:cut])
        with pytest.raises(sc.ReportError, match=r"run\.json"):
            sc.SpectralReport.load(path)


def test_reports_with_flipped_bits_are_shown_or_refused(report, tmp_path):
    rng, path = random.Random(1), tmp_path / "run.json"
    text = (json.dumps(report.to_dict()) + "\n").encode()
    refused = 0
    for _ in range(400):
        place = rng.randrange(len(text))
        path.write_bytes(
            text[:place] + bytes([text[place] ^ 1 << rng.randrange(8)]) + text[place + 1 :]
        )
        try:
            loaded = sc.SpectralReport.load(path)
        except sc.ReportError as error:
            refused += 1
            assert "run.json" in str(error)
        else:
            assert str(loaded) and loaded.rows()
    assert refused > 50


def test_symbolic_links(report, tmp_path):
    target, link, dangling = tmp_path / "target", tmp_path / "link.json", tmp_path / "dangling.json"
    target.write_text("precious")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "nowhere" / "file")
    for path in (link, dangling):
        report.save(path)
        assert not path.is_symlink() and sc.SpectralReport.load(path).to_dict() == report.to_dict()
    assert target.read_text() == "precious" and not (tmp_path / "nowhere").exists()
    journal = tmp_path / "link.journal"
    journal.symlink_to(target)
    with pytest.raises(sc.ReportError, match="is no journal"):
        measure(journal)
    assert target.read_text() == "precious"
    journal.unlink()
    journal.symlink_to(journal)
    with pytest.raises(sc.ReportError, match="symbolic links"):
        measure(journal)


def test_control_characters_are_spelt_out(report, tmp_path):
    """A terminal would obey them."""
    data = json.loads(json.dumps(report.to_dict()))
    data["spectra"][0]["name"] = "\x1b]0;owned\x07[red]name[/red]"
    data["skipped"] = {"a": "\x1b[2J"}
    loaded = sc.SpectralReport.from_dict(data)
    assert "\x1b" not in str(loaded) and "\\x1b" in str(loaded) and "[red]name" in str(loaded)
    assert next(iter(loaded)) == data["spectra"][0]["name"]


def test_a_decomposition_resumes_too(tmp_path):
    journal = tmp_path / "run.journal"
    options = {"decompose": True, "engine": "auto", "top_k": 4}
    expected, anew = told_layers(journal, **options)
    assert len(anew) == 3
    found, anew = told_layers(journal, **options)
    assert anew == [] and found.to_dict() == expected.to_dict()


def test_names_are_no_markup_and_no_mathematics(report, tmp_path):
    """Neither in a terminal's table nor in a figure."""
    data = json.loads(json.dumps(report.to_dict()))
    data["spectra"][0]["name"], data["spectra"][1]["name"] = "[bold]a[/bold]", r"$\frac{1$"
    loaded = sc.SpectralReport.from_dict(data)
    console = pytest.importorskip("rich.console").Console(width=300, file=io.StringIO())
    console.print(to_rich(loaded))
    assert "[bold]a[/bold]" in console.file.getvalue()
    pytest.importorskip("matplotlib").use("agg")
    from spectral_adapters.plots import save_figures

    assert all(path.stat().st_size for path in save_figures(loaded, tmp_path))
