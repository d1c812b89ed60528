"""A pytest plugin: which combinations of parameters run in which array library.

All of them run in NumPy's float64, where they take least. Another library or variant runs the same
lines with arrays of its own, so there every row of a table is met once, and properties draw fewer
examples. ``--combinations=all`` runs all of them everywhere, as ``nox -s properties`` does.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
EVERYTHING = ("numpy", "float64")

# What the session of NumPy runs; other libraries run of it what is about them.
OF_THE_HOST = ("unit", "golden", "backends/arrays", "adapters/test_array_optim.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--combinations",
        choices=("few", "numpy", "all"),
        default="numpy",
        help="of parameters: few, where a library meets each row of a table once; all of them in"
        " NumPy's float64 (the default); all of them everywhere",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: left out with --combinations=few")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    combinations = config.getoption("--combinations")
    kept = {id(item) for item in covering(items, combinations)}
    if combinations == "few":
        kept -= {id(item) for item in items if item.get_closest_marker("long")}
    asked = {name for name in config.getoption("--namespaces").split(",") if name}
    if asked and "numpy" not in asked and combinations != "all":
        kept -= {id(item) for item in items if is_of_the_host(item, asked)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def is_whole(variant: tuple[str, str], combinations: str) -> bool:
    """Say whether every combination of parameters is tested in a variant."""
    return combinations == "all" or (combinations == "numpy" and variant == EVERYTHING)


def covering(items: Iterable[pytest.Item], combinations: str) -> Iterator[pytest.Item]:
    """Yield all tests of the variants that are tested whole, and of others those that cover."""
    tables = defaultdict(list)
    for item in items:
        variant = getattr(getattr(item, "callspec", None), "params", {}).get("xp")
        if variant is None:
            yield item
        elif not isinstance(variant, tuple):
            continue  # it has a meaning in none of the variants that were asked for
        elif is_whole(variant, combinations):
            yield item
        else:
            tables[item.nodeid.partition("[")[0], variant[0]].append(item)
    for table in tables.values():
        yield from covering_of(table)


def covering_of(table: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield of one test in one library what holds a row or a variant that none before it held.

    The first combination of rows runs in every variant, the others take turns with the variants.
    """
    combinations = defaultdict(list)
    for item in table:
        combinations[rows_of(item)].append(item)
    seen: set[object] = set()
    for turn, (rows, variants) in enumerate(combinations.items()):
        first = turn % len(variants)
        for item in variants[first:] + variants[:first]:
            holds = {item.callspec.params["xp"], *(row for row in rows if counts(item, row))}
            if not holds <= seen:
                seen |= holds
                yield item


def counts(item: pytest.Item, row: tuple[int, str]) -> bool:
    """Say whether a library must meet a row of a table.

    JAX compiles for each, and need not meet plain numbers, such as an α: they differ in the values
    that the same lines compute, and methods, kinds and names are rows of their own.
    """
    library = item.callspec.params["xp"][0]
    return library != "jax" or re.fullmatch(r"[\d.e+-]+", row[1]) is None


def rows_of(item: pytest.Item) -> tuple[tuple[int, str], ...]:
    """Return the row that a test has of each table of parameters: which table, and the row's id."""
    # `callspec.indices` counts combinations. Without this list every combination is a row of its
    # own, and all of them run.
    ids = getattr(item.callspec, "_idlist", [item.callspec.id])
    own = "-".join(item.callspec.params["xp"])
    return tuple((table, row) for table, row in enumerate(ids) if row != own)


def is_of_the_host(item: pytest.Item, libraries: set[str]) -> bool:
    """Say whether NumPy's own session runs a test, and none of the libraries makes it differ.

    Such a test takes no `xp`, and neither its lines nor what they use of its file name a library.
    """
    if "xp" in getattr(item, "fixturenames", ()):
        return False
    if not any(item.path.is_relative_to(TESTS / place) for place in OF_THE_HOST):
        return False
    names = libraries | {name.replace("-", "_") for name in libraries}
    used = _lines_behind(item.path, item.nodeid.partition("[")[0].split("::")[1])
    return not any(name in used or name in item.nodeid for name in names)


@cache
def _lines_behind(path: Path, name: str) -> str:
    """Return the lines that define a name of a file, with those of all that they use of the file."""
    definitions = _definitions(path)
    found, todo = {}, [name, "pytestmark"]
    while todo:
        name = todo.pop()
        if name in definitions and name not in found:
            found[name], used = definitions[name]
            todo += used
    return "\n".join(found.values())


@cache
def _definitions(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Return of each name that a file defines or imports the lines, and the names in them."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for statement in ast.parse(text).body:
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(each.lineno for each in decorators)])
        block = "\n".join(lines[first - 1 : statement.end_lineno])
        nodes = list(ast.walk(statement))
        # Fixtures are used by the names of arguments.
        used = {n.id for n in nodes if isinstance(n, ast.Name)}
        used |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        for name in _defined_by(statement):
            before = found.get(name, ("", set()))
            found[name] = (before[0] + "\n" + block, before[1] | used)
    return found


def _defined_by(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a file defines, imports or assigns to."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(each.asname or each.name).partition(".")[0] for each in statement.names}
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
