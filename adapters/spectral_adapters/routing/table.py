"""The routes of parameters, as a table to print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spectral_core.reporting.text_table import text_table

__all__ = ["Route", "RoutingTable"]

SLICES_SHOWN = 4

Rule = Literal["spectral", "adamw", "left out"]


@dataclass(frozen=True)
class Route:
    """The rule of one parameter, with its α and options.

    Parameters
    ----------
    name : str
        The name in the model, without wrappers. It is empty if parameters were passed without
        names.
    shape : tuple of int
        The shape of the parameter.
    rule : {"spectral", "adamw", "left out"}
        The rule that updates the parameter.
    kind : str
        The layer type, for ``"spectral"``.
    matrices : str
        The spec of `as_matrices`, for ``"spectral"``.
    reason : str
        The reason for the rule.
    alpha : float, tuple of float, or None
        Its exponent, for ``"spectral"``; a tuple has one for each slice of a stack.
    alpha_reason : str
        The source of the exponent.
    options : mapping
        The options of its parameter group that `route=` sets.
    parameter : Tensor, optional
        The parameter itself, in PyTorch.
    """

    name: str
    shape: tuple[int, ...]
    rule: Rule
    kind: str
    matrices: str
    reason: str
    parameter: Any = field(default=None, repr=False, compare=False)
    alpha: float | tuple[float, ...] | None = None
    alpha_reason: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the row that a table shows."""
        spectral = self.rule == "spectral"
        return {
            "name": self.name,
            "shape": self.shape,
            "rule": self.rule,
            "alpha": self.alpha if spectral else None,
            "type": self.kind if spectral else "",
            "matrices": self.matrices if spectral else "",
            "reason": "; ".join(text for text in (self.reason, self.alpha_reason) if text),
        }


class RoutingTable(Sequence[Route]):
    """The routes of all parameters; ``print`` shows them as a table."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    def __getitem__(self, index: Any) -> Any:
        """Return the route at an index."""
        return self._routes[index]

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._routes)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per parameter: name, shape, rule, alpha, type, matrices, reason."""
        return [route.row() for route in self]

    def __str__(self) -> str:
        """Return the table, one line a parameter."""
        header = ["parameter", "shape", "rule", "α", "type", "matrices", "why"]
        cells = [
            [
                str(row["name"]), "×".join(map(str, row["shape"])) or "scalar", str(row["rule"]),
                _alpha_text(row["alpha"]),
                *(str(row[key]) for key in ("type", "matrices", "reason")),
            ]
            for row in self.rows()
        ]  # fmt: skip
        return text_table(header, cells)


def _alpha_text(alpha: float | tuple[float, ...] | None) -> str:
    """Return α as a table shows it: of many slices the least and the largest."""
    if alpha is None:
        return ""
    if not isinstance(alpha, tuple):
        return f"{alpha:.3g}"
    if len(alpha) <= SLICES_SHOWN:
        return ", ".join(f"{value:.3g}" for value in alpha)
    return f"{min(alpha):.3g} … {max(alpha):.3g}"
