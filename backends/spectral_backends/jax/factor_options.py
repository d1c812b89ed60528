"""How Kronecker factors are made."""

from dataclasses import dataclass

from spectral_core.errors import InputError
from spectral_core.problem import Delta, Sharing

__all__ = ["FactorOptions"]


@dataclass(frozen=True)
class FactorOptions:
    """The arguments of `CurvatureProblem.kronecker_factors`."""

    delta: Delta
    sharing: Sharing
    draws: int
    max_columns: int

    def check(self) -> None:
        """Raise `InputError` for an option that there is not."""
        if self.delta not in ("ggn", "fisher-mc", "empirical"):
            raise InputError(
                f"delta: {self.delta!r} is unknown; choose 'ggn', 'fisher-mc' or 'empirical'."
            )
        if self.sharing not in ("expand", "reduce"):
            raise InputError(f"sharing: {self.sharing!r} is unknown; choose 'expand' or 'reduce'.")
        if not isinstance(self.draws, int) or self.draws < 2 or self.draws % 2:
            raise InputError(
                f"draws: {self.draws!r} is no even number of 2 or more; two halves of the draws "
                "give the standard error."
            )
        if not isinstance(self.max_columns, int) or self.max_columns < 0:
            raise InputError(f"max_columns: {self.max_columns!r} is not a number of columns.")
