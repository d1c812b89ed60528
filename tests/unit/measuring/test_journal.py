"""What a journal says of a file that it does not continue, and that it lets go of it."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.measuring.journal import Journal
from spectral_core.measuring.layer_spectrum import spectrum_from_values
from spectral_core.reporting.spectrum import Provenance
from spectral_core.storage import lone_file

SHAPES = {"body": (5, 4), "head": (3, 5)}


def provenance(**changes):
    problem = {"loss": 0.5, "data": {"batches": 3}}
    return Provenance(**{"problem": problem, "versions": {}, "top_k": 4, "curvature": "hessian",
                         "confidence": 0.95} | changes)  # fmt: skip


def spectrum(name):
    sigma = np.asarray([4.0, 3.0, 2.0, 1.0])
    return spectrum_from_values(sc.LayerInfo(name, "linear", SHAPES[name]), sigma, sigma**2)


@pytest.fixture
def path(tmp_path):
    """A journal with one finished layer."""
    path = tmp_path / "run.journal"
    with Journal(path, provenance(), SHAPES) as journal:
        journal.add(spectrum("body"))
    return path


def said(path, error=sc.ReportError, **changes):
    with pytest.raises(error) as caught:
        Journal(path, provenance(**changes), SHAPES)
    return str(caught.value)


def test_a_header_and_a_line_with_a_checksum_for_each_layer(path):
    header, line, rest = path.read_bytes().split(b"\n")
    assert list(json.loads(header)) == ["schema_version", "provenance", "layers"]
    assert json.loads(header)["layers"] == {"body": [5, 4], "head": [3, 5]}
    assert list(json.loads(line)) == ["crc32", "spectrum"] and rest == b""
    assert json.loads(line)["spectrum"] == spectrum("body").to_dict()
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["body"] and "body" in journal and "head" not in journal
        assert journal.spectra["body"].to_dict() == spectrum("body").to_dict()


def test_without_a_file_layers_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal(None, provenance(), SHAPES) as journal:
        journal.add(spectrum("head"))
        assert "head" in journal and "body" not in journal
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"top_k": 5}, "provenance.top_k"),
        ({"engine": "columns", "curvature": "ggn"}, "provenance.curvature, provenance.engine"),
        ({"problem": {"loss": 0.5, "data": {"batches": 4}}}, "provenance.problem.data.batches"),
        # What only one of the two has differs too.
        ({"problem": {"loss": 0.5, "data": {"batches": 3}, "seed": 1}}, "provenance.problem.seed"),
        ({"problem": {"data": {"batches": 3}}}, "provenance.problem.loss"),
    ],
)  # fmt: skip
def test_what_differs_from_another_measurement_is_named(path, changes, differs):
    assert said(path, **changes) == (
        f"{path}: belongs to another measurement; what differs: {differs}. Delete the file or "
        "choose another to start anew."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a photograph\n", "is no journal, its first line is not JSON (Expecting value: line 1 "
         "column 1 (char 0)); choose another file."),
        (b"[1, 2]\n", "is no journal of a measurement; choose another file."),
        (b'{"schema_version": 1}\n', "is no journal of a measurement; choose another file."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_journal(path, content, reason):
    path.write_bytes(content)
    assert said(path) == f"{path}: {reason}" and path.read_bytes() == content


def test_a_file_over_the_bound_is_not_read(path):
    os.truncate(path, 2**28 + 1)
    assert said(path) == (
        f"{path}: has 268435457 bytes, more than the 268435456 that are read; it is no report or "
        "journal of this library, choose another file."
    )


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(path, tmp_path, monkeypatch):
    with Journal(path, provenance(), SHAPES) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(sc.ReportError) as caught:
            journal.add(spectrum("head"))
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); the layers before this one are "
        "kept. Free space and run again to resume."
    )
    fresh = tmp_path / "fresh.journal"
    assert said(fresh) == (
        f"{fresh}: cannot be written (No space left on device); free space or choose another "
        "folder."
    )


def open_files():
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nothing lists open files")
@pytest.mark.parametrize("how", ["left", "raised", "refused", "no journal", "full", "twice"])
def test_the_file_is_let_go_of(how, path, monkeypatch):
    before = open_files()
    if how in ("left", "twice"):
        with Journal(path, provenance(), SHAPES) as journal:
            assert open_files() != before
            journal.add(spectrum("head"))
        if how == "twice":
            journal.__exit__(None, None, None)
    elif how == "raised":
        with pytest.raises(KeyError), Journal(path, provenance(), SHAPES):
            raise KeyError
    elif how == "refused":
        said(path, top_k=5)
    else:
        path.write_bytes(b"" if how == "full" else b"no\n")
        monkeypatch.setattr(os, "fsync", full)
        said(path)
    assert open_files() == before


def test_the_descriptor_of_standard_input_is_one_like_others(path):
    """Where it is closed, as of a service, the journal gets its number, 0."""
    kept = os.dup(0)
    os.close(0)
    try:
        with Journal(path, provenance(), SHAPES) as journal:
            journal.add(spectrum("head"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["body", "head"]


def test_a_journal_that_is_closed_keeps_further_layers_in_memory(path):
    content = path.read_bytes()
    with Journal(path, provenance(), SHAPES) as journal:
        pass
    journal.add(spectrum("head"))
    assert "head" in journal and path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"\xff", b"0", b" "])
def test_a_damaged_line_is_passed_over_and_a_later_one_is_not(path, damage):
    with Journal(path, provenance(), SHAPES) as journal:
        journal.add(spectrum("head"))
    header, first, second, _ = path.read_bytes().split(b"\n")
    place = re.search(rb'"sigma": \[', first).end()
    damaged = first[:place] + damage + first[place:]
    path.write_bytes(b"\n".join([header, damaged, second, b'{"crc32": 5, "spec']))
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["head"]
    assert path.read_bytes() == b"\n".join([header, damaged, second, b""])


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_journal import SHAPES, Journal, provenance, sc, spectrum
try:
    with Journal(sys.argv[1], provenance(), SHAPES) as journal:
        print("open", flush=True)
        sys.stdin.readline()
        journal.add(spectrum("head"))
except sc.ReportError as error:
    print(error, flush=True)
"""


def writer(path):
    """Another process that opens the journal, and writes a layer when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, os.path.dirname(__file__)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


needs_locks = pytest.mark.skipif(
    lone_file.fcntl is None, reason="this system has no locks of files"
)


def taken(path):
    return (
        f"{path}: another process is writing to it; give each process or rank a file of its own, "
        'such as f"run.{rank}.journal", or let one of them measure, or wait until it has ended.'
    )


@needs_locks
def test_one_process_at_a_time(path):
    content = path.read_bytes()
    with writer(path) as other:
        assert other.stdout.readline() == "open\n"
        assert said(path) == taken(path) and path.read_bytes() == content
        with pytest.raises(sc.ReportError, match="another process is writing"):
            lone_file.delete_alone(path)
        assert path.read_bytes() == content
        other.communicate("go\n", timeout=60)
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["body", "head"]
        with writer(path) as other:
            assert other.communicate(timeout=60) == (taken(path) + "\n", None)


def test_threads_of_one_process_share_it(path):
    with Journal(path, provenance(), SHAPES) as one, Journal(path, provenance(), SHAPES) as two:
        one.add(spectrum("head"))
        two.add(spectrum("head"))
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["body", "head"]
    assert path.read_bytes().count(b"schema_version") == 1


@needs_locks
@pytest.mark.parametrize("first", [0, 1])
def test_it_is_kept_until_the_last_of_them_is_done(path, first):
    both = [Journal(path, provenance(), SHAPES) for _ in range(2)]
    for journal in (both[first], both[1 - first]):
        with writer(path) as other:
            assert other.communicate(timeout=60) == (taken(path) + "\n", None)
        journal.__exit__(None, None, None)
    with writer(path) as other:
        assert other.communicate("go\n", timeout=60) == ("open\n", None)


@pytest.mark.skipif(
    lone_file.fcntl is None or not hasattr(os, "fork"), reason="no locks, or no fork"
)
def test_a_forked_process_is_another(path):
    with Journal(path, provenance(), SHAPES):
        child = os.fork()
        if child == 0:
            try:
                Journal(path, provenance(), SHAPES)
            except sc.ReportError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@needs_locks
def test_a_killed_process_holds_nobody_up(path):
    with writer(path) as other:
        assert other.stdout.readline() == "open\n"
        other.kill()
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["body"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked")
def test_a_worker_that_was_forked_meanwhile_holds_nobody_up(path):
    """As those of a loader, which may outlive the measurement."""
    wait, end = os.pipe()
    with Journal(path, provenance(), SHAPES):
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(wait, 1)
            os._exit(0)
    try:
        with Journal(path, provenance(), SHAPES) as journal:
            journal.add(spectrum("head"))
    finally:
        os.close(end)
        os.waitpid(child, 0)
        os.close(wait)


@needs_locks
def test_a_journal_deleted_while_it_was_opened_is_made_anew(path, monkeypatch):
    """As the command line does when it is done, between another's opening and locking."""
    opened = lone_file._opened

    def deleted_at_once(path):
        handle = opened(path)
        monkeypatch.setattr(lone_file, "_opened", opened)
        path.unlink()
        return handle

    monkeypatch.setattr(lone_file, "_opened", deleted_at_once)
    with Journal(path, provenance(), SHAPES) as journal:
        assert not journal.spectra
        journal.add(spectrum("head"))
    with Journal(path, provenance(), SHAPES) as journal:
        assert list(journal.spectra) == ["head"]


def test_a_file_system_without_locks_keeps_nobody_out(path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    if lone_file.fcntl is not None:
        monkeypatch.setattr(lone_file.fcntl, "flock", unsupported)
    with Journal(path, provenance(), SHAPES), Journal(path, provenance(), SHAPES) as journal:
        journal.add(spectrum("head"))


def test_a_file_is_deleted_where_it_is(path, tmp_path):
    lone_file.delete_alone(path)
    assert not path.exists()
    lone_file.delete_alone(path)
    with pytest.raises(sc.ReportError, match="cannot be deleted"):
        lone_file.delete_alone(tmp_path)
