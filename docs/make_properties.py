"""Write ``properties.md``: which test holds each statement of the theory, and where it passed.

    pytest -m statement --namespaces=numpy --statements=build/statements/numpy.jsonl tests/unit …
    python docs/make_properties.py build/statements/*.jsonl

``nox -s properties`` does both, for NumPy, array-api-strict, PyTorch and JAX.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "properties.md"

STATEMENTS = {
    "2.1": "α is the slope of log h on log σ where both are positive; what is dropped is counted.",
    "2.2": "γ is minus the slope of log σ on log k over positive σ.",
    "2.3": "s is minus the slope of log h on log k; sorting never lowers it.",
    "2.4": "A fit has a Student t interval, or a reason below three points.",
    "2.5": "Scales leave α and γ; h σ^p adds p to α.",
    "3.1": "s = αγ + τ exactly, τ = −⟨ε, x⟩/⟨x, x⟩.",
    "3.2": "τ is at most (‖z‖/‖x‖) √((1 − R²_α)(1 − R²_γ)) in size, and this is attained.",
    "3.3": "s − αγ is τ, an ordering term and a window term.",
    "4.1": "Per-term gradients are un-reduced: C_δ = N Σ g gᵀ, however the data are cut.",
    "4.2": "Without weight sharing C_A is the mean of a aᵀ, and G that of δ aᵀ.",
    "4.3": "With sharing, positions each count, or are averaged and summed first.",
    "4.4": "δ by Gauss-Newton: the mean over targets drawn from the model.",
    "4.5": "Repeated samples change nothing; χ = 1 for one sample, piecewise linear.",
    "4.6": "Softmax: 1ᵀδ = 0, so that C_δ of the head has rank classes − 1 at most.",
    "5.1": "ρ is a quadratic form over the eigenvalue of its rank, also inside ties.",
    "5.2": "h^Kron = Φ Λ.",
    "5.3": "h = h^Kron κ ν, and κ in two parts.",
    "5.4": "h^GGN is a sum of squares, over positions first.",
    "5.5": "α = β + φ + κ + ν, as slopes on one window.",
    "5.6": "α = 2 + slope of log h/σ².",
    "5.7": "Perfect alignment gives Φ = 1, and α = 2 where σ² = Λ.",
    "5.8": "ν = 1 where the network is piecewise linear in the weight.",
    "5.9": "h is a sum of second derivatives of operations along tangents.",
    "6.1": "Values in a band have a bounded slope; LayerNorm gives a band.",
    "6.2": "Directions unrelated to C_δ: uᵀC_δu does not fall, ρ^δ does.",
    "7.1": "1 ≤ PR ≤ entropy rank ≤ count, free of scale.",
    "7.2": "PR of a power law grows with the window, up to ζ(s)²/ζ(2s).",
    "7.3": "The certified exponent bounds PR; it needs s ≥ 0.",
    "7.4": "PR of exponential and log-normal profiles in closed form.",
    "7.5": "ζ(s) to a relative error of 10⁻¹³.",
    "8": "Rank profiles are least squares, scored by BIC and AIC; exact ones are recognised.",
    "9.1": "T(σ) = σ/(σ^α + d) on singular values, and on those of a matrix.",
    "9.2": "α = 0: G/(1 + d); α = 1, d = 0: the polar factor; α = 2: one solve.",
    "9.3": "T(P G Qᵀ) = P T(G) Qᵀ, T(Gᵀ) = T(G)ᵀ, T(0) = 0.",
    "9.4": "T(cσ; d) = c^(1−α) T(σ; d/c^α); spectral damping is free of scale.",
    "9.5": "The maximum of T, where it lies, and steps divided by it.",
    "9.6": "Each method keeps the error that it states.",
    "9.9": "A step is bounded, sees no scale of gradients, and is without T where there are none.",
    "11.1": "The spread of groups of terms is the noise of their mean, without bias.",
    "11.2": "A group's gradient along directions of the others shows the population's derivative.",
    "11.3": "Exponents of noise alone have known values, and uniform p-values.",
    "11.4": "The jackknife over groups gives a mean its textbook error, and halves √2 of it.",
    "11.5": "The drift of the squared gradient is its noise.",
    "11.6": "Leverage, the exponent without a point; a σ lies within its residual of an exact one.",
    "11.7": "Poisson pseudo maximum likelihood solves its score equations, also with h ≤ 0.",
    "11.8": "A parabola against the line: the quadratic term, its t and ΔBIC; α over the window.",
    "11.9": "Along directions of other data, derivative and curvature are those of these data.",
}
"""One sentence for each statement of theory.md that has a property."""

WITHOUT = {
    "6.3": "a prediction about trained networks: see [the ablations](results/ablations.md)",
    "6.4": "a prediction about trained networks: see [the ablations](results/ablations.md)",
    "9.7": "not implemented",
    "9.8": "a reason, not a result",
}
"""Why the others have none."""

EVERYWHERE = [
    "2.5", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6",
    "5.2", "5.3", "5.4", "5.5", "5.6", "5.7", "5.8",
    "7.1", "7.2", "7.3", "7.4", "7.5", "8",
    "9.1", "9.2", "9.3", "9.4", "9.5", "9.6", "11.1", "11.2", "11.4", "11.6", "11.7", "11.8",
]  # fmt: skip
"""Those with a property that draws its data, in every library, in float32 and float64."""

LIBRARIES = ("numpy", "array-api-strict", "torch", "jax")
ON_A_GPU = "[on a GPU](results/gpu.md)"
JAX_VARIANTS = {
    "x64": "float64", "x32": "float32", "jit": "float64 (jit)", "jit-x32": "float32 (jit)",
}  # fmt: skip

HEADER = """\
# Properties

Every statement of [the theory](theory.md) that can be computed is held by tests that carry its
number: `test_3_1_…` is one of 3.1. Most draw their data: spectra (power laws, exponential,
log-normal, random, tied, with zeros, negatives and NaN), matrices (random, orthogonal, graded,
rank-deficient, tiny, huge), Kronecker factors, and networks of random depth, widths, activation,
loss and kinds of layer. Tolerances are bounds of rounding, derived from sizes and conditions.

A cell has the variants of a library, and on how many examples each passed: drawn ones, or cases
where a test draws nothing. `read-only` arrays cannot be written to, `restricted` lacks boolean
indexing and data-dependent shapes, `device` is a second device; all three are float64. CuPy runs
the same tests where there is a GPU.

`nox -s properties` makes this page of what passed ({versions}).
"""


Examples = dict[tuple[str, str], dict[str, int]]


def read(paths: Iterable[Path]) -> tuple[dict[str, str], Examples]:
    """Return versions of libraries, and examples by statement and test, and by where it passed.

    Cases of one test add up; a test that several runs have is that of the run with most.
    """
    versions: dict[str, str] = {}
    examples: Examples = defaultdict(dict)
    for path in paths:
        own: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "versions" in record:
                versions |= record["versions"]
            else:
                place = own[record["statement"], record["test"]]
                place[record["where"]] += record["examples"]
        for test, places in own.items():
            for place, count in places.items():
                examples[test][place] = max(count, examples[test].get(place, 0))
    return versions, examples


def page(versions: Mapping[str, str], examples: Examples) -> str:
    """Return the page."""
    told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [HEADER.format(versions=told)]
    titles = dict(re.findall(r"^## (\d+) (.*)$", theory(), flags=re.MULTILINE))
    section = ""
    for statement, sentence in STATEMENTS.items():
        if section != (section := statement.partition(".")[0]):
            lines += ["", f"## {section} {titles[section]}", "", *TABLE]
        first = f"**{statement}** {sentence}"
        for (own, test), places in sorted(examples.items()):
            if own == statement:
                lines.append(row(first, test, places))
                first = ""
    lines += ["", "## Statements without a property", ""]
    lines += [f"- {statement}: {reason}." for statement, reason in WITHOUT.items()]
    return "\n".join(lines) + "\n"


TABLE = (
    "| statement | property | NumPy | array-api-strict | PyTorch | JAX | CuPy |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def row(sentence: str, test: str, places: Mapping[str, int]) -> str:
    """Return one line of a table."""
    path, _, name = test.partition("::")
    cells = [cell(library, places) for library in LIBRARIES]
    # The GPU gate runs what takes arrays of any library.
    everywhere = "numpy-read-only" in places
    cells.append(ON_A_GPU if everywhere else "")
    where = path.removeprefix("tests/")
    return f"| {sentence} | `{name}` in `{where}` | {' | '.join(cells)} |"


def cell(library: str, places: Mapping[str, int]) -> str:
    """Return variants of a library by the number of examples."""
    variants: dict[int, list[str]] = defaultdict(list)
    for place, count in places.items():
        if place.startswith(f"{library}-"):
            variant = place.removeprefix(f"{library}-")
            variants[count].append(
                JAX_VARIANTS.get(variant, variant) if library == "jax" else variant
            )
    return "; ".join(f"{', '.join(names)}: {count}" for count, names in variants.items())


def theory() -> str:
    """Return the text of theory.md."""
    return (HERE / "theory.md").read_text(encoding="utf-8")


def numbered() -> list[str]:
    """Return the numbers of the statements in theory.md; section 8 has none of its own."""
    return [*re.findall(r"^\*\*(\d+\.\d+)\*\*", theory(), flags=re.MULTILINE), "8"]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Pass the files that pytest --statements=FILE wrote.")
    PAGE.write_text(page(*read(map(Path, sys.argv[1:]))), encoding="utf-8")
