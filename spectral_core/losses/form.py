"""The forms that a loss may have as a function of the network's outputs, listed and by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spectral_core.losses.base import OutputCurvature
from spectral_core.losses.dense import Dense
from spectral_core.losses.elementwise import Elementwise
from spectral_core.losses.gradient import Gradient
from spectral_core.losses.logistic import Logistic
from spectral_core.losses.protocols import OutputLoss
from spectral_core.losses.softmax import Softmax

__all__ = ["FORMS", "OutputForm", "output_curvature"]

FORMS: dict[str, type[OutputCurvature]] = {
    "softmax": Softmax,
    "logistic": Logistic,
    "elementwise": Elementwise,
    "dense": Dense,
    "gradient": Gradient,
}
"""Every form by its name, in the order in which they are looked for: special ones come first."""


@dataclass(frozen=True)
class OutputForm:
    """The form of a loss as a function of the outputs z.

    Parameters
    ----------
    kind : str
        One of the names in `FORMS`. ``"dense"`` is any convex loss of few outputs; ``"gradient"``
        has no root vectors, only the gradients of terms.
    axis : int
        The axis of the classes.
    """

    kind: str
    axis: int = -1

    def n_columns(self, shape: Sequence[int]) -> int:
        """Return the number of root vectors of a sample for outputs of a shape."""
        return FORMS[self.kind].columns_in(shape, self.axis)

    def n_terms(self, shape: Sequence[int]) -> int:
        """Return the number of terms of a sample, each of which has a gradient of its own."""
        return FORMS[self.kind].terms_in(shape, self.axis)

    def fits(self, misfit: float, eps: float) -> bool:
        """Return whether an error is rounding; eps is that of the dtype of the outputs."""
        return misfit <= FORMS[self.kind].tolerance(eps)


def output_curvature(form: OutputForm, loss: OutputLoss, count: Any = 1.0) -> OutputCurvature:
    """Return the root vectors of a batch's loss, presuming its form; the call may be traced.

    Parameters
    ----------
    form : OutputForm
        The presumed form of the loss. `OutputCurvature.fit` tells whether the loss has it.
    loss : OutputLoss
        The loss at the outputs of the network.
    count : float or array
        The number of terms of the batch, for the gradients of single ones.
    """
    return FORMS[form.kind](loss, count, form.axis)
