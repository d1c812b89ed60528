"""Any convex loss of few outputs, by the dense Hessian of each sample."""

from collections.abc import Sequence
from typing import Any

from spectral_core.arrays.eigen import eigh
from spectral_core.arrays.namespace import Array, at_least, device_of
from spectral_core.errors import InputError
from spectral_core.losses.base import OutputCurvature, take_one
from spectral_core.losses.protocols import Draws, Fit, OutputLoss

__all__ = ["Dense"]


class Dense(OutputCurvature):
    """Any convex loss of few outputs: a root of each sample's dense block."""

    def __init__(self, loss: OutputLoss, count: Any, axis: int = -1) -> None:
        super().__init__(loss, count, axis)
        xp, z = self._xp, self.outputs
        size = self.n_columns
        units = xp.eye(size, dtype=z.dtype, device=device_of(z))
        wide = xp.broadcast_to(units[:, None, :], (size, z.shape[0], size))
        found = loss.products(xp.reshape(wide, (size, *z.shape)))
        blocks = xp.permute_dims(xp.reshape(found, wide.shape), (1, 2, 0))
        self._blocks = (blocks + xp.matrix_transpose(blocks)) / 2
        self._values, vectors = eigh(xp, self._blocks)
        self._roots = vectors * xp.sqrt(at_least(xp, self._values, 0.0))[:, None, :]

    @staticmethod
    def axes(shape: Sequence[int]) -> Sequence[int]:
        """Return no axes: this form is taken if no other form fits."""
        return ()

    @staticmethod
    def terms_in(shape: Sequence[int], axis: int) -> int:
        """Return one: a sample is a term."""
        return 1

    @staticmethod
    def tolerance(eps: float) -> float:
        """Return half of the digits: a loss that compares samples is off by far more."""
        return float(eps**0.5)

    def column(self, index: Any) -> Array:
        """Return one eigenvector of each sample's block times the root of its eigenvalue."""
        return self._like_outputs(take_one(self._xp, self._roots, index, 2))

    def mixture(self, draws: Draws) -> Array:
        """Return the sum of the root vectors of each sample with random signs."""
        return self._like_outputs(self._roots @ draws.signs(self._roots[:, 0, :, None]))

    def sampled(self, draws: Draws) -> Array:
        """Raise `InputError`: the distribution of the targets is not known."""
        raise InputError(
            "fisher_type 'fisher-mc' draws targets from the model and needs to know its "
            "distribution: a cross-entropy, a squared error or a logistic loss. Choose 'ggn'."
        )

    def fit(self) -> Fit:
        """Return how well the blocks, which keep samples apart, make the Hessian."""
        probe = self._loss.probe
        flat = self._xp.reshape(probe, (*self._blocks.shape[:2], 1))
        off = self._relative(self._product(probe), self._like_outputs(self._blocks @ flat))
        return self._fit(off, self._values)
