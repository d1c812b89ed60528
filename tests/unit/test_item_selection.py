"""What runs in another library than NumPy: each row of a table, and each variant."""

from types import SimpleNamespace

import item_selection
import pytest
from item_selection import covering, covering_of, rows_of

VARIANTS = [("jax", name) for name in ("x64", "x32", "jit")]


def item(variant, **rows):
    ids = ["-".join(variant), *map(str, rows.values())]
    callspec = SimpleNamespace(params={"xp": variant, **rows}, _idlist=ids, id="-".join(ids))
    return SimpleNamespace(nodeid="test_a.py::test_b[]", callspec=callspec)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (5, 1), (4, 3), (7, 5)])
def test_every_row_and_every_variant_is_met(rows, columns):
    table = [
        item(variant, row=f"row {row}", column=f"column {column}")
        for row in range(rows)
        for column in range(columns)
        for variant in VARIANTS
    ]
    found = list(covering_of(table))
    assert {each.callspec.params["xp"] for each in found} == set(VARIANTS)
    for name, count in (("row", rows), ("column", columns)):
        met = {each.callspec.params[name] for each in found}
        assert met == {f"{name} {number}" for number in range(count)}
    assert len(found) <= len(VARIANTS) + rows + columns


@pytest.mark.parametrize("numbers", [(0.5, 1, 2.0), (1e-30, 1, 1e30)])
def test_jax_need_not_compile_for_each_number(numbers):
    def met(variants):
        made = [(method, x, v) for method in "ab" for x in numbers for v in variants]
        table = [item(variant, method=method, alpha=x) for method, x, variant in made]
        return [each.callspec.params for each in covering_of(table)]

    assert {params["method"] for params in met(VARIANTS)} == {"a", "b"}
    assert len(met(VARIANTS)) == len(VARIANTS) + 1
    others = met([("torch", "float64"), ("torch", "float32")])
    assert {params["alpha"] for params in others} == set(numbers)


def test_in_float64_of_numpy_all_run():
    whole = [item(("numpy", "float64"), row=row, column=row % 2) for row in range(8)]
    assert len(list(covering(whole, "numpy"))) == 8
    assert len(list(covering(whole, "all"))) == 8
    assert len(list(covering(whole, "few"))) < 8 + 1


@pytest.mark.parametrize("letter", ["a", "b"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_pytest_tells_the_rows(request, xp, letter, number):
    assert sorted(row for _, row in rows_of(request.node)) == [str(number), letter]


FILE = """
import numpy as np
import pytest

TABLE = ["torch", "numpy"]


def compiled(function):
    return pytest.importorskip("jax").jit(function)


def through(function):
    return compiled(function)


@pytest.fixture
def on_a_device():
    return "jax"


def test_of_arrays():
    assert np.ones(1)


def test_by_a_helper():
    assert through(np.ones)


def test_by_a_fixture(on_a_device):
    assert on_a_device


@pytest.mark.parametrize("name", TABLE)
def test_by_a_table(name):
    assert name
"""


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("test_of_arrays", {"jax": True, "torch": True}),
        ("test_by_a_helper", {"jax": False, "torch": True}),
        ("test_by_a_fixture", {"jax": False, "torch": True}),
        ("test_by_a_table", {"jax": True, "torch": False}),
    ],
)
def test_what_a_test_uses_of_its_file_says_whom_it_is_about(name, host, tmp_path, monkeypatch):
    monkeypatch.setattr(item_selection, "TESTS", tmp_path)
    path = tmp_path / "unit" / "test_made_up.py"
    path.parent.mkdir()
    path.write_text(FILE)
    item = SimpleNamespace(path=path, nodeid=f"tests/unit/test_made_up.py::{name}", fixturenames=())
    for library, expected in host.items():
        assert item_selection.is_of_the_host(item, {library}) == expected
