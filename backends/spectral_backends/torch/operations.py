"""Finding a model's weight matrices by the operations that consume its parameters.

Looking at module types misses tied weights, functional calls, packed attention projections and
transposed weights. So the model runs once while every torch call is watched. A parameter is
followed through views and casts by applying the same views to a shadow of it without storage,
whose strides then tell which elements of the parameter form the matrix that an operation consumes.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from spectral_backends.torch.matrix_view import MatrixView

__all__ = ["MatrixUse", "OperationRecorder"]


@dataclass
class MatrixUse:
    """One matrix inside a parameter and the operations seen to consume it.

    Parameters
    ----------
    view : MatrixView
        Where it is.
    kinds : list of str
        The operations, in the order of their first use.
    label : str
        What tells it from other matrices of the same parameter, such as ``"q"``; may be empty.
    """

    view: MatrixView
    kinds: list[str]
    label: str = ""


@dataclass(frozen=True)
class _Consumed:
    """What an operation says of a parameter: axes are groups, then outputs, then inputs."""

    shadow: Tensor
    kind: str
    group_axes: int = 0
    out_axes: int = 1
    label: str = ""


@dataclass
class ParameterUses:
    """Everything seen of one parameter."""

    matrices: list[MatrixUse] = field(default_factory=list)
    other_operations: list[str] = field(default_factory=list)


class OperationRecorder(TorchFunctionMode):
    """Watches torch calls and records which matrices of which parameters they consume.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The tensors that the model will use, by name.

    Attributes
    ----------
    uses : dict of str to ParameterUses
        What was seen of each parameter.
    order : list of str
        Parameters with a matrix, in the order of their first use: that of the forward pass.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses = {name: ParameterUses() for name in parameters}
        self.order: list[str] = []
        # Tensors are kept alive so that their ids stay theirs.
        self._followed: dict[int, tuple[str, Tensor, Tensor]] = {}
        self._roots: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            root = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            self._roots[name] = root
            self._followed[id(parameter)] = (name, root, parameter)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the call, then look at what it did with the parameters."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        followed = [t for t in _tensors((args, kwargs)) if id(t) in self._followed]
        if followed and any(True for _ in _tensors(result)):
            with torch.no_grad():
                self._look(func, args, kwargs, result, followed)
        return result

    def _look(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        followed: list[Tensor],
    ) -> None:
        name = _operation_name(func)
        if name in _COPIES:
            self._follow(followed[0], [result], [self._shadow(followed[0])])
        elif name in _VIEWS and args and args[0] is followed[0] and not _is_lookup(name, args):
            shadows = func(self._shadow(args[0]), *args[1:], **kwargs)
            self._follow(args[0], list(_tensors(result)), list(_tensors(shadows)))
        else:
            read = _READERS.get(name)
            seen: set[int] = set()
            for tensor, consumed in read(args, kwargs, self._shadow) if read else ():
                seen.add(id(tensor))
                self._record(self._followed[id(tensor)][0], consumed)
            for tensor in followed:
                if id(tensor) not in seen:
                    self.uses[self._followed[id(tensor)][0]].other_operations.append(name)

    def _shadow(self, tensor: Any) -> Tensor | None:
        entry = self._followed.get(id(tensor))
        return None if entry is None else entry[1]

    def _follow(self, source: Tensor, results: list[Any], shadows: list[Any]) -> None:
        name = self._followed[id(source)][0]
        for result, shadow in zip(results, shadows, strict=True):
            if shadow.untyped_storage()._cdata == self._roots[name].untyped_storage()._cdata:
                self._followed[id(result)] = (name, shadow, result)
            else:  # a reshape that had to copy: the matrix is no strided view of the parameter
                self.uses[name].other_operations.append("reshape with a copy")

    def _record(self, name: str, consumed: _Consumed) -> None:
        if consumed.shadow.ndim < consumed.group_axes + 2 or 0 in consumed.shadow.stride():
            self.uses[name].other_operations.append(consumed.kind)
            return
        if name not in self.order:
            self.order.append(name)
        for label, matrix in _split_groups(consumed):
            view = MatrixView.of(matrix, consumed.out_axes)
            self._merge(self.uses[name].matrices, MatrixUse(view, [consumed.kind], label))

    @staticmethod
    def _merge(known: list[MatrixUse], new: MatrixUse) -> None:
        for use in known:
            if use.view.elements == new.view.elements:
                if "embedding" in use.kinds and new.kinds != ["embedding"]:
                    use.view = new.view  # a tied head: its outputs are the logits
                use.kinds += [kind for kind in new.kinds if kind not in use.kinds]
                return
        known.append(new)


def _split_groups(consumed: _Consumed) -> Iterator[tuple[str, Tensor]]:
    if consumed.group_axes == 0:
        yield consumed.label, consumed.shadow
        return
    stacked = consumed.shadow.flatten(0, consumed.group_axes - 1)
    for index, matrix in enumerate(stacked.unbind(0)):
        yield (f"{consumed.label}group{index}" if len(stacked) > 1 else consumed.label), matrix


def _operation_name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property such as Tensor.T
        return str(func.__self__.__name__)  # type: ignore[attr-defined]
    return name.removeprefix("__").removesuffix("__")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _is_lookup(name: str, args: tuple[Any, ...]) -> bool:
    """Say whether ``W[index]`` gathers rows by an index tensor instead of slicing."""
    return name == "getitem" and any(True for _ in _tensors(args[1:]))


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
        "detach",
        "data",
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

_ShadowOf = Callable[[Any], Tensor | None]
_Found = Iterator[tuple[Tensor, _Consumed]]
_Reader = Callable[[tuple[Any, ...], dict[str, Any], _ShadowOf], _Found]


def _bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names.split(), args, strict=False)) | kwargs


def _read_linear(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    weight = _bind("input weight bias", args, kwargs)["weight"]
    if (shadow := shadow_of(weight)) is not None:
        yield weight, _Consumed(shadow, "linear")


def _read_product(names: str) -> _Reader:
    """Read ``left @ right``: the outputs of a right operand are its last axis."""

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        bound = _bind(names, args, kwargs)
        left, right = (bound[key] for key in names.split()[-2:])
        if (shadow := shadow_of(left)) is not None and shadow.ndim >= 2:
            yield left, _Consumed(shadow, "linear", group_axes=shadow.ndim - 2)
        if (shadow := shadow_of(right)) is not None and shadow.ndim >= 2:
            yield right, _Consumed(shadow.mT, "linear", group_axes=shadow.ndim - 2)

    return read


def _read_reversed_product(
    args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf
) -> _Found:
    return _read_product("left right")(args[1::-1], kwargs, shadow_of)


def _read_convolution(kind: str) -> _Reader:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        bound = _bind("input weight bias stride padding dilation groups", args, kwargs)
        if (shadow := shadow_of(bound["weight"])) is not None:
            grouped = shadow.view(bound.get("groups", 1), -1, *shadow.shape[1:])
            yield bound["weight"], _Consumed(grouped, kind, group_axes=1)

    return read


def _read_transposed_convolution(kind: str) -> _Reader:
    """Read kernels (inputs, outputs / groups, *k): one position's output takes (inputs, *k)."""

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        names = "input weight bias stride padding output_padding groups dilation"
        bound = _bind(names, args, kwargs)
        if (shadow := shadow_of(bound["weight"])) is not None:
            grouped = shadow.view(bound.get("groups", 1), -1, *shadow.shape[1:]).transpose(1, 2)
            yield bound["weight"], _Consumed(grouped, kind, group_axes=1)

    return read


def _read_embedding(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read a table (entries, width): width outputs of a one-hot input."""
    weight = _bind("input weight", args, kwargs)["weight"]
    if (shadow := shadow_of(weight)) is not None and shadow.ndim == 2:
        yield weight, _Consumed(shadow.mT, "embedding")


def _read_lookup(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    table, index = args[0], args[1]
    first = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if isinstance(first, Tensor) and not first.is_floating_point() and first.dtype != torch.bool:
        yield from _read_embedding((first, table), {}, shadow_of)


def _read_bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    weight = _bind("input1 input2 weight bias", args, kwargs)["weight"]
    if (shadow := shadow_of(weight)) is not None:
        yield weight, _Consumed(shadow, "bilinear")


def _read_einsum(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read a subscript: shared and kept = groups, kept only by the weight = outputs."""
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return
    inputs, output = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    for position, (weight, term) in enumerate(zip(operands, terms, strict=True)):
        shadow = shadow_of(weight)
        if shadow is None or len(set(term)) < len(term):
            continue
        others = set("".join(terms[:position] + terms[position + 1 :]))
        groups = [axis for axis in term if axis in output and axis in others]
        outs = [axis for axis in term if axis in output and axis not in others]
        ins = [axis for axis in term if axis not in output]
        if outs and ins:
            order = [term.index(axis) for axis in groups + outs + ins]
            yield weight, _Consumed(shadow.permute(order), "einsum", len(groups), len(outs))


def _read_attention(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read `nn.MultiheadAttention`: its packed projection is three matrices."""
    bound = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    arguments = bound.arguments
    packed: Any = arguments.get("in_proj_weight")
    if (shadow := shadow_of(packed)) is not None:
        for label, part in zip("qkv", shadow.chunk(3), strict=True):
            yield packed, _Consumed(part, "attention", label=label)
    for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"):
        weight: Any = arguments.get(key)
        if (shadow := shadow_of(weight)) is not None:
            yield weight, _Consumed(shadow, "attention")


def _read_recurrent(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read an LSTM, GRU or RNN: each gate matrix stack is one matrix, as the layer holds it."""
    for tensor in _tensors((args, kwargs)):
        if (shadow := shadow_of(tensor)) is not None and shadow.ndim == 2:
            yield tensor, _Consumed(shadow, "recurrent")


_READERS: dict[str, _Reader] = {
    "linear": _read_linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), _read_product("left right")),
    **dict.fromkeys(
        ("addmm", "baddbmm", "addbmm", "addmv", "addmm_", "baddbmm_"),
        _read_product("input left right"),
    ),
    "rmatmul": _read_reversed_product,
    **{f"conv{d}d": _read_convolution(f"conv{d}d") for d in (1, 2, 3)},
    **{
        f"conv_transpose{d}d": _read_transposed_convolution(f"conv_transpose{d}d")
        for d in (1, 2, 3)
    },
    "embedding": _read_embedding,
    "embedding_bag": _read_embedding,
    "getitem": _read_lookup,
    "bilinear": _read_bilinear,
    "einsum": _read_einsum,
    "multi_head_attention_forward": _read_attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _read_recurrent),
}
