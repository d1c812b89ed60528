"""Options of Kronecker factors and the notes on them, the same for every backend."""

from dataclasses import dataclass
from typing import get_args

from spectral_core.curvature.problem import FisherType, KfacApprox, LayerInfo
from spectral_core.errors import InputError, LayerError

__all__ = ["FactorOptions", "check_factor_size", "factor_notes"]

MAX_SIDE = 16384
"""Largest side of a factor: 2 GiB in float64."""


@dataclass(frozen=True)
class FactorOptions:
    """The arguments of a backend's `kronecker_factors`."""

    fisher_type: FisherType
    kfac_approx: KfacApprox
    mc_samples: int
    max_columns: int

    @property
    def know_positions(self) -> bool:
        """Say whether δ and a of single positions make ``h^diag`` of Theory 5.3.

        The true targets' gradients are not of the Gauss-Newton matrix, and under "reduce" the
        factors themselves hold what the positions of a sample do together.
        """
        return self.fisher_type != "empirical" and self.kfac_approx == "expand"

    def check(self) -> None:
        """Raise `InputError` for an unknown option."""
        if self.fisher_type not in get_args(FisherType):
            raise InputError(
                f"fisher_type: {self.fisher_type!r} is unknown; choose 'ggn', 'fisher-mc' or "
                "'empirical'."
            )
        if self.kfac_approx not in get_args(KfacApprox):
            raise InputError(
                f"kfac_approx: {self.kfac_approx!r} is unknown; choose 'expand' or 'reduce'."
            )
        if not isinstance(self.mc_samples, int) or self.mc_samples < 2 or self.mc_samples % 2:
            raise InputError(
                f"mc_samples: {self.mc_samples!r} is no even number of 2 or more; two halves "
                "of the draws give the standard error."
            )
        if not isinstance(self.max_columns, int) or self.max_columns < 0:
            raise InputError(f"max_columns: {self.max_columns!r} is not a number of columns.")


def check_factor_size(layer: LayerInfo) -> None:
    """Raise `LayerError` if a factor of the layer would be too large."""
    m, n = layer.shape
    if max(m, n) > MAX_SIDE:
        size = max(m, n) ** 2 * 8 / 2**30
        raise LayerError(
            layer.name, f"it is {m}×{n}, and a factor of {size:.0f} GiB is too large; leave it out."
        )


def factor_notes(
    options: FactorOptions, exact: bool, complete: bool, even: bool
) -> tuple[str, ...]:
    """Return the notes that a reader of a layer's factors needs.

    Parameters
    ----------
    options : FactorOptions
        The options that were requested.
    exact : bool
        Whether ``C_δ`` is exact rather than an estimate.
    complete : bool
        Whether all uses of the matrix are in the factors.
    even : bool
        Whether ``C_A`` weighs positions by the terms of their sample.
    """
    notes = []
    if not exact:
        notes.append(f"C_δ is a Monte-Carlo estimate of {options.mc_samples} draws per batch")
    if not complete:
        notes.append(
            "this matrix is also used in ways that its factors leave out (the other way around, as "
            "in a tied embedding, or in no product); κ holds their part"
        )
    if not even:
        notes.append("C_A weighs all positions alike, not by the terms of their sample")
    return tuple(notes)
