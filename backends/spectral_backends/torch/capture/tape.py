"""A forward pass as a list of short pieces, each with a graph of its own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectral_backends.torch.capture.attention import scaled_dot_product_attention
from spectral_backends.torch.capture.layer_io import ActivationCapture, LayerCall
from spectral_backends.torch.instruments.graph import leaves_behind
from spectral_backends.torch.instruments.linearity import Alias, is_alias
from spectral_backends.torch.instruments.nested import map_tensors, tensors_in
from spectral_backends.torch.layers.discovery import Layer

__all__ = ["Segment", "Tape"]


@dataclass(eq=False)
class Segment:
    """A piece of a forward pass.

    Parameters
    ----------
    outputs : list of Tensor
        The outputs, with the graph that leads back to `inputs`.
    cuts : list of Tensor
        The leaves that stand for the outputs in the pieces that follow, one for each output.
    inputs : list of Tensor
        The leaves at which the graph ends: cuts of earlier pieces, and parameters.
    calls : list of (Layer, LayerCall)
        The calls of layers whose result is an output.
    factors : tuple of Tensor, optional
        The factors of the only output, if it is their product, matrix by matrix.
    """

    outputs: list[Tensor]
    cuts: list[Tensor]
    inputs: list[Tensor]
    calls: list[tuple[Layer, LayerCall]] = field(default_factory=list)
    factors: tuple[Tensor, Tensor] | None = None


class Tape(ActivationCapture):
    """Watches a forward pass and cuts its graph behind every operation.

    The result of an operation is replaced by an alias that autograd takes for a function of a new
    leaf. Results in place and views are not cut: they belong to the next piece. So do operations
    that torch does not show, such as a custom function.

    Parameters
    ----------
    layers : iterable of Layer
        The layers whose calls are kept.
    parameters : mapping of str to Tensor
        The leaves that the model uses, by name.

    Attributes
    ----------
    segments : list of Segment
        The pieces, in the order in which they ran.
    n_model : int
        The number of pieces before the loss function; -1 if it is not known.
    dense : set of str
        The parameters that are used in other ways than by one call of each of their layers.
    """

    def __init__(self, layers: Iterable[Layer], parameters: Mapping[str, Tensor]) -> None:
        super().__init__(layers, parameters)
        self.segments: list[Segment] = []
        self.n_model = -1
        self._uncut: set[str] = set()

    @property
    def dense(self) -> set[str]:
        """Return the parameters that are used in other ways than by one call of each layer."""
        return {layer.parameter for layer in self._layers if not self._is_called_once(layer)}

    def _is_called_once(self, layer: Layer) -> bool:
        name = layer.info.name
        return len(self.calls[name]) == 1 and name not in self._uncut and self.all_seen(layer)

    def mark_outputs(self, outputs: Any) -> Any:
        """Cut the model's outputs off the loss that follows; return the leaves in their place."""
        with torch._C.DisableTorchFunction():
            cut = map_tensors(lambda t: self.cut([t])[0] if _is_cuttable(t) else t, outputs)
        self.n_model = len(self.segments)
        return cut

    def cut(self, outputs: list[Tensor]) -> list[Tensor]:
        """Append the piece that ends in these outputs; return the leaves that replace them."""
        cuts = [o.detach().new_empty(()).expand(o.shape).requires_grad_() for o in outputs]
        self.segments.append(Segment(outputs, cuts, leaves_behind(outputs)))
        return [_alias(c, o) for c, o in zip(cuts, outputs, strict=True)]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; attention and cross-entropy run as simpler operations."""
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            with self:
                return scaled_dot_product_attention(*args, **given)
        if (
            func is functional.cross_entropy
            and (loss := self._cross_entropy(args, given)) is not None
        ):
            return loss
        if func in _PRODUCTS and len(args) == 2 and not given and self._are_factors(*args):
            return super().__torch_function__(func, types, tuple(map(self._apart, args)))
        return super().__torch_function__(func, types, args, kwargs)

    def _are_factors(self, a: Any, b: Any) -> bool:
        """Say whether two factors hold equally many matrices, neither of them a parameter's."""
        return (
            all(isinstance(t, Tensor) and _is_cuttable(t) for t in (a, b))
            and not {id(a), id(b)} & self._followed.keys()
            and a.ndim == b.ndim >= 3
            and a.shape[:-2] == b.shape[:-2]
        )

    def _apart(self, factor: Tensor) -> Tensor:
        """Return the leaf that replaces a factor, whose graph becomes a piece of its own."""
        with torch._C.DisableTorchFunction():
            return factor if is_alias(factor.grad_fn) else self.cut([factor])[0]

    def replace(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Cut the new tensors that the operation has made."""
        given = {_storage(t) for t in tensors_in((args, kwargs))}
        new = [
            t
            for t in tensors_in(result)
            if _is_cuttable(t) and id(t) not in self._followed and _storage(t) not in given
        ]
        calls, self.made = self.made, []
        for layer, call in calls:
            if not any(call.result is t for t in new):
                self._uncut.add(layer.info.name)
        if not new:
            return result
        aliases = dict(zip(map(id, new), self.cut(new), strict=True))
        self.segments[-1].calls = calls
        if func in _PRODUCTS and len(args) == 2 and self._are_factors(*args):
            self.segments[-1].factors = (args[0], args[1])
        return map_tensors(lambda t: aliases.get(id(t), t), result)

    def _cross_entropy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Run a cross-entropy of class numbers as logarithms and a choice; None for others."""
        names = "input target weight size_average ignore_index reduce reduction label_smoothing"
        bound = dict(zip(names.split(), args, strict=False)) | kwargs
        if bound["target"].is_floating_point() or bound.pop("label_smoothing", 0.0):
            return None
        with self:
            x = bound.pop("input")
            logarithms = functional.log_softmax(x, 1 if x.ndim > 1 else 0)
            return functional.nll_loss(logarithms, **bound)


_PRODUCTS = {
    torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__
}  # fmt: skip


def _alias(leaf: Tensor, output: Tensor) -> Tensor:
    made: Tensor = Alias.apply(leaf, (output.detach(),))  # type: ignore[no-untyped-call]
    return made


def _is_plain(tensor: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout == torch.strided and not tensor.is_nested and not wrapped


def _storage(tensor: Tensor) -> int:
    """Identify the memory of a tensor."""
    return int(tensor.untyped_storage()._cdata) if _is_plain(tensor) else -1


def _is_cuttable(tensor: Tensor) -> bool:
    return tensor.grad_fn is not None and _is_plain(tensor)
