"""The demo: train two small networks on real digits, measure every layer, say what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import spectral_core as sc
from spectral_adapters.plots import save_figures
from spectral_core._extras import require
from spectral_core._renamed import renamed_arguments
from spectral_core.measuring.progress import ProgressCallback

__all__ = ["DemoRun", "find_sentences", "run_demo"]


SAMPLING = 8
"""The number of groups of samples behind the sampling errors."""


@dataclass(frozen=True)
class DemoRun:
    """One trained network and its report.

    Parameters
    ----------
    name : str
        ``"cnn"`` or ``"transformer"``.
    train_accuracy, test_accuracy : float
        The shares of correct digits.
    report : SpectralReport
        The report of every layer.
    files : tuple of Path
        The report and the figures.
    """

    name: str
    train_accuracy: float
    test_accuracy: float
    report: sc.SpectralReport
    files: tuple[Path, ...]


@renamed_arguments
def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    epochs: int = 12,
    samples: int = 512,
    top_k: int = 20,
    progress: ProgressCallback | bool | None = None,
    progress_callback: Callable[[str], None] = print,
) -> list[DemoRun]:
    """Train, measure and plot a CNN and a transformer on scikit-learn's 8×8 digits.

    Parameters
    ----------
    output : path
        The folder for ``cnn/`` and ``transformer/``, each with ``report.json`` and the figures.
    seed : int
        The seed of the split, the weights and the order of samples.
    epochs : int
        The number of passes over the 1,437 training digits.
    samples : int
        The largest number of training digits to measure on.
    top_k : int
        The number of directions per layer.
    progress : callable, bool or None
        The option of `spectral_core.measure`.
    progress_callback : callable
        A function that is called with each line on what was done; by default the line is printed.

    Examples
    --------
    >>> runs = run_demo("demo", epochs=1, samples=32, top_k=3, progress_callback=lambda line: None)
    >>> [run.name for run in runs]
    ['cnn', 'transformer']
    """
    for module in ("torch", "sklearn", "matplotlib"):
        require(module, "demo", "The demo")
    from spectral_adapters.demo import networks

    digits = networks.load_digits(seed)
    runs = []
    for name, build in (("cnn", networks.cnn), ("transformer", networks.Transformer)):
        progress_callback(f"{name}: training on {len(digits.train[1])} digits")
        model = networks.trained(build, digits.train, epochs, seed)
        train, test = (networks.accuracy(model, part) for part in (digits.train, digits.test))
        progress_callback(f"{name}: {train:.1%} of training and {test:.1%} of test digits right")
        problem = networks.problem(model, digits.train, samples)
        report = sc.measure(problem, top_k=top_k, sampling=SAMPLING, progress=progress)
        report.save(Path(output) / name / "report.json")
        figures = save_figures(report, Path(output) / name)
        files = (Path(output) / name / "report.json", *figures)
        runs.append(DemoRun(name, train, test, report, files))
    return runs


def find_sentences(runs: Iterable[DemoRun]) -> list[str]:
    """Return three sentences that the reports support: on α, on the identity, on participation."""
    spectra = [(run.name, s) for run in runs for s in run.report.values() if not s.alpha.reason]
    return [_on_alpha(spectra), _on_identity(spectra), _on_participation(spectra)]


def _on_alpha(spectra: list[tuple[str, sc.LayerSpectrum]]) -> str:
    parts = []
    for network in dict.fromkeys(name for name, _ in spectra):
        layers = [s for name, s in spectra if name == network]
        values = [s.alpha.exponent for s in layers]
        errors = [s.sampling.alpha for s in layers if s.sampling is not None]
        two = sum(error.interval[0] <= 2 <= error.interval[1] for error in errors)
        noise = sum("noise" in s.flags for s in layers)
        parts.append(
            f"{median(values):.2f} in the {network} ({min(values):.2f} to {max(values):.2f}; the "
            f"sampling intervals of {two} of {len(errors)} layers contain 2, and {noise} of "
            f"{len(layers)} layers show mostly noise of the sample)"
        )
    return (
        f"Curvature follows the gradient's singular values with median α = {' and '.join(parts)}."
    )


def _on_identity(spectra: list[tuple[str, sc.LayerSpectrum]]) -> str:
    errors = [s.triangle.relative_error for _, s in spectra]
    # Equality is attained for perfectly aligned residuals, so rounding may exceed the bound.
    held = sum(abs(s.triangle.defect) <= s.triangle.defect_bound + 1e-12 for _, s in spectra)
    closure = max(abs(s.triangle.closure) for _, s in spectra)
    return (
        f"The decay s of curvature with rank differs from αγ by {median(errors):.1%} in the median "
        f"layer ({max(errors):.1%} at most), the defect is within its a-priori bound in {held} of "
        f"{len(spectra)} layers, and the exact identity closes to {closure:.0e}."
    )


def _on_participation(spectra: list[tuple[str, sc.LayerSpectrum]]) -> str:
    ratios = [s.participation.ratio for _, s in spectra]
    counts = [s.participation.count for _, s in spectra]
    below = sum(s.participation.ratio <= s.participation.zeta_bound for _, s in spectra)
    dropped = sum(s.alpha.n_dropped for _, s in spectra)
    return (
        f"The curvature of a window of {median(counts):g} directions is carried by "
        f"{median(ratios):.1f} of them (median participation ratio), the zeta bound of the fitted "
        f"s, which only exact power laws must obey, holds in {below} of {len(spectra)} layers, and "
        f"{dropped} of "
        f"{sum(len(s.sigma) for _, s in spectra)} directions had no positive curvature."
    )
