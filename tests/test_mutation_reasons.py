"""Reasons of surviving mutants against the modules that there are, and how mutants are named."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "tools/mutants"
REASONS = tomllib.loads((MUTANTS / "reasons.toml").read_text("utf-8"))["reason"]


def report():
    spec = importlib.util.spec_from_file_location("mutation_report", MUTANTS / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("function", sorted({each["function"] for each in REASONS} - {"*"}))
def test_a_reason_is_of_a_module_that_there_is(function):
    path = ROOT / "spectral_core"
    for part in function.split("."):
        path = path / part
        if path.with_suffix(".py").is_file():
            return
        assert path.is_dir(), f"{function}: name it as room.module.function, as it is called now"


def test_a_mutant_is_named_by_room_and_module(tmp_path, monkeypatch):
    room = tmp_path / "spectral_core" / "arrays"
    room.mkdir(parents=True)
    (room / "factorize.py").write_text(
        "def x_one__mutmut_orig(a):\n    return a + 1\n\n\ndef x_one__mutmut_1(a):\n    return a - 1\n"
    )
    (room / "factorize.py.meta").write_text(
        '{"exit_code_by_key": {"spectral_core.arrays.factorize.x_one__mutmut_1": 0}}'
    )
    made = report()
    (mutant,) = made.mutants(tmp_path)
    assert mutant.function == "arrays.factorize.one" and mutant.survives
    assert made.table([mutant])[2].startswith("| arrays.factorize | 1 | 0 | 1 |")
