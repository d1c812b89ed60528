"""Every public function against bad input: a documented error or result, in time, no warning.

What the core's errors say is kept word by word in messages.json, to be read and to see changes;
``pytest tests/robustness/hostile/test_cases.py --write-messages`` writes it anew.
"""

import dataclasses
import importlib
import inspect
import json
import signal
from pathlib import Path

import adapter_cases
import core_cases
import pytest
import report_cases
import torch_cases

import spectral_core as sc

SECONDS = 60  # on a busy machine, too
CASES = [
    *core_cases.CASES,
    *torch_cases.CASES,
    *report_cases.CASES,
    *adapter_cases.CASES,
]
OF_THE_CORE = [
    *core_cases.CASES,
    *(case for case in torch_cases.CASES if case.of == "measure"),
    *report_cases.CASES,
]
KEPT = {str(case) for case in OF_THE_CORE}
MESSAGES = Path(__file__).with_name("messages.json")


def documentation(of):
    """The docstring of a public name: of the package, or by its full path."""
    if hasattr(sc, of.split(".")[0]):
        found = sc
        for part in of.split("."):
            found = getattr(found, part)
    else:
        module, _, name = of.partition(":")
        found = importlib.import_module(module)
        for part in filter(None, name.split(".")):
            found = getattr(found, part)
    members = (
        [m for _, m in inspect.getmembers(found, inspect.isroutine)]
        if inspect.isclass(found)
        else []
    )
    return "\n".join(filter(None, map(inspect.getdoc, (found, *members))))


@pytest.fixture
def in_time():
    """Interrupt what takes too long, wherever it hangs."""

    def late(number, frame):
        raise AssertionError(f"took over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def messages(request):
    """What each kept case says; with ``--write-messages``, what they are found to say."""
    written = request.config.getoption("--write-messages")
    said = {} if written else json.loads(MESSAGES.read_text("utf-8"))
    yield said
    if written:
        text = json.dumps(said, indent=1, ensure_ascii=False, sort_keys=True)
        MESSAGES.write_text(text + "\n", "utf-8")


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case, tmp_path, monkeypatch, messages):
    monkeypatch.chdir(tmp_path)
    if case.error is None:
        assert case.check(case.call())
        return
    with pytest.raises(case.error) as caught:
        case.call()
    assert type(caught.value) is case.error
    said = str(caught.value.args[0]) if isinstance(caught.value, KeyError) else str(caught.value)
    assert all(word in said for word in case.words), said
    assert case.error.__name__ in documentation(case.of)
    if str(case) in KEPT:
        said = said.replace(str(tmp_path), "<folder>")
        assert messages.setdefault(str(case), said) == said


def test_there_are_enough():
    assert len(CASES) >= 150 and len({str(case) for case in CASES}) == len(CASES)


def test_no_kept_message_is_of_a_case_that_is_gone(messages):
    assert messages.keys() <= KEPT


def without_behaviour(value):
    """Records that check nothing, exceptions, the protocol and the version."""
    if isinstance(value, str) or (inspect.isclass(value) and issubclass(value, Exception)):
        return True
    own = [n for n, m in vars(value).items() if inspect.isroutine(m) and not n.startswith("_")]
    return (dataclasses.is_dataclass(value) and not own) or getattr(value, "_is_protocol", False)


def test_every_public_name_has_a_case():
    covered = {case.of.split(".")[0] for case in CASES}
    missing = [n for n in sc.__all__ if n not in covered and not without_behaviour(getattr(sc, n))]
    assert not missing
