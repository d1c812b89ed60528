"""Requests to a method: a function, the matrices, and the error that it may bring."""

from dataclasses import dataclass

from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import smallest_shift
from spectral_core.preconditioning.spectral_function import SpectralFunction

__all__ = ["PRECISIONS", "Request"]

PRECISIONS = ("working", "bfloat16", "float16", "auto")
TOLERANCE = 1e-2
LOW_TOLERANCE = 5e-2  # about the error that rounding to half precision adds


@dataclass(frozen=True)
class Request:
    """A request to `precondition`, for one matrix of a batch.

    Parameters
    ----------
    function : SpectralFunction
        The function T, with its parameters.
    method : str
        The name of a method, or "auto".
    tolerance : float or None
        The tolerance that was given, if any.
    rows, columns : int
        The lengths of the wide matrix.
    epsilon : float
        The machine precision of the dtype in which the method computes.
    on_cpu : bool
        Whether eigendecompositions are cheap.
    precision : str
        The precision of products, one of `PRECISIONS`.
    """

    function: SpectralFunction
    method: str
    tolerance: float | None
    rows: int
    columns: int
    epsilon: float
    on_cpu: bool = True
    precision: str = "working"

    @property
    def low(self) -> bool:
        """Whether products are in half precision."""
        return self.precision != "working"

    @property
    def damped_power(self) -> DampedPower:
        """The function, for methods that serve a `DampedPower` alone."""
        assert isinstance(self.function, DampedPower)
        return self.function

    @property
    def target(self) -> float:
        """The tolerance, or its default."""
        if self.tolerance is not None:
            return self.tolerance
        return LOW_TOLERANCE if self.low else TOLERANCE

    @property
    def shift(self) -> float:
        """The smallest shift that the rounding of the Gram matrix leaves visible."""
        return smallest_shift(self.rows, self.epsilon)

    @property
    def predictable(self) -> bool:
        """Whether an error can be told without the matrix."""
        return self.function.known and self.function.scale_free

    def rounding(self) -> float:
        """Return the error that squaring brings; 0 if it is not known."""
        return self.function.rounding(self.shift) if self.predictable else 0.0
