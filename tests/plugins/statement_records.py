"""A pytest plugin: tests named after statements of the theory, and where each has passed.

``test_3_1_the_identity_is_exact`` is a property of statement 3.1, ``test_8_…`` of section 8. Such
tests are marked: ``-m statement`` picks them. With ``--statements FILE`` each that passed becomes a
JSON line there: the test, where it ran, and how many examples it held on. The page of properties
is made from those files by ``docs/make_properties.py``.
"""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

NAMED = re.compile(r"test_(\d+)(?:_(\d+))?_")
ROOT = Path(__file__).resolve().parents[2]


def statement_of(name: str) -> str | None:
    """Return "3.1" for the name of a test of that statement, and None for other tests."""
    found = NAMED.match(name)
    return found and ".".join(part for part in found.groups() if part)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--statements",
        type=Path,
        help="write to this file where tests of numbered statements passed, as JSON lines",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "statement: named after a statement of the theory")
    if path := config.getoption("--statements"):
        if not hasattr(config, "workerinput"):  # xdist's workers add to the file of its controller
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"versions": versions()}) + "\n", encoding="utf-8")
        config.pluginmanager.register(Recorder(path), "statement-recorder")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if statement_of(item.name):
            item.add_marker("statement")


class Recorder:
    """Writes down each test of a statement that passed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> object:
        # What hypothesis draws for a test of its own is counted here; `properties.holds` counts its own.
        own = getattr(item.obj, "hypothesis", None)
        if own is None:
            return (yield)
        inner, own.inner_test = own.inner_test, counted(item, own.inner_test)
        try:
            return (yield)
        finally:
            own.inner_test = inner

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> object:
        report = yield
        if call.when == "call" and report.passed and (statement := statement_of(item.name)):
            counted = [n for key, n in item.user_properties if key == "examples"]
            line = {
                "statement": statement,
                "test": f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}",
                "where": place_of(item),
                "examples": counted[-1] if counted else 1,
            }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return report


def versions() -> dict[str, str]:
    """Return those of the array libraries that are installed."""
    found = {}
    for name in ("numpy", "array-api-strict", "torch", "jax", "cupy-cuda12x"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def counted(item: pytest.Item, inner: Callable[..., object]) -> Callable[..., object]:
    """Return a test that tells its item how often it was called."""
    calls = itertools.count(1)

    @functools.wraps(inner)
    def test(*arguments: object, **named: object) -> object:
        item.user_properties[:] = [("examples", next(calls))]
        return inner(*arguments, **named)

    return test


def place_of(item: pytest.Item) -> str:
    """Return library and variant: those of ``xp``, or of the backend that the test is about."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    if "xp" in given:
        return "-".join(given["xp"])
    if isinstance(given.get("backend"), str):
        return f"{given['backend']}-float64"
    folders = set(item.path.relative_to(ROOT).parts)
    return next(
        (f"{name}-float64" for name in ("torch", "jax") if name in folders), "numpy-float64"
    )
