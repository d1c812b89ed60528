"""docs/results/mutation.md from a run of mutmut: mutants killed by module, and why others survive.

::

    python tools/mutants/report.py mutants     # the folder that `nox -s mutants` leaves
    python tools/mutants/report.py mutants "A mutant met 20 seconds of tests at most."

Why a mutant survives stands in reasons.toml, by function and a piece of what is mutated, as the
numbers of mutants change with the code.
"""

import ast
import difflib
import json
import platform
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "mutation.md"

SURVIVED, UNREACHED = 0, 33
"""Exit codes that mutmut keeps; of no test at all, it keeps the second."""


@dataclass(frozen=True)
class Mutant:
    """A change of one function, and how its tests ended."""

    module: str
    """As ``room.module``, in the core."""
    name: str
    """As ``function`` or ``Class.method``."""
    code: int | None
    removed: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def function(self) -> str:
        """The name with its module, as reasons.toml has it: ``arrays.factorize.one_by_one``."""
        return f"{self.module}.{self.name}"

    @property
    def survives(self) -> bool:
        return self.code in (SURVIVED, UNREACHED)


@dataclass(frozen=True)
class Reason:
    """Why mutants of a function survive whose change holds one of these pieces.

    ``*`` in the function's name, and ``...`` in a piece, stand for anything.
    """

    function: str
    becomes: tuple[str, ...]
    why: str

    def of(self, mutant: Mutant) -> bool:
        change = "\n".join(mutant.added) or "\n".join(f"without {line}" for line in mutant.removed)
        return fnmatch(mutant.function, self.function) and any(
            re.search(".*".join(map(re.escape, piece.split("..."))), change, re.DOTALL)
            for piece in self.becomes
        )


def reasons() -> list[Reason]:
    """Read reasons.toml."""
    found = tomllib.loads((HERE / "reasons.toml").read_text("utf-8"))["reason"]
    return [Reason(each["function"], _pieces(each["becomes"]), each["why"]) for each in found]


def _pieces(given: str | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def mutants(folder: Path) -> Iterator[Mutant]:
    """Yield every mutant; `Mutant.code` is None for one that was not tried."""
    for meta in sorted((folder / "spectral_core").glob("**/*.meta")):
        codes = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
        functions = _functions(meta.with_suffix(""))
        for key, code in codes.items():
            module, _, name = key.removeprefix("spectral_core.").rpartition(".")
            original = name.rpartition("__mutmut_")[0] + "__mutmut_orig"
            change = _change(functions[original], functions[name])
            yield Mutant(module, _plain(name), code, *change)


def _functions(path: Path) -> dict[str, list[str]]:
    text = path.read_text("utf-8")
    lines = text.splitlines()
    return {
        node.name: lines[node.lineno - 1 : node.end_lineno]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }


def _plain(mangled: str) -> str:
    """Turn mutmut's ``xǁClassǁmethod__mutmut_1`` or ``x_function__mutmut_1`` into a name."""
    name = mangled.rpartition("__mutmut_")[0]
    return name.removeprefix("xǁ").replace("ǁ", ".") if "ǁ" in name else name.removeprefix("x_")


def _change(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines that went and those that came, but for the function's own name."""
    lines = list(difflib.ndiff(before, after))
    went, came = (
        tuple(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ ")
    )
    kept = [line for line in came if "__mutmut_" not in line]
    renamed = [line for line in came if "__mutmut_" in line]
    if not kept and renamed:  # a default of an argument
        return went, tuple(line.partition("(")[2] for line in renamed)
    return tuple(line for line in went if "__mutmut_" not in line), tuple(kept)


def table(tried: Sequence[Mutant]) -> list[str]:
    """Count by module."""
    total, survived, unreached = Counter[str](), Counter[str](), Counter[str]()
    for mutant in tried:
        for name in (mutant.module, "all"):
            total[name] += 1
            survived[name] += mutant.code == SURVIVED
            unreached[name] += mutant.code == UNREACHED
    lines = ["| module | mutants | killed | survived | reached by no test | killed, % |"]
    lines.append("|" + " --- |" * 6)
    for name in [*sorted(set(total) - {"all"}), "all"]:
        killed = total[name] - survived[name] - unreached[name]
        lines.append(
            f"| {name} | {total[name]} | {killed} | {survived[name]} | {unreached[name]} "
            f"| {100 * killed / total[name]:.1f} |"
        )
    return lines


def survivors(tried: Sequence[Mutant]) -> list[str]:
    """List by function what survives, with the reason or without."""
    known, lines, shown = reasons(), list[str](), Counter[tuple[str, str, str]]()
    for mutant in tried:
        if mutant.survives:
            why = next((reason.why for reason in known if reason.of(mutant)), "")
            change = " ".join(mutant.added) or "without " + " ".join(mutant.removed)
            shown[mutant.function, change.replace("`", "´"), why] += 1
    for (function, change, why), _ in sorted(shown.items()):
        lines.append(f"- {function}: `{change}`" + (f": {why}" if why else ": **no reason found**"))
    return lines


def page(found: Sequence[Mutant], remark: str = "") -> str:
    """Return the Markdown, with a remark on how the run was made."""
    tried = [mutant for mutant in found if mutant.code is not None]
    alive = [mutant for mutant in tried if mutant.survives]
    known = reasons()
    explained = sum(any(reason.of(mutant) for reason in known) for mutant in alive)
    share = 100 * (1 - len(alive) / len(tried))
    untried = f"{left} more were not tried. " if (left := len(found) - len(tried)) else ""
    return "\n".join([
        "# Mutation testing",
        "",
        f"`nox -s mutants` changes every function of `spectral_core` in every way that mutmut "
        f"{version('mutmut')} knows and runs the tests that reach it, with NumPy, array-api-strict "
        f"and PyTorch, the quick and narrow ones first. Of {len(tried)} mutants "
        f"{share:.1f} % are killed; of the {len(alive)} others {explained} have a reason below "
        f"(Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}). "
        f"{untried}"
        "`testing`, of which every clause has a broken backend of its own, and the protocols of "
        "`curvature.problem`, which have no code, are left out.",
        *(["", remark] if remark else []),
        "",
        *table(tried),
        "",
        "## Survivors",
        "",
        *survivors(tried),
        "",
    ])  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    folder, *remarks = sys.argv[1:] if given is None else given
    PAGE.write_text(page(list(mutants(Path(folder))), " ".join(remarks)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
