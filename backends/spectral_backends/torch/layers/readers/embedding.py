"""Lookups in a table: embeddings, bags of embeddings, and indices of a parameter."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectral_backends.torch.layers.readers.base import (
    Consumed,
    Found,
    Reader,
    Rows,
    ViewOf,
    bind,
    positions,
)

__all__ = ["READERS"]


def _read_embedding(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    """Read a table (entries, width): width outputs of a one-hot input."""
    names = "input weight padding_idx max_norm norm_type scale_grad_by_freq"
    bound = bind(names, args, kwargs)
    if (tracked := view_of(bound["weight"])) is not None and tracked.ndim == 2:
        scaled = bound.get("scale_grad_by_freq")
        kind = "embedding with scale_grad_by_freq" if scaled else "embedding"
        rows = _embedding_rows(
            bound["input"], tracked.shape[0], bound.get("padding_idx"), bound["weight"]
        )
        yield bound["weight"], Consumed(tracked.mT, kind, usable=not scaled, rows=rows)


def _read_bag(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    """Read a bag of embeddings, which reduces its positions out of sight."""
    for weight, consumed in _read_embedding(args, kwargs, view_of):
        yield weight, replace(consumed, rows=None)


def _read_lookup(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    table, index = args[0], args[1]
    first = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if isinstance(first, Tensor) and not first.is_floating_point() and first.dtype != torch.bool:
        yield from _read_embedding((first, table), {}, view_of)


def _embedding_rows(tokens: Tensor, entries: int, padding_idx: int | None, like: Tensor) -> Rows:
    """Return the rows of a table lookup: one-hot inputs, and zeros for the padding entry."""

    def without_padding(rows: Tensor) -> Tensor:
        if padding_idx is not None:
            rows = rows * (tokens != padding_idx % entries).unsqueeze(-1)
        return positions(rows)

    def inputs() -> Tensor:
        one_hot = functional.one_hot(tokens.long() % entries, entries)
        return without_padding(one_hot.to(like.dtype))

    def project(v: Tensor) -> Tensor:
        return without_padding(v[tokens.long() % entries])

    return Rows(inputs, positions, project)


READERS: dict[str, Reader] = {
    "embedding": _read_embedding,
    "embedding_bag": _read_bag,
    "getitem": _read_lookup,
}
