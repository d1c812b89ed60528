"""How tangents pass one piece of a tape, and how much its curvature adds on the way.

For a piece ``y = φ(x)`` whose outputs have the adjoint λ (the gradient of the loss in y), each
tangent ẋ becomes ``ẏ = Dφ[ẋ]``, and ``<λ, D²φ[ẋ, ẋ]>`` is what the piece adds to the second
derivative of the loss. Both come out of one derivative of the pull-back ``p(λ, x) = Dφᵀ[λ]``:
``∂<p, ẋ>/∂λ = ẏ`` and ``<∂<p, ẋ>/∂x, ẋ> = <λ, D²φ[ẋ, ẋ]>``. That serves any operation with two
derivatives; a few frequent ones have shorter forms, with the same values.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_backends.torch.graph import node_names
from spectral_backends.torch.linearity import Alias, find_curvature
from spectral_backends.torch.tape import Segment

__all__ = ["TangentRule", "tangent_rule"]

Tangents = Sequence[Tensor | None]
"""One for each input (or output), shape ``(P, *shape)``; None where it is zero."""


class TangentRule(Protocol):
    """Sends P tangents through a piece."""

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        """Return the outputs' tangents, and ``<λ, D²φ[ẋ, ẋ]>`` of shape ``(P,)`` or None for 0."""
        ...


def tangent_rule(
    segment: Segment,
    inputs: Sequence[Tensor],
    adjoints: Sequence[Tensor | None],
    *,
    shortcuts: bool,
) -> tuple[TangentRule, list[Tensor | None]]:
    """Return the rule of a piece, and the adjoints of its inputs.

    Parameters
    ----------
    segment : Segment
        The piece.
    inputs : sequence of Tensor
        Those of its inputs that may have tangents.
    adjoints : sequence of Tensor or None
        λ of each output.
    shortcuts : bool
        Leave out second derivatives that the graph shows to vanish, and use shorter forms.

    Raises
    ------
    RuntimeError
        If the piece cannot be differentiated twice.
    """
    rule = _PullBack(segment, inputs, adjoints)
    if not shortcuts:
        return rule, rule.pulled
    leaves = list(inputs)
    if not find_curvature(rule.outputs, {0: leaves}):
        rule.curvature = _NONE
    elif len(leaves) == 2 and not find_curvature(rule.outputs, {0: leaves[:1], 1: leaves[1:]}):
        rule.curvature = _PRODUCT
    elif short := _short_form(segment, rule):
        return short, rule.pulled
    return rule, rule.pulled


_ANY, _PRODUCT, _NONE = "any", "product", "none"


class _PullBack:
    """The general rule, by differentiating the pull-back."""

    def __init__(
        self, segment: Segment, inputs: Sequence[Tensor], adjoints: Sequence[Tensor | None]
    ) -> None:
        self.curvature = _ANY
        self._n_outputs = len(segment.outputs)
        self._live = [index for index, adjoint in enumerate(adjoints) if adjoint is not None]
        self.outputs = [segment.outputs[index] for index in self._live]
        self.adjoints = [
            adjoint.detach().requires_grad_() for adjoint in adjoints if adjoint is not None
        ]
        self.inputs = list(inputs)
        self._pulled: Sequence[Tensor | None] = torch.autograd.grad(
            self.outputs, self.inputs, self.adjoints, create_graph=True, allow_unused=True
        )
        for pulled in self._pulled:
            if pulled is not None and "torch::autograd::Error" in node_names(pulled):
                raise RuntimeError("a function on the way is marked once_differentiable")

    @property
    def pulled(self) -> list[Tensor | None]:
        """Return the adjoints of the inputs."""
        return [None if p is None else _dense(p.detach()) for p in self._pulled]

    def __call__(self, tangents: Tangents) -> tuple[Tangents, Tensor | None]:
        pairs = [
            (pulled, leaf, tangent)
            for pulled, leaf, tangent in zip(self._pulled, self.inputs, tangents, strict=True)
            if pulled is not None and pulled.requires_grad and tangent is not None
        ]
        outputs: list[Tensor | None] = [None] * self._n_outputs
        if not pairs:
            return outputs, None
        moving = [tangent for _, _, tangent in pairs]
        bent = self._bent([leaf for _, leaf, _ in pairs])
        found = _batched_gradient(
            [pulled for pulled, _, _ in pairs], [*self.adjoints, *bent], moving
        )
        for index, tangent in zip(self._live, found, strict=False):
            outputs[index] = tangent
        bends = found[len(self.adjoints) :]
        terms = [
            _dots(_dense(bend), tangent)
            for bend, tangent in zip(bends, moving, strict=False)
            if bend is not None
        ]
        second = torch.stack(terms).sum(0) if terms else None
        if second is not None and self.curvature == _PRODUCT:
            second = 2 * second  # the other half of a product is the same number
        return outputs, second

    def _bent(self, leaves: list[Tensor]) -> list[Tensor]:
        """Return the inputs whose curvature to ask for."""
        if self.curvature == _NONE or (self.curvature == _PRODUCT and len(leaves) < 2):
            return []
        return leaves[:1] if self.curvature == _PRODUCT else leaves


class _Elementwise:
    """``y = φ(x)`` element by element: slopes and bends are made once."""

    def __init__(self, rule: _PullBack) -> None:
        (leaf,), (pulled,) = rule.inputs, rule._pulled
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

    def __init__(self, rule: _PullBack, node: Any, *, logarithm: bool) -> None:
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

    def __init__(self, rule: _PullBack, node: Any) -> None:
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


_ELEMENTWISE = {
    f"{name}Backward0"
    for name in (
        "Celu", "Cos", "Elu", "Erf", "Exp", "Expm1", "Gelu", "Hardswish", "Log", "Log1P",
        "LogSigmoid", "Mish", "Pow", "Reciprocal", "Rsqrt", "Sigmoid", "Silu", "Sin", "Softplus",
        "Sqrt", "Tanh",
    )
}  # fmt: skip


def _short_form(segment: Segment, rule: _PullBack) -> TangentRule | None:
    """Return a shorter rule if the piece is one operation on one input that has one."""
    if len(segment.outputs) != 1 or len(rule.inputs) != 1 or rule._pulled[0] is None:
        return None
    output, leaf = segment.outputs[0], rule.inputs[0]
    node: Any = output.grad_fn
    behind = [following for following, _ in node.next_functions if following is not None]
    if len(behind) != 1 or not _is_alias_of(behind[0], leaf):
        return None
    name = node.name()
    if output.is_complex() or leaf.is_complex():
        return None
    if name in _ELEMENTWISE and output.shape == leaf.shape:
        return _Elementwise(rule)
    if name == "SoftmaxBackward0" or name == "LogSoftmaxBackward0":
        return _Softmax(rule, node, logarithm=name.startswith("Log"))
    if name == "NativeLayerNormBackward0" and len(node._saved_normalized_shape) == 1:
        return _LayerNorm(rule, node)
    return None


def _is_alias_of(node: Any, leaf: Tensor) -> bool:
    return getattr(node, "_forward_cls", None) is Alias and any(
        getattr(following, "variable", None) is leaf for following, _ in node.next_functions
    )


def _batched_gradient(
    values: list[Tensor], of: list[Tensor], tangents: list[Tensor]
) -> list[Tensor | None]:
    """Return ``∂ Σ <value, tangent>/∂of`` for each of the P tangents."""

    def gradient(cotangents: list[Tensor], *, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            values, of, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    count = len(tangents[0])
    if count > 1:
        try:
            return list(gradient(tangents, batched=True))
        except RuntimeError:  # an operation without a batching rule: one at a time needs none
            pass
    if count == 1:
        found = gradient([t[0] for t in tangents], batched=False)
        return [None if g is None else _dense(g).unsqueeze(0) for g in found]
    each = [gradient([t[index] for t in tangents], batched=False) for index in range(count)]
    return [
        None if any(g is None for g in found) else torch.stack([_dense(g) for g in found])
        for found in zip(*each, strict=True)
    ]


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _dots(a: Tensor, b: Tensor) -> Tensor:
    dots: Tensor = torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))
    return dots


def _weighted_squares(x: Tensor, weights: Tensor) -> Tensor:
    """Return ``Σ w x²`` of each of the P tangents x."""
    return (x * x).reshape(len(x), -1) @ weights.flatten()  # square() is slower
