"""Inputs and outputs of each layer, recorded at its calls during one forward pass."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from spectral_backends.torch.capture.attention import multi_head_attention
from spectral_backends.torch.capture.batch_norm import affine_batch_norm
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.layers.matrix_view import MatrixView
from spectral_backends.torch.layers.readers.base import Consumed, Rows
from spectral_backends.torch.layers.recorder import OperationRecorder, split_groups
from spectral_core.errors import LayerError

__all__ = ["ActivationCapture", "LayerCall"]


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer's matrix in the forward pass, with its inputs and outputs.

    Parameters
    ----------
    result : Tensor
        The result that the operation returned. Its values may have been changed in place since.
    edge : GradientEdge
        The edge of the result as it left the operation. In-place changes come after it.
    inputs : callable
        ``inputs()`` returns the inputs, shape ``(B, S, n)``.
    outputs : callable
        ``outputs(gradient)`` turns a gradient of the result into ``(B, S, m)``.
    project : callable
        ``project(v)`` returns ``a v`` for the columns of v ``(n, K)``, shape ``(B, S, K)``.
    """

    result: Tensor
    edge: GradientEdge
    inputs: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


class ActivationCapture(OperationRecorder):
    """Watches a forward pass and keeps every call of some layers.

    Parameters
    ----------
    layers : iterable of Layer
        The layers whose calls are kept.
    parameters : mapping of str to Tensor
        The leaves that the model uses, by name.

    Attributes
    ----------
    calls : dict of str to list of LayerCall
        The calls of each layer, in the order in which they ran.
    hidden : dict of str to str
        The layers used by an operation that hides its inputs and outputs, with its kind.
    """

    def __init__(self, layers: Iterable[Layer], parameters: Mapping[str, Tensor]) -> None:
        super().__init__(parameters)
        self._layers = list(layers)
        self.calls: dict[str, list[LayerCall]] = {layer.info.name: [] for layer in self._layers}
        self.hidden: dict[str, str] = {}
        self.made: list[tuple[Layer, LayerCall]] = []  # by the operation that is being observed

    def all_seen(self, layer: Layer) -> bool:
        """Say whether the layer's calls are the only uses of its elements."""
        uses = self.uses[layer.parameter]
        overlapping = (use.count for use in uses.matrices if use.view.overlaps(layer.view))
        seen = len(self.calls[layer.info.name]) == sum(overlapping)
        return seen and layer.info.name not in self.hidden and not uses.other_operations

    def check_none_hidden(self) -> None:
        """Raise `LayerError` if an operation hides the positions of a layer."""
        for name, kind in self.hidden.items():
            raise LayerError(
                name,
                f"its operation ({kind}) hides inputs and outputs at single positions, so it has "
                "no Kronecker factors; write it with products, or leave it out.",
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, some as the simpler ones it consists of, and look at it."""
        if func is functional.multi_head_attention_forward:
            return multi_head_attention(self, args, dict(kwargs or {}))
        if func is functional.batch_norm:
            affine = affine_batch_norm(*args, **dict(kwargs or {}))
            if affine is not None:
                with self:
                    return torch.addcmul(affine.shift, affine.x, affine.scale)
        return super().__torch_function__(func, types, args, kwargs)

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Look at what the operation did with the parameters."""
        self.made = []
        super().observe(func, args, kwargs, result)

    def _record(self, name: str, consumed: Consumed) -> None:
        super()._record(name, consumed)
        if not consumed.usable:
            return
        result = self.result if isinstance(self.result, Tensor) else None
        if result is not None and result.grad_fn is None:
            return
        for position, (_, matrix) in enumerate(split_groups(consumed)):
            view = MatrixView.of(matrix, consumed.out_axes)
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
        if shared is None:  # another matrix, or this one transposed
            return
        if consumed.rows is None or result is None:
            self.hidden[layer.info.name] = consumed.kind
            return
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

        edge = get_gradient_edge(result)
        call = LayerCall(result, edge, made.inputs, outputs, made.project)
        self.calls[layer.info.name].append(call)
        self.made.append((layer, call))


def _shared_rows(layer: MatrixView, used: MatrixView) -> tuple[list[int], list[int]] | None:
    """Return the rows of the layer's matrix and those of the used one; None if none are shared."""
    if layer == used:
        rows = list(range(used.shape[0]))
        return rows, rows
    if layer.column_offsets != used.column_offsets:
        return None
    where = {offset: row for row, offset in enumerate(used.row_offsets)}
    pairs = [(i, where[o]) for i, o in enumerate(layer.row_offsets) if o in where]
    return ([own for own, _ in pairs], [theirs for _, theirs in pairs]) if pairs else None


def _group(rows: Rows, consumed: Consumed, position: int) -> Rows:
    """Return the rows of one group. An axis without groups holds samples or positions."""
    size, stride = consumed.tracked.shape, consumed.tracked.stride()
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

    return Rows(
        lambda: pick(rows.inputs()),
        lambda y: pick(rows.outputs(y)),
        lambda v: pick(rows.project(v)),
    )
