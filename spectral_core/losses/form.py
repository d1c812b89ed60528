"""Which form a loss has as a function of the network's outputs, by what its Hessian does.

Not by its name: a softmax cross-entropy of any make (classes, probabilities, ignored targets, label
smoothing, class weights), losses of single elements (logistic, squared error), and any convex loss
of few outputs (Theory 4.4).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from spectral_core.errors import InputError

if TYPE_CHECKING:
    from spectral_core.losses.recognition import Fit

__all__ = ["OutputForm", "find_form"]

TOLERANCE = 1e-8
"""Relative error below which a form fits in double precision; in single precision 100 eps."""


@dataclass(frozen=True)
class OutputForm:
    """What a loss is as a function of the outputs z.

    Parameters
    ----------
    kind : {"softmax", "logistic", "elementwise", "dense", "gradient"}
        ``"dense"`` is any convex loss of few outputs; ``"gradient"`` has no root vectors, only the
        gradients of terms.
    axis : int
        Of the classes.
    """

    kind: Literal["softmax", "logistic", "elementwise", "dense", "gradient"]
    axis: int = -1

    def n_columns(self, shape: Sequence[int]) -> int:
        """Return the number of root vectors of a sample for outputs of a shape."""
        if self.kind == "softmax":
            classes = shape[self.axis]
            return prod(shape[1:]) // classes * (classes - 1)
        return 0 if self.kind == "gradient" else prod(shape[1:])

    def n_terms(self, shape: Sequence[int]) -> int:
        """Return the number of terms of a sample, each of which has a gradient of its own."""
        if self.kind == "softmax":
            return prod(shape[1:]) // shape[self.axis]
        return 1 if self.kind in ("dense", "gradient") else prod(shape[1:-1])

    def fits(self, misfit: float, eps: float) -> bool:
        """Return whether an error is rounding; eps is that of the dtype of the outputs."""
        return misfit <= (eps**0.5 if self.kind == "dense" else max(100 * eps, TOLERANCE))


def find_form(
    shape: Sequence[int],
    eps: float,
    fits: Callable[[Sequence[OutputForm]], Iterable["Fit"]],
    most: int,
    *,
    convex: bool = True,
) -> OutputForm:
    """Find the form of the Hessian of a loss at the outputs of one batch.

    Parameters
    ----------
    shape : sequence of int
        Of the outputs.
    eps : float
        Of their dtype.
    fits : callable
        Returns `OutputCurvature.fit` for each of several forms, or yields them: the first that fits
        is taken.
    most : int
        Largest number of outputs of a sample for which a dense block is made.
    convex : bool
        Whether the root vectors will be used, and not only the gradients of terms.

    Raises
    ------
    InputError
        If the loss is linear in z, is not convex in z, compares samples, or has no form known.
    """
    axes = [a for a in dict.fromkeys((len(shape) - 1, 1)) if 0 < a < len(shape) and shape[a] > 1]
    forms = [OutputForm("softmax", axis) for axis in axes]
    forms += [OutputForm("logistic"), OutputForm("elementwise")]
    for form, fit in zip(forms, fits(forms), strict=False):
        if form.fits(float(fit.misfit), eps):
            if convex:
                _check_not_linear(fit)
                _check_convex(fit, eps)
            return form
    if not convex:
        return OutputForm("gradient")
    return _dense_form(shape, eps, fits, most)


def _dense_form(
    shape: Sequence[int],
    eps: float,
    fits: Callable[[Sequence[OutputForm]], Iterable["Fit"]],
    most: int,
) -> OutputForm:
    size, form = prod(shape[1:]), OutputForm("dense")
    if size > most:
        raise InputError(
            f"loss_fn: its Hessian in the {size} outputs of a sample has no form that is known and "
            f"more than {most} are too many to make it dense; raise max_columns, or use a "
            "cross-entropy or a loss of single elements."
        )
    (fit,) = fits([form])
    if not form.fits(float(fit.misfit), eps):
        raise InputError(
            "loss_fn: it compares the samples of a batch with each other, so it is no mean over "
            "independent terms and has no Kronecker factors; or the outputs have no axis of "
            "samples in front."
        )
    _check_convex(fit, eps)
    return form


def _check_not_linear(fit: "Fit") -> None:
    if float(fit.largest) == 0 and float(fit.slope) > 0:
        raise InputError(
            "loss_fn: it is linear in the outputs, as a negative log-likelihood of "
            "log-probabilities is, so its Gauss-Newton curvature there is zero; return logits and "
            "use a loss of logits, such as a softmax cross-entropy."
        )


def _check_convex(fit: "Fit", eps: float) -> None:
    smallest = float(fit.least)
    if smallest < -(eps**0.5) * float(fit.largest):
        raise InputError(
            f"loss_fn: it is not convex in the outputs (curvature {smallest:.3g}), so its "
            "Gauss-Newton part is no sum of outer products; choose delta='empirical'."
        )
