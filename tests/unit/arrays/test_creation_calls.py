"""A lint: arrays are created with the caller's dtype and device, never with defaults."""

import ast
from pathlib import Path

import pytest

import spectral_core

CREATORS = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}
MODULES = sorted(Path(spectral_core.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_creation_calls_name_dtype_and_device(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        if node.func.attr in CREATORS and isinstance(owner, ast.Name) and owner.id == "xp":
            given = {keyword.arg for keyword in node.keywords}
            assert {"dtype", "device"} <= given, f"{path.name}:{node.lineno}"


def test_the_lint_looks_at_something():
    calls = [path for path in MODULES if "xp.arange" in path.read_text(encoding="utf-8")]
    assert calls


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_is_clipped_by_the_callers_library(path):
    """For CuPy array-api-compat clips by a mask, and the host waits to learn how much it picks."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr == "clip":
            assert ast.unparse(node.value) == "np", f"{path.name}:{node.lineno}: use at_least"
