"""The page of properties against the theory and the tests that there are."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from statement_records import statement_of

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "; run `nox -s properties`, which makes docs/properties.md"


def script():
    spec = importlib.util.spec_from_file_location(
        "make_properties", ROOT / "docs/make_properties.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = script()


def statement_tests():
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and statement_of(node.name):
                found.add(f"{path.relative_to(ROOT / 'tests').as_posix()}::{node.name}")
    return found


def rows(text):
    """Yield the test of each row and its cells."""
    for line in text.splitlines():
        if found := re.search(r"\| `(test_\w+)` in `([^`]+)` \| (.*) \|$", line):
            yield f"{found[2]}::{found[1]}", [cell.strip() for cell in found[3].split(" | ")]


@pytest.fixture(scope="module")
def page():
    return MAKE.PAGE.read_text(encoding="utf-8")


def test_the_page_names_the_tests_that_there_are(page):
    named, there = {test for test, _ in rows(page)}, statement_tests()
    assert not named - there, f"on the page, but gone: {sorted(named - there)}{REMEDY}"
    assert not there - named, f"not on the page: {sorted(there - named)}{REMEDY}"


def test_every_statement_has_a_property_or_a_reason():
    numbers = set(MAKE.numbered())
    assert set(MAKE.STATEMENTS) | set(MAKE.WITHOUT) == numbers
    assert not set(MAKE.STATEMENTS) & set(MAKE.WITHOUT)
    held = {statement_of(test.partition("::")[2]) for test in statement_tests()}
    assert held == set(MAKE.STATEMENTS)
    assert set(MAKE.EVERYWHERE) <= held


@pytest.mark.parametrize("statement", MAKE.EVERYWHERE)
def test_a_property_ran_in_every_library_in_both_precisions(page, statement):
    own = [
        cells for test, cells in rows(page) if statement_of(test.partition("::")[2]) == statement
    ]
    for column, library in enumerate(MAKE.LIBRARIES):
        cells = " ".join(row[column] for row in own)
        wanted = {"float32", "float64"} | ({"(jit)"} if library == "jax" else set())
        assert all(word in cells for word in wanted), f"{statement} in {library}: {cells!r}{REMEDY}"


def test_rows_tell_what_was_recorded():
    places = {"numpy-float64": 3, "numpy-read-only": 3, "numpy-float32": 4, "jax-jit-x32": 2}
    line = MAKE.row("A statement.", "tests/unit/test_a.py::test_3_1_b", places)
    ((test, cells),) = rows(line)
    assert test == "unit/test_a.py::test_3_1_b"
    assert cells == [
        "float64, read-only: 3; float32: 4", "", "", "float32 (jit): 2", MAKE.ON_A_GPU
    ]  # fmt: skip
