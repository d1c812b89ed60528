"""Shorter rules for a few frequent operations, with the same values as the general one."""

from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_backends.torch.linearity import Alias
from spectral_backends.torch.pull_back import PullBack, Tangents
from spectral_backends.torch.tape import Segment

__all__ = ["TangentRule", "short_rule"]


class TangentRule(Protocol):
    """Sends P tangents through a piece."""

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        """Return the outputs' tangents, and ``<λ, D²φ[ẋ, ẋ]>`` of shape ``(P,)`` or None for 0."""
        ...


class _Elementwise:
    """``y = φ(x)`` element by element: slopes and bends are made once."""

    def __init__(self, rule: PullBack) -> None:
        (leaf,), (pulled,) = rule.inputs, rule.pulled
        assert pulled is not None
        ones = [torch.ones_like(rule.outputs[0])]
        (self._slope,) = torch.autograd.grad(rule.outputs, leaf, ones, retain_graph=True)
        (self._bend,) = torch.autograd.grad(
            pulled, leaf, torch.ones_like(pulled), retain_graph=True, materialize_grads=True
        )

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        (x,) = tangents
        assert x is not None
        return [x * self._slope], _weighted_squares(x, self._bend)


class _Softmax:
    """``y = softmax(x)`` or its logarithm, along one axis: both bend by ``(ẋ − <p, ẋ>)²``."""

    def __init__(self, rule: PullBack, node: Any, *, logarithm: bool) -> None:
        saved = node._saved_result.detach()
        axis = node._saved_dim
        self._axis = (axis if axis < saved.ndim else axis - 2**64) % saved.ndim - saved.ndim
        self._p = saved.exp() if logarithm else saved
        (self._adjoint,) = (adjoint.detach() for adjoint in rule.adjoints)
        if logarithm:
            self._bend = -self._p * self._adjoint.sum(self._axis, keepdim=True)
        else:
            centred = self._adjoint - (self._p * self._adjoint).sum(self._axis, keepdim=True)
            self._bend = self._p * centred
        self._logarithm = logarithm

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        (x,) = tangents
        assert x is not None
        centred = x - (self._p * x).sum(self._axis, keepdim=True)
        second = _weighted_squares(centred, self._bend)
        return [centred if self._logarithm else centred * self._p], second


class _LayerNorm:
    """``y = γ (x − mean x) r + β`` with ``r = (var x + ε)^(−1/2)``, over the last axis.

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
        m2 = (c * c).mean(-1, keepdim=True)
        across = (c * self._adjoint).sum(-1, keepdim=True)
        second = self._along * (3 * m1 * m1 - m2) - 2 * m1 * across
        return [(c - self._normal * m1) * self._scale], second.flatten(1).sum(1)


class _Multiplication:
    """``y = a b``, element by element: ``ẏ = ȧ b + a ḃ`` and ``ÿ = 2 ȧ ḃ``."""

    def __init__(self, rule: PullBack, factors: tuple[Tensor, Tensor]) -> None:
        self._a, self._b = (factor.detach() for factor in factors)
        self._adjoint = 2 * rule.adjoints[0].detach().flatten()
        self._ndim = rule.outputs[0].ndim

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        a, b = (None if t is None else self._aligned(t) for t in tangents)
        if a is None or b is None:
            return [a * self._b if a is not None else self._a * b], None  # type: ignore[operator]
        second = (a * b).reshape(len(a), -1) @ self._adjoint
        return [torch.addcmul(a * self._b, self._a, b)], second

    def _aligned(self, tangent: Tensor) -> Tensor:
        """Put axes of one where the factor is broadcast, behind that of the tangents."""
        missing = self._ndim + 1 - tangent.ndim
        return tangent[(slice(None), *[None] * missing)]


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
    node: Any = output.grad_fn
    behind = [following for following, _ in node.next_functions if following is not None]
    if len(behind) != len(rule.inputs) or any(t.is_complex() for t in (output, *rule.inputs)):
        return None
    name = node.name()
    if len(behind) == 2 and name == "MulBackward0":
        return _multiplication(rule, node)
    if len(behind) != 1 or not _is_alias_of(behind[0], rule.inputs[0]):
        return None
    if name in _ELEMENTWISE and output.shape == rule.inputs[0].shape:
        return _Elementwise(rule)
    if name == "SoftmaxBackward0" or name == "LogSoftmaxBackward0":
        return _Softmax(rule, node, logarithm=name.startswith("Log"))
    if name == "NativeLayerNormBackward0" and len(node._saved_normalized_shape) == 1:
        return _LayerNorm(rule, node)
    return None


def _multiplication(rule: PullBack, node: Any) -> TangentRule | None:
    """Return the rule of a product of two inputs, in whichever order they were found."""
    first, second = (following for following, _ in node.next_functions)
    factors = (node._saved_self, node._saved_other)
    if factors[0].dtype != factors[1].dtype:
        return None
    if _is_alias_of(first, rule.inputs[1]):
        first, second, factors = second, first, factors[::-1]
    if not (_is_alias_of(first, rule.inputs[0]) and _is_alias_of(second, rule.inputs[1])):
        return None
    return _Multiplication(rule, factors)


def _is_alias_of(node: Any, leaf: Tensor) -> bool:
    return getattr(node, "_forward_cls", None) is Alias and any(
        getattr(following, "variable", None) is leaf for following, _ in node.next_functions
    )


def _weighted_squares(x: Tensor, weights: Tensor) -> Tensor:
    """Return ``Σ w x²`` of each of the P tangents x."""
    return (x * x).reshape(len(x), -1) @ weights.flatten()  # square() is slower
