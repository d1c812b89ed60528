"""Einstein sums: the subscripts say which axes are groups, outputs and inputs."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.layers.readers.base import Consumed, Found, Reader, Rows, ViewOf

__all__ = ["READERS"]


def _read_einsum(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    """Read a subscript: shared and kept = groups, kept only by the weight = outputs."""
    equation, operands = kwargs.get("equation", args[0] if args else None), args[1:]
    operands = kwargs.get("operands", operands)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        return
    terms, output = _subscripts(equation)
    for position, (weight, term) in enumerate(zip(operands, terms, strict=True)):
        tracked = view_of(weight)
        if tracked is None or len(set(term)) < len(term) or _ELLIPSIS in term:
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
                Consumed(tracked.permute(order), "einsum", len(groups), len(outs), rows=rows),
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
        return None  # an axis of the weight alone is summed over
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


READERS: dict[str, Reader] = {"einsum": _read_einsum}
