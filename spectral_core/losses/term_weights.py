"""The number of terms of each sample of a batch, read off the loss's curvature in the outputs.

A loss may weigh its samples, leave elements out, or divide by a number of its own. At outputs that
all samples share, the curvature of one that counts ω times is ω times that of one that counts once,
as long as the curvature depends on no target.
"""

from math import prod
from typing import Any, NamedTuple

from spectral_core.arrays.namespace import Array, at_least
from spectral_core.losses.protocols import OutputLoss

__all__ = ["TermWeights", "counted_weights", "term_weights"]


class TermWeights(NamedTuple):
    """The weight of each sample."""

    samples: Array
    """Number of terms of each sample, up to a common factor, shape ``(B,)``."""
    elements: Array
    """ω, how often the term that an output belongs to enters ``Σ_i l_i``; shaped like z."""


def term_weights(
    xp: Any, loss: OutputLoss, n_terms: int, count: Any, *, elementwise: bool
) -> TermWeights:
    """Return the weights of samples, or of single outputs where a loss of elements has these.

    Samples are alike where the curvature does not tell, as that of a Huber loss does not. A number
    of terms that is the number of samples, positions or elements makes each one term, which needs
    no weight; any other is shared out. So samples that all have as many terms as there are outputs
    pass for a mean over elements: the two are one function. The call may be traced.

    Parameters
    ----------
    loss : OutputLoss
        The loss at the outputs of a batch.
    n_terms : int
        The number of terms of a sample, each of which has a gradient of its own.
    count : float or array
        The number of terms of the batch.
    elementwise : bool
        Whether the Hessian is diagonal.
    """
    z, probe = loss.outputs, loss.probe
    n_samples, tolerance = z.shape[0], float(xp.finfo(z.dtype).eps) ** 0.5
    shared = xp.broadcast_to(probe[:1, ...], z.shape)
    vector = xp.ones_like(z) if elementwise else shared
    products = [
        xp.reshape(loss.at(point).products(vector[None, ...])[0, ...], (n_samples, -1))
        for point in (xp.zeros_like(z), shared)
    ]
    per_sample, is_per_sample = _per_sample(xp, products, tolerance)
    per_element, is_per_element = _per_element(xp, products, tolerance)
    is_per_element = is_per_element & ~is_per_sample & elementwise
    weights = xp.where(is_per_sample, per_sample, xp.ones_like(per_sample))
    weights = xp.where(is_per_element, per_element, weights)
    weights = at_least(xp, weights / xp.max(weights), 0.0)  # negative by rounding at most
    size = _size(xp, weights, is_per_element, n_terms, count)
    return TermWeights(xp.sum(weights, axis=1), xp.reshape(size * weights, z.shape))


def counted_weights(xp: Any, weights: Array, n_terms: int, count: Any) -> TermWeights:
    """Return the known weights if their sum is the number of terms, and none otherwise.

    The sum is another one if a loss weights classes without dividing by the sum of weights.

    Parameters
    ----------
    weights : array, shaped like z
        The weight ω of each output.
    n_terms, count
        The numbers of terms of a sample and of the batch, see `term_weights`.
    """
    tolerance = float(xp.finfo(weights.dtype).eps) ** 0.5
    total = xp.sum(weights)
    width = prod(weights.shape[1:]) // n_terms
    found = [xp.abs(each - count) <= tolerance * total for each in (total, total / width)]
    weights = xp.where(found[0] | found[1], weights, xp.ones_like(weights))
    return TermWeights(xp.sum(xp.reshape(weights, (weights.shape[0], -1)), axis=1), weights)


def _size(xp: Any, weights: Array, is_per_element: Array, n_terms: int, count: Any) -> Array:
    """Return the factor from weights (B, outputs), the largest of them 1, to numbers of terms."""
    tolerance = float(xp.finfo(weights.dtype).eps) ** 0.5
    counts = weights > tolerance
    even = xp.all(~counts | (weights > 1 - tolerance))
    rows = xp.reshape(counts, (weights.shape[0], n_terms, -1))
    is_one = xp.zeros_like(even)
    for units in (counts, xp.any(rows, axis=2), xp.any(counts, axis=1)):
        number = xp.sum(xp.astype(units, weights.dtype))
        is_one = is_one | (even & (xp.abs(count - number) <= tolerance * number))
    whole = xp.sum(weights)
    shares = xp.where(is_per_element, whole, whole / rows.shape[2])
    return xp.where(is_one, xp.ones_like(shares), count / shares)


def _per_sample(xp: Any, products: list[Array], tolerance: float) -> tuple[Array, Array]:
    """Return one weight for all outputs of a sample, and whether the products are in proportion."""
    found, good = [], []
    for product in products:
        whole = xp.sum(product, axis=0)
        square = xp.sum(whole * whole)
        ratio = xp.sum(product * whole, axis=1, keepdims=True)
        ratio = ratio / xp.where(square > 0, square, xp.ones_like(square))
        off = product - ratio * whole
        good.append(xp.sum(off * off) <= tolerance**2 * square)
        found.append(xp.broadcast_to(ratio, product.shape))
    return found[0], good[0] & good[1] & _agree(xp, found, tolerance)


def _per_element(xp: Any, products: list[Array], tolerance: float) -> tuple[Array, Array]:
    """Return a weight for each output, and whether it is the same at both points."""
    totals = [xp.sum(product) for product in products]
    found = [
        product / xp.where(total > 0, total, xp.ones_like(total))
        for product, total in zip(products, totals, strict=True)
    ]
    return found[0], _agree(xp, found, tolerance)


def _agree(xp: Any, pair: list[Array], tolerance: float) -> Array:
    one, other = pair
    largest = xp.max(xp.abs(one))
    return (
        (largest > 0)
        & (xp.min(one) >= -tolerance * largest)
        & (xp.max(xp.abs(one - other)) <= tolerance * largest)
    )
