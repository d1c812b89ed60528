"""What a `LoneFile` leaves behind when it is closed, or could not be opened."""

import os
import sys

import pytest

from spectral_core.storage import lone_file
from spectral_core.storage.lone_file import LoneFile


def test_a_file_that_cannot_be_opened_goes_in_silence(tmp_path, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(FileNotFoundError):
        LoneFile(tmp_path / "missing" / "journal")
    assert not complaints


def test_a_descriptor_is_closed_once_even_that_of_standard_input(tmp_path, monkeypatch):
    file = LoneFile(tmp_path / "journal")
    os.close(file.handle)
    file.handle, closed = 0, []  # as in a process that was started without standard input
    with monkeypatch.context() as patched:
        patched.setattr(lone_file.os, "close", closed.append)
        file.close()
        file.close()
    assert closed[0] == 0 and closed.count(0) == 1 and file.handle == -1
