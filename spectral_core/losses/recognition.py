"""The form of a loss as a function of the network's outputs, recognised by its Hessian.

The name of the loss does not matter. Recognised are a softmax cross-entropy of any make (classes,
probabilities, ignored targets, label smoothing, class weights), losses of single elements
(logistic, squared error), and any convex loss of few outputs (Theory 4.4).
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod

from spectral_core.errors import InputError
from spectral_core.losses.form import FORMS, OutputForm
from spectral_core.losses.protocols import Fit

__all__ = ["find_form"]


def find_form(
    shape: Sequence[int],
    eps: float,
    fits: Callable[[Sequence[OutputForm]], Iterable[Fit]],
    most: int,
    *,
    convex: bool = True,
) -> OutputForm:
    """Find the form of the Hessian of a loss at the outputs of one batch.

    Parameters
    ----------
    shape : sequence of int
        The shape of the outputs.
    eps : float
        The machine precision of their dtype.
    fits : callable
        A function that returns or yields `OutputCurvature.fit` for each of several forms. The first
        that fits is taken.
    most : int
        The largest number of outputs of a sample for which a dense block is made.
    convex : bool
        Whether the root vectors will be used, and not only the gradients of terms.

    Raises
    ------
    InputError
        If the loss is linear in z, is not convex in z, compares samples, or has no known form.
    """
    forms = [OutputForm(kind, axis) for kind, form in FORMS.items() for axis in form.axes(shape)]
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
    fits: Callable[[Sequence[OutputForm]], Iterable[Fit]],
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


def _check_not_linear(fit: Fit) -> None:
    if float(fit.largest) == 0 and float(fit.slope) > 0:
        raise InputError(
            "loss_fn: it is linear in the outputs, as a negative log-likelihood of "
            "log-probabilities is, so its Gauss-Newton curvature there is zero; return logits and "
            "use a loss of logits, such as a softmax cross-entropy."
        )


def _check_convex(fit: Fit, eps: float) -> None:
    smallest = float(fit.least)
    if smallest < -(eps**0.5) * float(fit.largest):
        raise InputError(
            f"loss_fn: it is not convex in the outputs (curvature {smallest:.3g}), so its "
            "Gauss-Newton part is no sum of outer products; choose fisher_type='empirical'."
        )
