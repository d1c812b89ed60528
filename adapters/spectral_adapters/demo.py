"""The demo: train two small networks on real digits, measure every layer, say what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import spectral_core as sc
from spectral_adapters.plots import save_figures
from spectral_core._extras import require
from spectral_core.progress import ProgressCallback

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["DemoRun", "find_sentences", "run_demo"]


@dataclass(frozen=True)
class DemoRun:
    """One trained network and its report.

    Parameters
    ----------
    name : str
        ``"cnn"`` or ``"transformer"``.
    train_accuracy, test_accuracy : float
        Shares of correct digits.
    report : SpectralReport
        Of every layer.
    files : tuple of Path
        The report and the figures.
    """

    name: str
    train_accuracy: float
    test_accuracy: float
    report: sc.SpectralReport
    files: tuple[Path, ...]


def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    epochs: int = 12,
    samples: int = 512,
    top_k: int = 20,
    progress: ProgressCallback | bool | None = None,
    tell: Callable[[str], None] = print,
) -> list[DemoRun]:
    """Train, measure and plot a CNN and a transformer on scikit-learn's 8×8 digits.

    Parameters
    ----------
    output : path
        Folder for ``cnn/`` and ``transformer/``, each with ``report.json`` and the figures.
    seed : int
        Of the split, the weights and the order of samples.
    epochs : int
        Passes over the 1,437 training digits.
    samples : int
        Training digits to measure on, at most.
    top_k : int
        Directions per layer.
    progress : callable, bool or None
        As in `measure`.
    tell : callable
        Receives a line at each step.
    """
    torch = require("torch", "demo", "The demo")
    digits = _Digits.load(seed)
    runs = []
    for name, build in (("cnn", _cnn), ("transformer", _transformer)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
            tell(f"{name}: training on {len(digits.train[1])} digits")
            _train(model, digits.train, epochs)
        accuracies = [_accuracy(model, part) for part in (digits.train, digits.test)]
        tell(f"{name}: {accuracies[0]:.1%} of training and {accuracies[1]:.1%} of test digits right")
        runs.append(_measure(name, model, digits, accuracies, Path(output), samples, top_k, progress))
    return runs


def find_sentences(runs: Iterable[DemoRun]) -> list[str]:
    """Return three sentences that the reports support: on α, on the identity, on participation."""
    spectra = [(run.name, s) for run in runs for s in run.report.values() if not s.alpha.reason]
    return [_on_alpha(spectra), _on_identity(spectra), _on_participation(spectra)]


def _on_alpha(spectra: list[tuple[str, sc.LayerSpectrum]]) -> str:
    parts = []
    for network in dict.fromkeys(name for name, _ in spectra):
        fits = [s.alpha for name, s in spectra if name == network]
        values = [fit.exponent for fit in fits]
        two = sum(fit.interval[0] <= 2 <= fit.interval[1] for fit in fits)
        parts.append(
            f"{median(values):.2f} in the {network} ({min(values):.2f} to {max(values):.2f}; the "
            f"95 % intervals of {two} of {len(fits)} layers contain 2)"
        )
    return f"Curvature follows the gradient's singular values with median α = {' and '.join(parts)}."


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
        f"{median(ratios):.1f} of them (median participation ratio), it is below the zeta bound of "
        f"the fitted s in {below} of {len(spectra)} layers, and {dropped} of "
        f"{sum(len(s.sigma) for _, s in spectra)} directions had no positive curvature."
    )


@dataclass(frozen=True)
class _Digits:
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, seed: int) -> _Digits:
        torch = require("torch", "demo", "The demo")
        datasets = require("sklearn.datasets", "demo", "The demo")
        selection = require("sklearn.model_selection", "demo", "The demo")
        images, labels = datasets.load_digits(return_X_y=True)
        parts = selection.train_test_split(
            images / 16, labels, test_size=0.2, random_state=seed, stratify=labels
        )
        x_train, x_test = (torch.tensor(p, dtype=torch.float32).view(-1, 1, 8, 8) for p in parts[:2])
        y_train, y_test = (torch.tensor(p) for p in parts[2:])
        return cls((x_train, y_train), (x_test, y_test))


def _cnn() -> nn.Module:
    nn = require("torch.nn", "demo", "The demo")
    return nn.Sequential(  # type: ignore[no-any-return]
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _transformer() -> nn.Module:
    """Return a pre-norm encoder that reads a digit as eight rows of eight pixels."""
    torch = require("torch", "demo", "The demo")
    nn = torch.nn

    class Transformer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 48)
            self.position = nn.Parameter(0.1 * torch.randn(8, 48))
            block = nn.TransformerEncoderLayer(
                48, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(48)
            self.head = nn.Linear(48, 10)

        def forward(self, images: Tensor) -> Any:
            rows = self.embed(images.flatten(1, 2)) + self.position
            return self.head(self.norm(self.blocks(rows)).mean(1))

    return Transformer()  # type: ignore[no-any-return]


def _train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int) -> None:
    torch = require("torch", "demo", "The demo")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(data[1])).split(64):
            loss = torch.nn.functional.cross_entropy(model(data[0][index]), data[1][index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def _accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    torch = require("torch", "demo", "The demo")
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def _measure(
    name: str,
    model: nn.Module,
    digits: _Digits,
    accuracies: list[float],
    output: Path,
    samples: int,
    top_k: int,
    progress: ProgressCallback | bool | None,
) -> DemoRun:
    torch = require("torch", "demo", "The demo")
    backend = require("spectral_backends.torch", "demo", "The demo")
    images, labels = (part[:samples] for part in digits.train)
    batches = list(zip(images.split(128), labels.split(128), strict=True))
    problem = backend.CurvatureProblem(
        model, torch.nn.functional.cross_entropy, batches, dtype=torch.float64
    )
    report = sc.measure(problem, top_k=top_k, progress=progress)
    report.save(output / name / "report.json")
    figures = save_figures(report, output / name)
    return DemoRun(name, *accuracies, report, (output / name / "report.json", *figures))
