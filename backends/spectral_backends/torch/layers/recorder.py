"""Finding a model's weight matrices by the operations that consume its parameters.

Looking at module types misses tied weights, functional calls, packed attention projections and
transposed weights. So the model runs once while every torch call is watched, and each parameter is
followed through views and casts. A *tracked view* stands for the parameter: a tensor of the same
shape without storage, to which the same views are applied. Its strides then tell which elements of
the parameter form the matrix that an operation consumes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.instruments.call_observer import CallObserver
from spectral_backends.torch.instruments.nested import tensors_in
from spectral_backends.torch.layers.matrix_view import MatrixView
from spectral_backends.torch.layers.readers.base import Consumed
from spectral_backends.torch.layers.readers.table import READERS

__all__ = ["MatrixUse", "OperationRecorder"]


@dataclass
class MatrixUse:
    """One matrix inside a parameter and the operations seen to consume it.

    Parameters
    ----------
    view : MatrixView
        The parameter slice of the matrix.
    kinds : list of str
        The operations, in the order of their first use.
    label : str
        The name that tells it from other matrices of the same parameter, such as ``"q"``. It may be
        empty.
    work : float
        The multiply-adds of its uses in one forward pass.
    count : int
        The number of its uses.
    """

    view: MatrixView
    kinds: list[str]
    label: str = ""
    work: float = 0.0
    count: int = 1


@dataclass
class ParameterUses:
    """Everything seen of one parameter."""

    matrices: list[MatrixUse] = field(default_factory=list)
    other_operations: list[str] = field(default_factory=list)


class OperationRecorder(CallObserver):
    """Watches torch calls and records which matrices of which parameters they consume.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The tensors that the model will use, by name.

    Attributes
    ----------
    uses : dict of str to ParameterUses
        The uses that were seen of each parameter.
    order : list of str
        The parameters with a matrix, in the order of their first use, that of the forward pass.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses = {name: ParameterUses() for name in parameters}
        self.order: list[str] = []
        # By id: the parameter's name, the tracked view, and the tensor itself, kept alive so that
        # its id stays its own.
        self._followed: dict[int, tuple[str, Tensor, Tensor]] = {}
        self._roots: dict[str, Tensor] = {}
        self.result: Any = None
        for name, parameter in parameters.items():
            root = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            self._roots[name] = root
            self._followed[id(parameter)] = (name, root, parameter)

    def observe(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record what the operation did with the parameters."""
        followed = [t for t in tensors_in((args, kwargs)) if id(t) in self._followed]
        if followed and any(True for _ in tensors_in(result)):
            self.result = result
            self._look(func, args, kwargs, result, followed)
            self.result = None

    def _look(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        followed: list[Tensor],
    ) -> None:
        name = _operation_name(func)
        source = args[0] if args and args[0] is followed[0] else None
        if not torch.is_grad_enabled():  # autograd takes the result for a constant
            self._record_others(followed, f"{name} under no_grad")
        elif name in _COPIES:
            if source is not None:  # in x.to(W), W only names the type
                self._follow(source, [result], [self._view_of(source)])
        elif name in _VIEWS and source is not None and not _is_lookup(name, args):
            views = func(self._view_of(source), *args[1:], **kwargs)
            self._follow(source, list(tensors_in(result)), list(tensors_in(views)))
        else:
            read = READERS.get(name)
            seen: set[int] = set()
            for tensor, consumed in read(args, kwargs, self._view_of) if read else ():
                seen.add(id(tensor))
                self._record(self._followed[id(tensor)][0], consumed)
            self._record_others([t for t in followed if id(t) not in seen], name)

    def _record_others(self, tensors: list[Tensor], operation: str) -> None:
        for tensor in tensors:
            self.uses[self._followed[id(tensor)][0]].other_operations.append(operation)

    def _view_of(self, tensor: Any) -> Tensor | None:
        """Return the tracked view of a tensor; None if the tensor is not followed."""
        entry = self._followed.get(id(tensor))
        return None if entry is None else entry[1]

    def _follow(self, source: Tensor, results: list[Any], views: list[Any]) -> None:
        name = self._followed[id(source)][0]
        for result, view in zip(results, views, strict=True):
            if view.untyped_storage()._cdata == self._roots[name].untyped_storage()._cdata:
                self._followed[id(result)] = (name, view, result)
            else:  # a reshape that had to copy: the matrix is no strided view of the parameter
                self.uses[name].other_operations.append("reshape with a copy")

    def _record(self, name: str, consumed: Consumed) -> None:
        repeated = 0 in consumed.tracked.stride()[consumed.group_axes :]
        if not consumed.usable or consumed.tracked.ndim < consumed.group_axes + 2 or repeated:
            self.uses[name].other_operations.append(consumed.kind)
            return
        if name not in self.order:
            self.order.append(name)
        groups = list(split_groups(consumed))
        outputs = sum(t.numel() for t in tensors_in(self.result)) / len(groups)
        for label, matrix in groups:
            view = MatrixView.of(matrix, consumed.out_axes)
            work = outputs * view.shape[1]
            self._merge(self.uses[name].matrices, MatrixUse(view, [consumed.kind], label, work))

    @staticmethod
    def _merge(known: list[MatrixUse], new: MatrixUse) -> None:
        for use in known:
            if use.view.elements == new.view.elements:
                if "embedding" in use.kinds and new.kinds != ["embedding"]:
                    use.view = new.view  # a tied head: its outputs are the logits
                use.kinds += [kind for kind in new.kinds if kind not in use.kinds]
                use.work += new.work
                use.count += 1
                return
        known.append(new)


def split_groups(consumed: Consumed) -> Iterator[tuple[str, Tensor]]:
    """Yield the matrix of each group, with its label. An expanded axis counts as one group."""
    size, stride = consumed.tracked.shape, consumed.tracked.stride()
    groups = [range(size[axis] if stride[axis] else 1) for axis in range(consumed.group_axes)]
    several = prod(map(len, groups)) > 1
    for index, position in enumerate(product(*groups)):
        label = f"{consumed.label}group{index}" if several else consumed.label
        yield label, consumed.tracked[position]


def _operation_name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property such as Tensor.T
        return str(func.__self__.__name__)  # type: ignore[attr-defined]
    return name.removeprefix("__").removesuffix("__")


def _is_lookup(name: str, args: tuple[Any, ...]) -> bool:
    """Say whether ``W[index]`` gathers rows by an index tensor instead of slicing."""
    return name == "getitem" and any(True for _ in tensors_in(args[1:]))


_COPIES = frozenset(
    [
        "to",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "type_as",
        "contiguous",
        "clone",
        "cpu",
        "cuda",
        "alias",
    ]
)
_VIEWS = frozenset(
    [
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "transpose",
        "swapaxes",
        "swapdims",
        "permute",
        "movedim",
        "moveaxis",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "ravel",
        "squeeze",
        "unsqueeze",
        "narrow",
        "select",
        "getitem",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "expand",
        "expand_as",
        "broadcast_to",
    ]
)
