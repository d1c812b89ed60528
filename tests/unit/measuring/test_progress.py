"""Who is told of progress, and how."""

import io
import sys

import pytest

from spectral_core.measuring.progress import reporting


class Terminal(io.TextIOWrapper):
    """Standard error with a buffer of its own: what is not flushed is not seen."""

    def __init__(self, interactive):
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._interactive = interactive

    def isatty(self):
        return self._interactive

    def seen(self):
        return self.buffer.getvalue().decode()


@pytest.fixture
def standard_error(monkeypatch):
    """Put a terminal or a pipe in its place; within a test, as pytest does it before."""

    def put(interactive):
        monkeypatch.setattr(sys, "stderr", Terminal(interactive))
        return sys.stderr

    return put


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


def test_the_callers_function_is_told_itself(standard_error):
    told, terminal = [], standard_error(True)
    with reporting(lambda *what: told.append(what), 3) as tell:
        tell(1, 3, "head")
    assert told == [(1, 3, "head")] and terminal.seen() == ""


@pytest.mark.parametrize(
    ("progress", "interactive"), [(False, True), (False, False), (None, False)]
)
def test_silence_on_request_and_in_a_pipe(progress, interactive, standard_error, capsys):
    terminal = standard_error(interactive)
    with reporting(progress, 3) as tell:
        tell(0, 3, "head")
    terminal.flush()
    assert terminal.seen() == "" == capsys.readouterr().out


@pytest.mark.usefixtures("without_tqdm")
@pytest.mark.parametrize(("progress", "interactive"), [(None, True), (True, True), (True, False)])
def test_one_line_a_layer_at_once_where_tqdm_is_not_installed(
    progress, interactive, standard_error, capsys
):
    terminal = standard_error(interactive)
    with reporting(progress, 3) as tell:
        tell(0, 3, "body")
        assert terminal.seen() == "[1/3] body\n"
        tell(2, 3, "head")
        tell(3, 3, "")
        assert terminal.seen() == "[1/3] body\n[3/3] head\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("progress", [None, True])
def test_a_bar_shows_the_layers_that_are_finished_and_the_one_at_work(progress, standard_error):
    pytest.importorskip("tqdm")
    terminal = standard_error(True)
    with reporting(progress, 4) as tell:
        for done, name in ((0, "first"), (1, "second"), (3, "fourth")):
            tell(done, 4, name)
            terminal.flush()
            shown = terminal.seen().split("\r")[-1]
            assert f"{done}/4" in shown and "layer" in shown and shown.rstrip().endswith(f"{name}]")
        tell(4, 4, "")
    terminal.flush()
    last = terminal.seen().rstrip("\n").split("\r")[-1]
    assert "100%" in last and "4/4" in last and terminal.seen().endswith("\n")
