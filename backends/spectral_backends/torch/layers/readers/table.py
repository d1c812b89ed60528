"""What each torch operation consumes: which of its arguments is a weight, and in what orientation.

A reader looks at the arguments of one call and yields the followed tensors among them that serve as
weight matrices, with their axes put in the order groups, outputs, inputs.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectral_backends.torch.instruments.nested import tensors_in
from spectral_backends.torch.layers.readers.rows import (
    Rows,
    convolution_rows,
    embedding_rows,
    linear_rows,
    product_rows,
    transposed_convolution_rows,
)

__all__ = ["READERS", "Consumed"]


@dataclass(frozen=True)
class Consumed:
    """What an operation says of a parameter: axes are groups, then outputs, then inputs.

    `usable` is False where the operation's gradient is not the derivative of what it computes.
    `rows` makes inputs and outputs of the operation, position by position; None where the operation
    hides them.
    """

    shadow: Tensor
    kind: str
    group_axes: int = 0
    out_axes: int = 1
    label: str = ""
    usable: bool = True
    rows: Rows | None = None


_ShadowOf = Callable[[Any], Tensor | None]
_Found = Iterator[tuple[Tensor, Consumed]]
_Reader = Callable[[tuple[Any, ...], dict[str, Any], _ShadowOf], _Found]


def _bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names.split(), args, strict=False)) | kwargs


def _read_linear(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    bound = _bind("input weight bias", args, kwargs)
    if (shadow := shadow_of(bound["weight"])) is not None:
        yield bound["weight"], Consumed(shadow, "linear", rows=linear_rows(bound["input"]))


def _read_product(names: str, *, by_position: bool = True) -> _Reader:
    """Read ``left @ right``, the last two names: a right operand's outputs are its last axis.

    `by_position` is False where the result is summed over the batch of products.
    """

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        bound = _bind(names, args, kwargs)
        left, right = (bound[key] for key in names.split()[-2:])
        scale = float(bound.get("alpha", 1))

        def rows(other: Tensor, groups: int, *, left: bool) -> Rows | None:
            return product_rows(other, groups, left=left, scale=scale) if by_position else None

        if (shadow := shadow_of(left)) is not None and shadow.ndim >= 2:
            groups = shadow.ndim - 2
            yield left, Consumed(shadow, "linear", groups, rows=rows(right, groups, left=True))
        if (shadow := shadow_of(right)) is not None and shadow.ndim >= 2:
            groups = shadow.ndim - 2
            yield right, Consumed(shadow.mT, "linear", groups, rows=rows(left, groups, left=False))

    return read


def _read_reversed_product(
    args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf
) -> _Found:
    return _read_product("input other")(args[1::-1], kwargs, shadow_of)


def _read_convolution(kind: str) -> _Reader:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        bound = _bind("input weight bias stride padding dilation groups", args, kwargs)
        if (shadow := shadow_of(bound["weight"])) is not None:
            groups, kernel = bound.get("groups", 1), tuple(shadow.shape[2:])
            grouped = shadow.view(groups, -1, *shadow.shape[1:])
            stride, dilation = (_each(bound.get(k, 1), kernel) for k in ("stride", "dilation"))
            padding = _both_sides(bound.get("padding", 0), kernel, dilation)
            rows = convolution_rows(bound["input"], kernel, stride, padding, dilation, groups)
            yield bound["weight"], Consumed(grouped, kind, group_axes=1, rows=rows)

    return read


def _read_transposed_convolution(kind: str) -> _Reader:
    """Read kernels (inputs, outputs / groups, *k): one position's output takes (inputs, *k)."""

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
        names = "input weight bias stride padding output_padding groups dilation"
        bound = _bind(names, args, kwargs)
        if (shadow := shadow_of(bound["weight"])) is not None:
            groups, kernel = bound.get("groups", 1), tuple(shadow.shape[2:])
            grouped = shadow.view(groups, -1, *shadow.shape[1:]).transpose(1, 2)
            stride, padding, extra, dilation = (
                _each(bound.get(key, default), kernel)
                for key, default in (
                    ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)
                )
            )  # fmt: skip
            rows = transposed_convolution_rows(
                bound["input"], kernel, stride, padding, extra, dilation, groups
            )
            yield bound["weight"], Consumed(grouped, kind, group_axes=1, rows=rows)

    return read


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return one number per axis of the kernel."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _both_sides(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis; "same" puts the odd one behind."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in _each(0 if padding == "valid" else padding, kernel)]


def _read_embedding(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read a table (entries, width): width outputs of a one-hot input."""
    names = "input weight padding_idx max_norm norm_type scale_grad_by_freq"
    bound = _bind(names, args, kwargs)
    if (shadow := shadow_of(bound["weight"])) is not None and shadow.ndim == 2:
        scaled = bound.get("scale_grad_by_freq")
        kind = "embedding with scale_grad_by_freq" if scaled else "embedding"
        rows = embedding_rows(
            bound["input"], shadow.shape[0], bound.get("padding_idx"), bound["weight"]
        )
        yield bound["weight"], Consumed(shadow.mT, kind, usable=not scaled, rows=rows)


def _read_bag(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read a bag of embeddings, which reduces its positions out of sight."""
    for weight, consumed in _read_embedding(args, kwargs, shadow_of):
        yield weight, replace(consumed, rows=None)


def _read_lookup(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    table, index = args[0], args[1]
    first = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if isinstance(first, Tensor) and not first.is_floating_point() and first.dtype != torch.bool:
        yield from _read_embedding((first, table), {}, shadow_of)


def _read_bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    bound = _bind("input1 input2 weight bias", args, kwargs)
    if (shadow := shadow_of(bound["weight"])) is not None:
        pairs = bound["input1"].unsqueeze(-1) * bound["input2"].unsqueeze(-2)
        rows = linear_rows(pairs.flatten(-2))
        yield bound["weight"], Consumed(shadow, "bilinear", rows=rows)


def _read_einsum(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read a subscript: shared and kept = groups, kept only by the weight = outputs."""
    equation, operands = kwargs.get("equation", args[0] if args else None), args[1:]
    operands = kwargs.get("operands", operands)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        return
    terms, output = _subscripts(equation)
    for position, (weight, term) in enumerate(zip(operands, terms, strict=True)):
        shadow = shadow_of(weight)
        if shadow is None or len(set(term)) < len(term) or _ELLIPSIS in term:
            continue
        others = set("".join(terms[:position] + terms[position + 1 :]))
        groups = [axis for axis in term if axis in output and axis in others]
        outs = [axis for axis in term if axis in output and axis not in others]
        ins = [axis for axis in term if axis not in output]
        if outs and ins:
            order = [term.index(axis) for axis in groups + outs + ins]
            rows = _einsum_rows(terms, operands, position, output, groups, outs, ins)
            yield (
                weight,
                Consumed(shadow.permute(order), "einsum", len(groups), len(outs), rows=rows),
            )


def _einsum_rows(
    terms: list[str],
    operands: tuple[Any, ...],
    position: int,
    output: str,
    groups: list[str],
    outs: list[str],
    ins: list[str],
) -> Rows | None:
    """Return the rows of one operand as the weight: the others together make the inputs."""
    others = [term for i, term in enumerate(terms) if i != position]
    if not set(ins) <= set("".join(others)):
        return None  # summed over by the weight alone
    rest = [axis for axis in output if axis not in terms[position]]
    given = tuple(operand for i, operand in enumerate(operands) if i != position)

    def arrange(equation: str, features: list[str], *tensors: Tensor) -> Tensor:
        target = "".join(groups + rest + features)
        spelled = f"{equation}->{target}".replace(_ELLIPSIS, "...")
        rows = torch.einsum(spelled, *tensors)
        rows = rows.flatten(-len(features))
        shape, middle = rows.shape[: len(groups)], rows.shape[len(groups) : -1]
        first = middle[0] if middle else 1
        return rows.reshape(*shape, first, prod(middle[1:]), rows.shape[-1])

    return Rows.of(
        lambda: arrange(",".join(others), ins, *given), lambda y: arrange(output, outs, y)
    )


_ELLIPSIS = "…"


def _subscripts(equation: str) -> tuple[list[str], str]:
    """Return the subscripts of the operands and of the result, an ellipsis as one letter."""
    inputs, arrow, output = equation.replace(" ", "").replace("...", _ELLIPSIS).partition("->")
    if not arrow:  # by convention the letters that occur once, sorted, behind the ellipsis
        once = sorted(axis for axis in set(inputs) - {",", _ELLIPSIS} if inputs.count(axis) == 1)
        output = (_ELLIPSIS if _ELLIPSIS in inputs else "") + "".join(once)
    return inputs.split(","), output


def _read_attention(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read `nn.MultiheadAttention`: its packed projection is three matrices."""
    bound = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    arguments = bound.arguments
    packed: Any = arguments.get("in_proj_weight")
    if (shadow := shadow_of(packed)) is not None:
        for label, part in zip("qkv", shadow.chunk(3), strict=True):
            yield packed, Consumed(part, "attention", label=label)
    for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"):
        weight: Any = arguments.get(key)
        if (shadow := shadow_of(weight)) is not None:
            yield weight, Consumed(shadow, "attention")


def _read_recurrent(args: tuple[Any, ...], kwargs: dict[str, Any], shadow_of: _ShadowOf) -> _Found:
    """Read an LSTM, GRU or RNN: each gate matrix stack is one matrix, as the layer holds it."""
    for tensor in tensors_in((args, kwargs)):
        if (shadow := shadow_of(tensor)) is not None and shadow.ndim == 2:
            yield tensor, Consumed(shadow, "recurrent")


READERS: dict[str, _Reader] = {
    "linear": _read_linear,
    "matmul": _read_product("input other"),
    **dict.fromkeys(("mm", "bmm"), _read_product("input mat2")),
    "mv": _read_product("input vec"),
    **dict.fromkeys(("addmm", "addmm_"), _read_product("input mat1 mat2")),
    **dict.fromkeys(("baddbmm", "baddbmm_"), _read_product("input batch1 batch2")),
    **dict.fromkeys(("addbmm", "addbmm_"), _read_product("input batch1 batch2", by_position=False)),
    **dict.fromkeys(("addmv", "addmv_"), _read_product("input mat vec")),
    "rmatmul": _read_reversed_product,
    **{f"conv{d}d": _read_convolution(f"conv{d}d") for d in (1, 2, 3)},
    **{
        f"conv_transpose{d}d": _read_transposed_convolution(f"conv_transpose{d}d")
        for d in (1, 2, 3)
    },
    "embedding": _read_embedding,
    "embedding_bag": _read_bag,
    "getitem": _read_lookup,
    "bilinear": _read_bilinear,
    "einsum": _read_einsum,
    "multi_head_attention_forward": _read_attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _read_recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _read_recurrent),
}
