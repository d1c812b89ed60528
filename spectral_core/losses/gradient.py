"""A loss of which only the gradients of terms are wanted, for the empirical Fisher."""

from collections.abc import Sequence
from typing import Any, NoReturn

from spectral_core.errors import InputError
from spectral_core.losses.base import OutputCurvature
from spectral_core.losses.protocols import Draws, Fit

__all__ = ["Gradient"]


class Gradient(OutputCurvature):
    """No root vectors, and each sample is one term."""

    @staticmethod
    def axes(shape: Sequence[int]) -> Sequence[int]:
        """Return no axes: this form is taken if no other fits and no root vector is wanted."""
        return ()

    @staticmethod
    def columns_in(shape: Sequence[int], axis: int) -> int:
        """Return 0: there are no root vectors."""
        return 0

    @staticmethod
    def terms_in(shape: Sequence[int], axis: int) -> int:
        """Return one: a sample is a term."""
        return 1

    def column(self, index: Any) -> NoReturn:
        """Raise `InputError`: there are no root vectors."""
        raise InputError(_NO_ROOTS)

    def mixture(self, draws: Draws) -> NoReturn:
        """Raise `InputError`: there are no root vectors."""
        raise InputError(_NO_ROOTS)

    def sampled(self, draws: Draws) -> NoReturn:
        """Raise `InputError`: the distribution of the targets is not known."""
        raise InputError(_NO_ROOTS)

    def fit(self) -> Fit:
        """Return a perfect fit, whatever the loss."""
        return self._fit(self._xp.zeros_like(self._xp.sum(self.gradient)), self.gradient)


_NO_ROOTS = (
    "loss_fn: its Hessian in the outputs has no form that is known, and so no root vectors; choose "
    "fisher_type='empirical'."
)
