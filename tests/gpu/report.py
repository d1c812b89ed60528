"""Turn a folder of the GPU gate into a page of Markdown.

::

    python tests/gpu/report.py FOLDER [--page docs/results/gpu.md]

A page of a dry run says so in its title and never becomes docs/results/gpu.md.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gate_verdict import judge, read_lines

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "gpu.md"
INDEX = PAGE.with_name("index.md")
PARTS = ("measure", "step", "train")

Line = dict[str, Any]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of run.sh")
    parser.add_argument("--page", type=Path, default=PAGE, help="to write; docs/results/gpu.md")
    options = parser.parse_args(given)
    path = options.folder / "environment.json"
    if not path.exists():
        print(f"{options.folder} holds no environment.json; run tests/gpu/run.sh first.")
        return 2
    environment = json.loads(path.read_text("utf-8"))
    if environment["dry"] and options.page.resolve() == PAGE.resolve():
        print(
            f"{options.folder} is of a dry run: its figures are a CPU's and say nothing of a GPU. "
            "Pass --page to look at them elsewhere.",
            file=sys.stderr,
        )
        return 2
    figures = {part: latest(read_lines(options.folder / f"{part}.jsonl")) for part in PARTS}
    tests = read_lines(options.folder / "tests.jsonl")
    options.page.write_text(page(environment, tests, figures), "utf-8")
    if options.page.resolve() == PAGE.resolve():
        list_page(INDEX)
    print(f"wrote {options.page}")
    return 0


def list_page(index: Path) -> None:
    """Add the page to the list of results, which the documentation's build asks for."""
    text = index.read_text("utf-8")
    if "\ngpu\n" not in text:
        before, fence, after = text.rpartition("```")
        index.write_text(f"{before}gpu\n{fence}{after}", "utf-8")


def latest(lines: Iterable[Line]) -> list[Line]:
    """Return the last line of each figure: a section that was begun twice has two."""
    keys = ("figure", "section", "case", "shapes", "contender", "model", "peer", "layer", "lr")
    return list({tuple(str(line.get(key)) for key in keys): line for line in lines}.values())


def page(environment: Line, tests: list[Line], figures: dict[str, list[Line]]) -> str:
    """Return the whole page."""
    parts = [
        heading(environment),
        tests_text(environment, tests),
        matrices_text(of(figures["step"], "precondition")),
        steps_text(of(figures["step"], "step")),
        solves_text(of(figures["step"], "solve")),
        jax_text(figures["step"]),
        measure_text(figures["measure"]),
        train_text(of(figures["train"], "train")),
        missing_text(figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(environment: Line) -> str:
    """Return the title and what the figures were made with."""
    own = environment["frameworks"]
    versions = [f"{n} {own[n]['version']}" for n in own if own[n].get("version")]
    driver = f", driver {environment['driver']}" if environment["driver"] else ""
    title = "# On a GPU"
    if environment["dry"]:
        title = "# DRY RUN ON A CPU: no figure here is of a GPU\n\n**Not a result.**"
    return (
        f"{title}\n\n{environment['device']}{driver}; {', '.join(versions)}; Python "
        f"{environment['python']}, {environment['cores']} cores; {environment['date']}, commit "
        f"{environment['commit']}. By `tests/gpu/run.sh`; times are medians of runs in turn, by "
        "events of the device, after a warm-up. Ratios below 1 are faster than what they are over."
    )


def tests_text(environment: Line, tests: list[Line]) -> str:
    verdict = judge(tests, environment["frameworks"], environment["dry"])
    lines = "\n".join(f"- {sentence}" for sentence in verdict.sentences)
    held = "All that ran passed." if verdict.holds else "**The tests did not hold.**"
    return f"## Tests\n\n{lines}\n\n{held}"


def matrices_text(lines: list[Line]) -> str:
    """Time over Muon's iteration and error, a row for each contender, a column for each shape."""
    if not lines:
        return ""
    return (
        "## One matrix\n\nSingular values k^−1/2, δ = 0.1: time over that of the Newton-Schulz "
        "iteration of `torch.optim.Muon`, and the error, relative to T. The last numbers of names "
        f"are α.\n\n{cases_table(lines)}"
    )


def steps_text(lines: list[Line]) -> str:
    if not lines:
        return ""
    return (
        "## A step of an optimizer\n\nOn the weight matrices of a network with random gradients: "
        "time over that of `torch.optim.Muon`; the error is that of the first step's direction."
        f"\n\n{cases_table(lines)}"
    )


def cases_table(lines: list[Line]) -> str:
    cases = list(dict.fromkeys(line["case"] for line in lines))
    names = list(dict.fromkeys(line["contender"] for line in lines))
    cells = {(line["contender"], line["case"]): cell(line) for line in lines}
    rows = [[name, *(cells.get((name, case), "") for case in cases)] for name in names]
    muon = [line for line in lines if line["contender"] == "muon" and "milliseconds" in line]
    absolute = ", ".join(f"{line['milliseconds']:.3g} ms at {line['case']}" for line in muon)
    failed = [line for line in lines if "fails" in line]
    notes = [f"- {line['contender']}, {line['case']}: {line['fails']}" for line in failed]
    text = f"{table(['', *cases], rows)}\n\nMuon itself: {absolute}."
    return text + ("\n\nWhat did not run:\n\n" + "\n".join(notes) if notes else "")


def cell(line: Line) -> str:
    if "fails" in line:
        return "does not run"
    parts = [f"{line['over_muon']:.3g}"]
    if line.get("error") is not None:
        parts.append(f"({line['error']:.1e})")
    if line.get("kernels"):
        parts.append(f"[{line['kernels']}]")
    return " ".join(parts)


def solves_text(lines: list[Line]) -> str:
    if not lines:
        return ""
    rows = [
        [
            line["case"],
            line["contender"],
            "does not run" if "fails" in line else f"{line['milliseconds']:.3g}",
            "" if "fails" in line else f"{line['residual']:.1e}",
        ]
        for line in lines
    ]
    names = ["matrices", "by", "milliseconds", "residual"]
    return f"## Solves behind the seam\n\n{table(names, rows)}"


def jax_text(lines: list[Line]) -> str:
    own = [*of(lines, "precondition_jax"), *of(lines, "step_optax")]
    if not own:
        return ""
    names = list(dict.fromkeys(name for line in own for name in line["time_over_muon"]))
    rows = [
        [line["shapes"], *(f"{line['time_over_muon'][n]:.3g}" if n in line["time_over_muon"] else ""
                           for n in names)]
        for line in own
    ]  # fmt: skip
    return f"## JAX, over Optax's Muon\n\n{table(['', *names], rows)}"


def measure_text(lines: list[Line]) -> str:
    ours, peers = of(lines, "ours on all layers"), of(lines, "a peer on all layers")
    if not ours:
        return ""
    first = table(
        ["network", "batch", "layers", "directions", "engines", "forward passes per direction"],
        [
            [line["model"], line["batch"], line["layers"], line["directions"],
             ", ".join(line["engines"]), line["forward_passes_per_direction"]]
            for line in ours
        ],
    )  # fmt: skip
    second = table(
        ["network", "peer", "its time over ours", "largest relative difference"],
        [
            [line["model"], line["peer"], line["peer_time_over_ours"],
             f"{line['largest_relative_difference']:.1e}"]
            for line in peers if "peer_time_over_ours" in line
        ],
    )  # fmt: skip
    left_out = [
        f"{line['peer']} ({line.get('skipped') or line['fails']})"
        for line in peers
        if "peer_time_over_ours" not in line
    ]
    text = (
        "## Measurement\n\nExact curvature of all layers along their top directions, float32. "
        f"Ratios above 1: the peer is slower.\n\n{first}\n\n{second}"
    )
    return text + (f"\n\nLeft out: {', '.join(left_out)}." if left_out else "")


def train_text(lines: list[Line]) -> str:
    """Each contender's best learning rate, over Muon's."""
    if not lines:
        return ""
    best: dict[str, Line] = {}
    for line in lines:
        held = best.setdefault(line["contender"], line)
        if line["validation_loss"] < held["validation_loss"]:
            best[line["contender"]] = line
    muon = best.get("muon")
    rows = [
        [
            name,
            f"{line['lr']:g}",
            f"{line['validation_loss']:.4f}",
            f"{line['milliseconds_a_step'] / muon['milliseconds_a_step']:.2f}" if muon else "",
        ]
        for name, line in best.items()
    ]
    some = lines[0]
    return (
        f"## A short race\n\n{some['steps']} steps on {some['text']}, {some['parameters']:,} "
        "parameters, one seed, the best of the learning rates that ran.\n\n"
        + table(["", "learning rate", "validation loss", "time a step over Muon's"], rows)
    )


def missing_text(figures: dict[str, list[Line]]) -> str:
    """Say which sections failed or were not finished."""
    said = []
    for part, lines in figures.items():
        done = {line["section"] for line in of(lines, "section finished")}
        begun = dict.fromkeys(line["section"] for line in lines if "section" in line)
        failed = {line["section"]: line["reason"] for line in of(lines, "section failed")}
        for section in begun:
            if section not in done:
                said.append(f"- {part}, {section}: {failed.get(section, 'was not finished')}")
    return "## Not finished\n\n" + "\n".join(said) if said else ""


def of(lines: Iterable[Line], figure: str) -> list[Line]:
    return [line for line in lines if line["figure"] == figure]


def table(names: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(entry) for entry in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
