"""What all figures share: axes, panels, colours, and writing to a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spectral_core._extras import require
from spectral_core.errors import ReportError
from spectral_core.reporting.text_table import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "new_axes", "new_figure", "saved", "short_name", "small_multiples"]

T = TypeVar("T")

# Okabe and Ito's colours: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_axes(width: float = 6.4, height: float = 4.8) -> Axes:
    """Return the axes of a new figure, of a size in inches."""
    axes: Axes = new_figure(width, height).add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def new_figure(width: float, height: float) -> Figure:
    """Return a new figure without axes, of a size in inches."""
    figure: Any = require("matplotlib.figure", "plots", "A plot").Figure
    return figure(figsize=(width, height), layout="constrained")  # type: ignore[no-any-return]


def small_multiples(report: Mapping[str, T], draw: Callable[[T, Axes], Axes]) -> Figure:
    """Return a figure with a panel for each layer, on which `draw` draws it."""
    columns = min(6, math.ceil(math.sqrt(1.3 * len(report))))
    rows = math.ceil(len(report) / columns)
    figure = new_figure(2.3 * columns + 0.4, 2.0 * rows + 0.6)
    for index, (name, layer) in enumerate(report.items()):
        ax = figure.add_subplot(rows, columns, index + 1)
        draw(layer, ax)
        ax.set_title(short_name(name), fontsize=8)
        ax.tick_params(labelsize=6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.minorticks_off()
        ax.set_xlabel(ax.get_xlabel() if index + columns >= len(report) else "", fontsize=8)
        ax.set_ylabel(ax.get_ylabel() if index % columns == 0 else "", fontsize=8)
    return figure


def short_name(name: str, most: int = 28) -> str:
    """Drop leading parts of a dotted name until it fits a panel's title."""
    parts = name.split(".")
    while len(parts) > 1 and len(".".join(parts)) >= most:
        parts = parts[1:]
    kept = ".".join(parts)[-most:]
    shown = kept if kept == name else f"…{kept}"
    return printable(shown).replace("$", r"\$")  # no mathematics, however it is named


def saved(figures: Mapping[str, Callable[[], Figure]], folder: Path) -> list[Path]:
    """Write figures into a folder as they are made; return their paths.

    Raises
    ------
    ReportError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in figures.items():
            make().savefig(folder / name, dpi=130)
    except OSError as error:
        raise ReportError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder."
        ) from error
    return [folder / name for name in figures]
