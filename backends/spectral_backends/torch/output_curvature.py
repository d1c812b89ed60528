"""The curvature of a loss in the network's outputs, and vectors whose outer products make it.

The Hessian of ``Σ_i l_i`` in the outputs z falls into one block per sample, and each block into a
sum of outer products of *root vectors*. Sent back through the network they are the output gradients
δ of the Gauss-Newton factor (Theory 4.4). Three forms are recognised by what the Hessian does, not
by the name of the loss: softmax cross-entropy of any make (classes, probabilities, ignored targets,
label smoothing, class weights), losses of single elements (squared error, logistic), and any convex
loss of few outputs.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from spectral_core.errors import InputError

__all__ = ["OutputCurvature", "output_curvature"]

TOLERANCE = 1e-8
"""Relative error below which a form fits in double precision; in single precision 100 eps."""


class OutputCurvature:
    """Root vectors of one batch's loss; each is a tensor like the outputs.

    A column holds one root vector of every sample: samples must not meet in the network.

    Parameters
    ----------
    outputs : Tensor
        z, without a graph, samples along its first axis.
    gradient : Tensor
        ``∂ Σ_i l_i / ∂z``.
    """

    def __init__(self, outputs: Tensor, gradient: Tensor) -> None:
        self.outputs, self.gradient = outputs, gradient

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of root vectors of a sample."""

    @abstractmethod
    def columns(self) -> Iterator[Tensor]:
        """Yield every root vector: over all of them ``Σ r rᵀ`` is the Hessian of each sample."""

    @abstractmethod
    def mixture(self, signs: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of all root vectors of all samples, each with a random sign."""

    @abstractmethod
    def sampled(self, generator: torch.Generator) -> Tensor:
        """Return the gradient of the terms with targets drawn from the model."""

    @property
    def sample_weights(self) -> Tensor:
        """Number of terms of each sample, up to a common factor, shape ``(B,)``."""
        return self.outputs.new_ones(len(self.outputs))

    def terms(self) -> Tensor:
        """Return the gradients of single terms, shape ``(B, terms, outputs of a term)``."""
        width = self.gradient.shape[-1] if self.gradient.ndim > 1 else 1
        return self.gradient.reshape(len(self.gradient), -1, width)

    def term_columns(self) -> Iterator[Tensor]:
        """Yield the gradients of single terms: one of every sample at a time."""
        terms = self.terms()
        for index in range(terms.shape[1]):
            column = torch.zeros_like(terms)
            column[:, index] = terms[:, index]
            yield self._like_outputs(column)

    def term_mixture(self, signs: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of the gradients of all terms, each with a random sign."""
        terms = self.terms()
        return self._like_outputs(terms * signs(terms[..., :1]))

    def _like_outputs(self, terms: Tensor) -> Tensor:
        return terms.reshape(self.outputs.shape)


class _Softmax(OutputCurvature):
    """``ω (diag(p) − p pᵀ)`` for each term (Theory 4.4).

    It has one root vector less than classes: the columns of its Cholesky factor, known in closed
    form (Tanabe and Sagae, J. R. Stat. Soc. B 54, 1992).
    """

    def __init__(self, outputs: Tensor, gradient: Tensor, axis: int, weights: Tensor) -> None:
        super().__init__(outputs, gradient)
        self._axis = axis
        self._logits = outputs.movedim(axis, -1)
        self._p = torch.softmax(self._logits, -1)
        self._weights = weights.movedim(axis, -1)  # ω, one per term

    @property
    def n_columns(self) -> int:
        return prod(self._p.shape[1:-1]) * (self._p.shape[-1] - 1)

    @property
    def sample_weights(self) -> Tensor:
        return self._weights.reshape(len(self._weights), -1).sum(1)

    def columns(self) -> Iterator[Tensor]:
        p = self._p.reshape(len(self._p), -1, self._p.shape[-1])
        weights = self._weights.sqrt().reshape(len(p), -1, 1)
        # What classes c, c + 1, … have together: summed from behind, so that nothing cancels.
        tail = p.flip(-1).cumsum(-1).flip(-1)
        for index in range(p.shape[1]):
            for c in range(p.shape[2] - 1):
                here, behind = tail[:, index, c], tail[:, index, c + 1]
                size = (p[:, index, c] * _ratio(behind, here)).sqrt()
                column = torch.zeros_like(p)
                column[:, index, c] = size
                column[:, index, c + 1 :] = -_ratio(p[:, index, c + 1 :], behind[:, None])
                column[:, index, c + 1 :] *= size[:, None]
                yield self._back((weights * column).reshape(self._p.shape))

    def mixture(self, signs: Callable[[Tensor], Tensor]) -> Tensor:
        return self._root(signs(self._p))

    def sampled(self, generator: torch.Generator) -> Tensor:
        flat = self._p.reshape(-1, self._p.shape[-1])
        drawn = torch.multinomial(flat, 1, generator=generator)
        labels = torch.zeros_like(flat).scatter_(1, drawn, 1).reshape(self._p.shape)
        return self._back(self._weights.sqrt() * (self._p - labels))

    def terms(self) -> Tensor:
        # A term of weight ω enters Σ_i l_i ω times: its outer product ω times, not ω².
        root = torch.where(self._weights > 0, self._weights, 1).rsqrt()
        rows = self.gradient.movedim(self._axis, -1) * root
        return rows.reshape(len(rows), -1, rows.shape[-1])

    def _root(self, coefficients: Tensor) -> Tensor:
        scaled = self._p.sqrt() * coefficients
        rows = scaled - self._p * scaled.sum(-1, keepdim=True)
        return self._back(self._weights.sqrt() * rows)

    def _back(self, rows: Tensor) -> Tensor:
        return rows.movedim(-1, self._axis)

    def _like_outputs(self, terms: Tensor) -> Tensor:
        return self._back(terms.reshape(self._logits.shape))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole of probabilities, and zero of nothing."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


class _Elementwise(OutputCurvature):
    """A diagonal Hessian: one root vector per element."""

    def __init__(
        self, outputs: Tensor, gradient: Tensor, diagonal: Tensor, *, logistic: bool
    ) -> None:
        super().__init__(outputs, gradient)
        self._diagonal, self._logistic = diagonal, logistic

    @property
    def n_columns(self) -> int:
        return prod(self.outputs.shape[1:])

    def columns(self) -> Iterator[Tensor]:
        root = self._diagonal.sqrt().reshape(len(self.outputs), -1)
        for index in range(root.shape[1]):
            column = torch.zeros_like(root)
            column[:, index] = root[:, index]
            yield column.reshape(self.outputs.shape)

    def mixture(self, signs: Callable[[Tensor], Tensor]) -> Tensor:
        return self._diagonal.sqrt() * signs(self._diagonal)

    def sampled(self, generator: torch.Generator) -> Tensor:
        z = self.outputs
        if self._logistic:  # Bernoulli targets: the variance of σ(z) − ỹ is σ(z)(1 − σ(z))
            p = torch.sigmoid(z)
            scale = (self._diagonal / (p * (1 - p)).clamp_min(torch.finfo(z.dtype).tiny)).sqrt()
            return scale * (p - torch.bernoulli(p, generator=generator))
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return self._diagonal.sqrt() * noise


class _General(OutputCurvature):
    """Any convex loss of few outputs: a root of each sample's dense block."""

    def __init__(self, outputs: Tensor, gradient: Tensor, root: Tensor) -> None:
        super().__init__(outputs, gradient)
        self._root = root  # (B, D, columns)

    @property
    def n_columns(self) -> int:
        return self._root.shape[2]

    def columns(self) -> Iterator[Tensor]:
        return (column.reshape(self.outputs.shape) for column in self._root.unbind(2))

    def mixture(self, signs: Callable[[Tensor], Tensor]) -> Tensor:
        rows = self._root @ signs(self._root[:, 0, :, None])
        return rows.reshape(self.outputs.shape)

    def sampled(self, generator: torch.Generator) -> Tensor:
        raise InputError(
            "delta 'fisher-mc' draws targets from the model and needs to know its distribution: a "
            "cross-entropy, a squared error or a logistic loss. Choose 'ggn'."
        )

    def terms(self) -> Tensor:
        return self.gradient.reshape(len(self.gradient), 1, -1)


def output_curvature(
    outputs: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    scale: float,
    max_outputs: int,
    *,
    logistic: bool,
    convex: bool = True,
) -> OutputCurvature:
    """Find the form of the Hessian of ``scale · loss_of(z)`` at the outputs.

    Each form is tried by its action on random vectors, of all samples together, and taken only if
    it gives what autograd gives.

    Parameters
    ----------
    outputs : Tensor
        z without a graph.
    loss_of : callable
        The scalar loss of a tensor like z.
    scale : float
        Makes it the sum over terms.
    max_outputs : int
        Largest number of outputs of a sample for which a dense block is made.
    logistic : bool
        Whether a loss of single elements is the logistic one, which says how to draw its targets.
    convex : bool
        Whether the roots will be used, and not only the gradients of terms.

    Raises
    ------
    InputError
        If the loss is linear in z, is not convex in z, compares samples, or has no form known.
    """
    probe = torch.Generator(outputs.device).manual_seed(0)
    test = torch.randn(outputs.shape, generator=probe, dtype=outputs.dtype, device=outputs.device)
    product = _HessianProduct(outputs, loss_of, scale)
    found, along_ones = product(test), product(torch.ones_like(outputs))
    eps = torch.finfo(outputs.dtype).eps
    tolerance = max(100 * eps, TOLERANCE) * float(found.norm())

    def fits(expected: Tensor, rounding: float = 0.0) -> bool:
        return bool((found - expected).norm() <= tolerance + rounding)

    for axis in dict.fromkeys((outputs.ndim - 1, 1)) if outputs.ndim > 1 else ():
        weights = _softmax_weights(outputs, loss_of, scale, axis, test)
        if weights is None or not bool(weights.any()):
            continue
        # Where every probability is saturated the Hessian is a difference of nearly equal numbers.
        rounding = 16 * eps * float((weights * test).norm())
        # What a small regulariser adds shows best where a cross-entropy has no curvature.
        flat = along_ones.norm() <= 16 * eps * weights.expand_as(test).norm()
        if flat and fits(weights * _softmax_product(outputs, test, axis), rounding):
            return _Softmax(outputs, product.gradient, axis, weights)
    diagonal = along_ones
    if fits(diagonal * test):
        if convex:
            _check_not_linear(diagonal, product.gradient)
            _check_convex(float(diagonal.min()), float(diagonal.abs().max()), outputs.dtype)
        return _Elementwise(outputs, product.gradient, diagonal.clamp_min(0), logistic=logistic)
    if not convex:
        return _General(outputs, product.gradient, test.new_zeros(len(test), 1, 0))
    return _General(outputs, product.gradient, _dense_root(product, test, found, max_outputs))


class _HessianProduct:
    """``w ↦ H w`` with H the Hessian of the loss in the outputs; keeps the gradient."""

    def __init__(self, outputs: Tensor, loss_of: Callable[[Tensor], Tensor], scale: float) -> None:
        self._z = outputs.detach().requires_grad_()
        loss = scale * loss_of(self._z)
        (self._gradient,) = torch.autograd.grad(
            loss, self._z, create_graph=True, materialize_grads=True
        )
        self.gradient = self._gradient.detach()

    def __call__(self, vector: Tensor) -> Tensor:
        if not self._gradient.requires_grad:
            return torch.zeros_like(vector)
        try:
            (product,) = torch.autograd.grad(
                self._gradient, self._z, vector, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise InputError(
                f"loss_fn: autograd cannot differentiate it twice in the outputs ({error}), so it "
                "has no Gauss-Newton curvature; replace the operation by one that has."
            ) from error
        return product


def _softmax_weights(
    outputs: Tensor, loss_of: Callable[[Tensor], Tensor], scale: float, axis: int, test: Tensor
) -> Tensor | None:
    """Return the weight ω of each term, were this a cross-entropy; None if it cannot be one.

    It is read off at logits of zero, where no probability is saturated.
    """
    if outputs.shape[axis] < 2:
        return None
    zero = torch.zeros_like(outputs)
    found = _HessianProduct(zero, loss_of, scale)(test)
    expected = _softmax_product(zero, test, axis)
    squares = (expected * expected).sum(axis, keepdim=True)
    weights = (found * expected).sum(axis, keepdim=True) / squares
    if not torch.isfinite(weights).all():
        return None
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * found.norm()
    fits = (found - weights * expected).norm() <= tolerance
    return weights.clamp_min(0) if fits else None


def _softmax_product(logits: Tensor, vector: Tensor, axis: int) -> Tensor:
    p = torch.softmax(logits, axis)
    return p * (vector - (p * vector).sum(axis, keepdim=True))


def _dense_root(product: _HessianProduct, test: Tensor, found: Tensor, most: int) -> Tensor:
    """Return R with ``R Rᵀ`` each sample's block, shape ``(B, D, D)``."""
    count, size = len(test), prod(test.shape[1:])
    if size > most:
        raise InputError(
            f"loss_fn: its Hessian in the {size} outputs of a sample has no form that is known and "
            f"more than {most} are too many to make it dense; raise max_columns, or use a "
            "cross-entropy or a loss of single elements."
        )
    columns = []
    for index in range(size):
        unit = torch.zeros_like(test).reshape(count, size)
        unit[:, index] = 1
        columns.append(product(unit.reshape(test.shape)).reshape(count, size))
    blocks = torch.stack(columns, 2)
    blocks = (blocks + blocks.mT) / 2
    expected = (blocks @ test.reshape(count, size, 1)).reshape(test.shape)
    if (found - expected).norm() > torch.finfo(test.dtype).eps ** 0.5 * found.norm():
        raise InputError(
            "loss_fn: it compares the samples of a batch with each other, so it is no mean over "
            "independent terms and has no Kronecker factors; or the outputs have no axis of "
            "samples in front."
        )
    values, vectors = torch.linalg.eigh(blocks)
    _check_convex(float(values.min()), float(values.abs().max()), test.dtype)
    root: Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return root


def _check_not_linear(diagonal: Tensor, gradient: Tensor) -> None:
    if not bool(diagonal.any()) and bool(gradient.any()):
        raise InputError(
            "loss_fn: it is linear in the outputs, as a negative log-likelihood of "
            "log-probabilities is, so its Gauss-Newton curvature there is zero; return logits and "
            "use a loss of logits, such as cross_entropy."
        )


def _check_convex(smallest: float, largest: float, dtype: torch.dtype) -> None:
    if smallest < -(torch.finfo(dtype).eps ** 0.5) * largest:
        raise InputError(
            f"loss_fn: it is not convex in the outputs (curvature {smallest:.3g}), so its "
            "Gauss-Newton part is no sum of outer products; choose delta='empirical'."
        )
