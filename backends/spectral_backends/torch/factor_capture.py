"""Catching what enters and leaves each layer during one forward pass."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from spectral_backends.torch.discovery import Layer
from spectral_backends.torch.matrix_view import MatrixView
from spectral_backends.torch.operation_readers import Consumed
from spectral_backends.torch.operations import OperationRecorder, split_groups
from spectral_backends.torch.rows import Rows
from spectral_core.errors import LayerError

__all__ = ["FactorCapture", "Passage"]


@dataclass(frozen=True)
class Passage:
    """One use of a layer's matrix: its rows, and the place in the graph where they come out.

    Parameters
    ----------
    result : Tensor
        What the operation returned; values may have been changed in place since.
    edge : GradientEdge
        Of the result as it left the operation: in-place changes come after it.
    inputs : callable
        Returns the inputs, shape ``(B, S, n)``.
    outputs : callable
        Turns a gradient of the result into ``(B, S, m)``.
    """

    result: Tensor
    edge: GradientEdge
    inputs: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]


class FactorCapture(OperationRecorder):
    """Watches a forward pass for the passages of some layers.

    Parameters
    ----------
    layers : iterable of Layer
        Whose passages to keep.
    parameters : mapping of str to Tensor
        The leaves that the model uses, by name.

    Attributes
    ----------
    passages : dict of str to list of Passage
        By layer.
    """

    def __init__(self, layers: Iterable[Layer], parameters: Mapping[str, Tensor]) -> None:
        super().__init__(parameters)
        self._layers = list(layers)
        self.passages: dict[str, list[Passage]] = {layer.info.name: [] for layer in self._layers}
        self._result: Any = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call, an attention as the products it is made of, and look at it."""
        if func is functional.multi_head_attention_forward:
            return self._attention(args, dict(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at what the call did with the parameters."""
        self._result = result
        super().observe(func, args, kwargs, result)
        self._result = None

    def _record(self, name: str, consumed: Consumed) -> None:
        if not consumed.usable:
            return
        result = self._result if isinstance(self._result, Tensor) else None
        if result is not None and result.grad_fn is None:
            return
        for position, (_, shadow) in enumerate(split_groups(consumed)):
            view = MatrixView.of(shadow, consumed.out_axes)
            for layer in self._layers:
                if layer.parameter == name:
                    self._match(layer, view, consumed, position, result)

    def _match(
        self,
        layer: Layer,
        view: MatrixView,
        consumed: Consumed,
        position: int,
        result: Tensor | None,
    ) -> None:
        shared = _shared_rows(layer.view, view)
        if shared is None:  # another matrix, or this one the other way around
            return
        if consumed.rows is None or result is None:
            raise LayerError(
                layer.info.name,
                f"its operation ({consumed.kind}) hides inputs and outputs at single positions, so "
                "it has no Kronecker factors; write it with products, or leave it out.",
            )
        made = _group(consumed.rows, consumed, position)
        own, theirs = shared
        whole = own == theirs == list(range(layer.view.shape[0])) and layer.view.shape == view.shape

        def outputs(gradient: Tensor) -> Tensor:
            found = made.outputs(gradient)
            if whole:
                return found
            placed = found.new_zeros(*found.shape[:-1], layer.view.shape[0])
            placed[..., own] = found[..., theirs]
            return placed

        self.passages[layer.info.name].append(
            Passage(result, get_gradient_edge(result), made.inputs, outputs)
        )

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `multi_head_attention_forward` as four products around one with unit weights.

        Its projections are out of sight; multiplying by a unit matrix changes no value, so they
        can stand outside. Products run with samples first, where their rows are looked for.
        """
        given = signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
        given.apply_defaults()
        a = given.arguments
        with self:
            weights = (
                [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
                if a["use_separate_proj_weight"]
                else list(a["in_proj_weight"].chunk(3))
            )
            biases: Any = [None] * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
            names = ("query", "key", "value")
            projected = [
                _samples_first(functional.linear, a[name], weight, bias)
                for name, weight, bias in zip(names, weights, biases, strict=True)
            ]
        unit = torch.eye(
            a["embed_dim_to_check"], dtype=projected[0].dtype, device=a["query"].device
        )
        inner = a | dict(zip(names, projected, strict=True))
        inner |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
        inner |= {"q_proj_weight": unit, "k_proj_weight": unit, "v_proj_weight": unit}
        inner |= {"out_proj_weight": unit, "out_proj_bias": None}
        attended, weights_of_heads = functional.multi_head_attention_forward(**inner)
        with self:
            out = _samples_first(
                functional.linear, attended, a["out_proj_weight"], a["out_proj_bias"]
            )
        return out, weights_of_heads


def _samples_first(linear: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """Apply a product to ``(L, B, E)`` with the samples in front."""
    if x.ndim < 3:
        return linear(x.unsqueeze(0), weight, bias).squeeze(0)
    return linear(x.transpose(0, 1), weight, bias).transpose(0, 1)


def _shared_rows(layer: MatrixView, used: MatrixView) -> tuple[list[int], list[int]] | None:
    """Return which rows of the layer's matrix are which of the used one; None if it has none."""
    if layer == used:
        rows = list(range(used.shape[0]))
        return rows, rows
    if layer.column_offsets != used.column_offsets:
        return None
    where = {offset: row for row, offset in enumerate(used.row_offsets)}
    pairs = [(i, where[o]) for i, o in enumerate(layer.row_offsets) if o in where]
    return ([own for own, _ in pairs], [theirs for _, theirs in pairs]) if pairs else None


def _group(rows: Rows, consumed: Consumed, position: int) -> Rows:
    """Return the rows of one group; along an axis without groups all are samples or positions."""
    size, stride = consumed.shadow.shape, consumed.shadow.stride()
    axes = range(consumed.group_axes)
    own = [axis for axis in axes if stride[axis] and size[axis] > 1]

    def pick(tensor: Tensor) -> Tensor:
        groups = [size[axis] if axis in own else tensor.shape[axis] for axis in axes]
        tensor = tensor.expand(*groups, *tensor.shape[consumed.group_axes :])
        tensor = tensor.movedim(own, list(range(len(own))))
        tensor = tensor.flatten(0, len(own) - 1)[position] if own else tensor
        while tensor.ndim > 3 and tensor.shape[0] == 1:
            tensor = tensor[0]
        return tensor.reshape(tensor.shape[0], prod(tensor.shape[1:-1]), tensor.shape[-1])

    return Rows(lambda: pick(rows.inputs()), lambda y: pick(rows.outputs(y)))
