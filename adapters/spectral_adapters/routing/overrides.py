"""The argument ``route=``: globs of names to a rule, an α, matrices and other options."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from spectral_adapters.routing.table import Route, Rule
from spectral_core import InputError, MatrixLayout, MatrixSpec, as_matrices

__all__ = ["Override", "Overrides", "first_override", "unmatched"]

Overrides = Mapping[str, "str | Mapping[str, Any]"]
"""Glob of names to ``"spectral"``, ``"adamw"``, or a dict with ``alpha``, ``matrices`` and more."""


@dataclass(frozen=True)
class Override:
    """The rule and options for the parameters that a glob matches.

    Parameters
    ----------
    pattern : str
        The glob.
    rule : {"spectral", "adamw"} or None
        The rule of the parameters. None keeps the rule that a parameter has by itself.
    alpha : float, optional
        The exponent.
    matrices : MatrixSpec or str, optional
        The spec of its matrices.
    options : mapping
        The other options.
    """

    pattern: str
    rule: Rule | None
    alpha: Any = None
    matrices: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, pattern: str, wanted: "str | Mapping[str, Any]") -> "Override":
        """Read the value of ``route=`` under a glob.

        Raises
        ------
        InputError
            If it is neither a rule nor a dict, or its rule or spec is none.
        """
        options = dict(wanted) if isinstance(wanted, Mapping) else {"rule": wanted}
        rule: Any = "spectral" if {"alpha", "matrices"} & set(options) else None
        if "rule" in options and (rule := options.pop("rule")) not in ("spectral", "adamw"):
            said = f"rule {rule!r}" if isinstance(wanted, Mapping) else repr(wanted)
            raise InputError(
                f"route: {said} for {pattern!r}; pass 'spectral', 'adamw' or a dict of options."
            )
        alpha, matrices = options.pop("alpha", None), options.pop("matrices", None)
        if not isinstance(matrices, (str, MatrixSpec, type(None))):
            raise InputError(
                f"route: matrices {matrices!r} for {pattern!r}; pass a spec of as_matrices or its "
                "text."
            )
        return cls(pattern, rule, alpha, matrices, options)

    def layout(self, route: Route) -> MatrixLayout:
        """Return the layout of a parameter, by this override or else by its own spec."""
        return as_matrices(route.shape, self.matrices or route.matrices)


def first_override(overrides: Overrides, names: Iterable[str]) -> Override | None:
    """Return the override of the first glob that matches any of a parameter's names."""
    own = list(names)
    for pattern, wanted in overrides.items():
        if any(fnmatchcase(name, pattern) for name in own):
            return Override.read(pattern, wanted)
    return None


def unmatched(overrides: Overrides, names: Sequence[str]) -> list[str]:
    """Return the globs that match none of the names."""
    return [p for p in overrides if not any(fnmatchcase(name, p) for name in names)]
