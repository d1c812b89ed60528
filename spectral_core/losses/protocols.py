"""The protocols of a backend's loss: its derivatives in the outputs, and random numbers."""

from typing import NamedTuple, Protocol

from spectral_core.arrays.namespace import Array

__all__ = ["Draws", "Fit", "OutputLoss"]


class OutputLoss(Protocol):
    """``Σ_i l_i`` of one batch as a function of the outputs, with its derivatives at one point."""

    @property
    def outputs(self) -> Array:
        """The point z, samples along its first axis."""

    @property
    def gradient(self) -> Array:
        """``∂ Σ_i l_i / ∂z``, shaped like z."""

    def products(self, vectors: Array) -> Array:
        """Return the Hessian at z times each of ``(n, *z.shape)``."""

    def at(self, outputs: Array) -> "OutputLoss":
        """Return the same loss at another point."""

    @property
    def probe(self) -> Array:
        """An array like z whose entries have no structure, always the same."""


class Draws(Protocol):
    """Random numbers of a backend."""

    def signs(self, like: Array) -> Array:
        """Return −1 and 1 with equal chances."""

    def normal(self, like: Array) -> Array:
        """Return standard normal numbers."""

    def bernoulli(self, p: Array) -> Array:
        """Return 1 with probability p, else 0, in the dtype of p."""

    def one_hot(self, p: Array) -> Array:
        """Return, along the last axis, 1 for a class drawn with probabilities p and 0 else."""


class Fit(NamedTuple):
    """The misfit of a form to a loss, in numbers that may be traced."""

    misfit: Array
    """Relative error of ``Σ r rᵀ`` against the Hessian, on the probe."""
    least: Array
    """Smallest curvature."""
    largest: Array
    """Largest absolute curvature."""
    slope: Array
    """Largest absolute gradient."""
