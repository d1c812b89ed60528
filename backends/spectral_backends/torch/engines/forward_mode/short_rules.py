"""Shorter rules for a few frequent operations, with the same values as the general one."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_backends.torch.capture.tape import Segment
from spectral_backends.torch.engines.forward_mode.general_rule import PullBack, Tangents
from spectral_backends.torch.instruments.linearity import is_alias

__all__ = ["TangentRule", "short_rule"]


class TangentRule(Protocol):
    """Sends P tangents through a piece."""

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        """Return the outputs' tangents, and ``<λ, D²φ[ẋ, ẋ]>`` of shape ``(P,)`` or None for 0."""
        ...


class _Elementwise:
    """Sends tangents through ``y = φ(x)`` by the derivatives of φ, which are computed once."""

    def __init__(self, rule: PullBack) -> None:
        (leaf,), (pulled,) = rule.inputs, rule.pulled
        assert pulled is not None
        ones = [torch.ones_like(rule.outputs[0])]
        (self._slope,) = torch.autograd.grad(rule.outputs, leaf, ones, retain_graph=True)
        (self._second_derivative,) = torch.autograd.grad(
            pulled, leaf, torch.ones_like(pulled), retain_graph=True, materialize_grads=True
        )
        self._second_derivative = self._second_derivative.flatten()

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        (x,) = tangents
        assert x is not None
        y, second = torch.empty_like(x), x.new_empty(len(x))
        for index, tangent in enumerate(x):  # one at a time, as all together leave the cache
            torch.mul(tangent, self._slope, out=y[index])
            second[index] = torch.dot((tangent * tangent).flatten(), self._second_derivative)
        return [y], second


class _Softmax:
    """Sends tangents through ``y = softmax(x)`` or its logarithm, along one axis.

    The second derivative ÿ is made of ``(ẋ − <p, ẋ>)²``.
    """

    def __init__(self, rule: PullBack, node: Any, *, logarithm: bool) -> None:
        saved = node._saved_result.detach()
        axis = node._saved_dim
        self._axis = (axis if axis < saved.ndim else axis - 2**64) % saved.ndim - saved.ndim
        self._p = saved.exp() if logarithm else saved
        (self._adjoint,) = (adjoint.detach() for adjoint in rule.adjoints)
        if logarithm:
            self._weights = -self._p * self._adjoint.sum(self._axis, keepdim=True)
        else:
            centred = self._adjoint - (self._p * self._adjoint).sum(self._axis, keepdim=True)
            self._weights = self._p * centred
        self._logarithm = logarithm

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        (x,) = tangents
        assert x is not None
        centred = x - (self._p * x).sum(self._axis, keepdim=True)
        second = _weighted_squares(centred, self._weights)
        return [centred if self._logarithm else centred * self._p], second


class _LayerNorm:
    """Sends tangents through a layer norm over the last axis.

    It is ``y = γ (x − mean x) r + β`` with ``r = (var x + ε)^(−1/2)``.

    With ``c = ẋ − mean ẋ``, ``x̂ = (x − mean x) r``, ``m₁ = mean(x̂ c)`` and ``m₂ = mean(c²)``:
    ``ẏ = γ r (c − x̂ m₁)`` and ``ÿ = γ r² (x̂ (3 m₁² − m₂) − 2 m₁ c)``.
    """

    def __init__(self, rule: PullBack, node: Any) -> None:
        x, self._r = node._saved_input.detach(), node._saved_result2
        self._normal = (x - node._saved_result1) * self._r
        gamma = node._saved_weight
        self._scale = self._r if gamma is None else self._r * gamma.detach()
        adjoint = rule.adjoints[0].detach()
        self._adjoint = adjoint * self._scale * self._r  # λ γ r²
        self._along = (self._adjoint * self._normal).sum(-1, keepdim=True)

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        (x,) = tangents
        assert x is not None
        c = x - x.mean(-1, keepdim=True)
        m1 = (c * self._normal).mean(-1, keepdim=True)
        m2 = torch.linalg.vector_norm(c, dim=-1, keepdim=True).square() / c.shape[-1]
        across = (c * self._adjoint).sum(-1, keepdim=True)
        second = self._along * (3 * m1 * m1 - m2) - 2 * m1 * across
        return [torch.addcmul(c, self._normal, m1, value=-1) * self._scale], second.flatten(1).sum(
            1
        )


Factors = tuple[Tensor, Tensor]
Order = tuple[int, int]
"""The indices of the rule's inputs that are the first and the second factor."""


class _Multiplication:
    """Sends tangents through an elementwise product: ``ẏ = ȧ b + a ḃ`` and ``ÿ = 2 ȧ ḃ``."""

    def __init__(self, rule: PullBack, factors: Factors, order: Order) -> None:
        self._order = order
        self._a, self._b = (factor.detach() for factor in factors)
        self._adjoint = 2 * rule.adjoints[0].detach().flatten()
        self._ndim = rule.outputs[0].ndim

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        a, b = (tangents[i] for i in self._order)
        a, b = (None if t is None else self._aligned(t) for t in (a, b))
        if a is None or b is None:
            return [a * self._b if a is not None else self._a * b], None  # type: ignore[operator]
        second = (a * b).reshape(len(a), -1) @ self._adjoint
        return [torch.addcmul(a * self._b, self._a, b)], second

    def _aligned(self, tangent: Tensor) -> Tensor:
        """Insert axes of length one where the factor is broadcast, behind the axis of tangents."""
        missing = self._ndim + 1 - tangent.ndim
        return tangent[(slice(None), *[None] * missing)]


class _MatrixProduct:
    """Sends tangents through matrix products, one at a time, so that no factor is copied."""

    def __init__(self, rule: PullBack, factors: Factors, order: Order) -> None:
        self._order = order
        adjoint = rule.adjoints[0]
        self._shape = adjoint.shape
        self._a, self._b, self._adjoint = (_stacked(t.detach()) for t in (*factors, adjoint))

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        a, b = (tangents[i] for i in self._order)
        count = max(len(t) for t in tangents if t is not None)
        y = self._adjoint.new_empty(count, *self._adjoint.shape)
        second = None if a is None or b is None else y.new_empty(count)
        for index in range(count):
            moving_a, moving_b = (None if t is None else _stacked(t[index]) for t in (a, b))
            if moving_a is not None:
                torch.bmm(moving_a, self._b, out=y[index])
            elif moving_b is not None:
                torch.bmm(self._a, moving_b, out=y[index])
            if second is not None and moving_a is not None and moving_b is not None:
                y[index].baddbmm_(self._a, moving_b)
                second[index] = 2 * self._mixed_term(moving_a, moving_b)
        return [y.view(count, *self._shape)], second

    def _mixed_term(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``<λ, ȧ ḃ>``, by the product of fewer elements."""
        if a.shape[1] > b.shape[2]:
            return torch.dot((a.mT @ self._adjoint).flatten(), b.flatten())
        return torch.dot((self._adjoint @ b.mT).flatten(), a.flatten())


def _stacked(matrices: Tensor) -> Tensor:
    return matrices.reshape(-1, *matrices.shape[-2:])


_ELEMENTWISE = {
    f"{name}Backward0"
    for name in (
        "Celu", "Cos", "Elu", "Erf", "Exp", "Expm1", "Gelu", "Hardswish", "Log", "Log1P",
        "LogSigmoid", "Mish", "Pow", "Reciprocal", "Rsqrt", "Sigmoid", "Silu", "Sin", "Softplus",
        "Sqrt", "Tanh",
    )
}  # fmt: skip


def short_rule(segment: Segment, rule: PullBack) -> TangentRule | None:
    """Return a shorter rule if the piece is one operation on its inputs that has one."""
    if len(segment.outputs) != 1 or any(pulled is None for pulled in rule.pulled):
        return None
    output = segment.outputs[0]
    if any(t.is_complex() for t in (output, *rule.inputs)):
        return None
    node: Any = output.grad_fn
    if len(rule.inputs) == 2:
        return _rule_of_two(segment, rule, node)
    behind = [following for following, _ in node.next_functions if following is not None]
    if len(behind) != 1 or not _is_alias_of(behind[0], rule.inputs[0]):
        return None
    name = node.name()
    if name in _ELEMENTWISE and output.shape == rule.inputs[0].shape:
        return _Elementwise(rule)
    if name == "SoftmaxBackward0" or name == "LogSoftmaxBackward0":
        return _Softmax(rule, node, logarithm=name.startswith("Log"))
    if name == "NativeLayerNormBackward0" and len(node._saved_normalized_shape) == 1:
        return _LayerNorm(rule, node)
    return None


def _rule_of_two(segment: Segment, rule: PullBack, node: Any) -> TangentRule | None:
    """Return the rule of a product, if the piece is one."""
    if segment.factors is not None:
        order = _order(rule, [factor.grad_fn for factor in segment.factors])
        return order and _MatrixProduct(rule, segment.factors, order)
    if node.name() == "MulBackward0":
        factors = (node._saved_self, node._saved_other)
        order = _order(rule, [following for following, _ in node.next_functions])
        if order and factors[0].dtype == factors[1].dtype:
            return _Multiplication(rule, factors, order)
    return None


def _order(rule: PullBack, nodes: Sequence[Any]) -> Order | None:
    """Return the indices of the inputs that two nodes stand for; None if they are no inputs."""
    for order in ((0, 1), (1, 0)):
        if all(_is_alias_of(nodes[i], rule.inputs[order[i]]) for i in (0, 1)):
            return order
    return None


def _is_alias_of(node: Any, leaf: Tensor) -> bool:
    return is_alias(node) and any(
        getattr(following, "variable", None) is leaf for following, _ in node.next_functions
    )


def _weighted_squares(x: Tensor, weights: Tensor) -> Tensor:
    """Return ``Σ w x²`` of each of the P tangents x."""
    return (x * x).reshape(len(x), -1) @ weights.flatten()  # square() is slower
