"""Attention written out in products and a softmax, for observers of its parts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["multi_head_attention", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention` from products."""
    weights = _weights(query, key, attn_mask, is_causal, scale, enable_gqa)
    if dropout_p > 0:
        weights = functional.dropout(weights, dropout_p, True)
    return weights @ (_repeated(value, query) if enable_gqa else value)


def _weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    key = _repeated(key, query) if grouped else key
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.mT
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    elif mask is not None and mask.dtype == torch.bool:
        mask = ~mask
    if mask is None:
        return torch.softmax(scores, -1)
    mask = _added(mask, scores)
    scores = scores + mask  # a sum, which passes tangents on unchanged
    nothing = (mask == float("-inf")).all(-1, keepdim=True)
    if causal or not bool(nothing.any()):
        return torch.softmax(scores, -1)
    # A query whose keys are all masked gets zeros.
    return torch.softmax(scores.masked_fill(nothing, 0), -1).masked_fill(nothing, 0)


def _repeated(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], -3)


def multi_head_attention(
    observed: AbstractContextManager[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run `multi_head_attention_forward` as products that an observer sees.

    The function hides its projections. Here products run with samples first, as observers expect.
    An attention with extra keys is run as it is, between its products and with unit weights:
    multiplying by a unit matrix changes no value.

    Parameters
    ----------
    observed : context manager
        The context in which calls are observed.
    args, kwargs
        The arguments of `multi_head_attention_forward`.
    """
    given = signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    with observed:
        weights = (
            [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
            if a["use_separate_proj_weight"]
            else list(a["in_proj_weight"].chunk(3))
        )
        biases: Any = [None] * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
        projected = [
            _samples_first(functional.linear, a[name], weight, bias)
            for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
        ]
    extra = ("bias_k", "bias_v", "static_k", "static_v")
    if a["add_zero_attn"] or any(a[name] is not None for name in extra):
        attended, shown = _with_unit_weights(a, projected)
    else:
        with observed:
            attended, shown = _attend(a, projected)
    with observed:
        out = _samples_first(functional.linear, attended, a["out_proj_weight"], a["out_proj_bias"])
    return out, shown


def _attend(a: dict[str, Any], projected: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the result of the heads, shaped like the query, and their weights if asked for."""
    heads, single = a["num_heads"], projected[0].ndim == 2
    q, k, v = (
        torch.unflatten(p.unsqueeze(1) if single else p, -1, (heads, -1)).permute(1, 2, 0, 3)
        for p in projected
    )  # (B, heads, positions, width)
    mask = _mask(a, q, k)
    weights = _weights(q, k, mask, False, None, False)
    if a["training"] and a["dropout_p"] > 0:
        weights = functional.dropout(weights, a["dropout_p"], True)
    out = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    shown = None
    if a["need_weights"]:
        shown = weights.mean(1) if a["average_attn_weights"] else weights
        shown = shown.squeeze(0) if single else shown
    return out.squeeze(1) if single else out, shown


def _mask(a: dict[str, Any], q: Tensor, k: Tensor) -> Tensor | None:
    """Return both masks as one that is added to the scores."""
    total = None
    attention, padding = a["attn_mask"], a["key_padding_mask"]
    if attention is not None:
        attention = _added(attention, q)
        total = (
            attention.reshape(-1, q.shape[1], *attention.shape[-2:])
            if attention.ndim == 3
            else attention
        )
    if padding is not None:
        padding = _added(padding, q).reshape(-1, 1, 1, k.shape[2])
        total = padding if total is None else total + padding
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to add: a true entry of a boolean one leaves its key out."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _with_unit_weights(a: dict[str, Any], projected: list[Tensor]) -> Any:
    unit = torch.eye(a["embed_dim_to_check"], dtype=projected[0].dtype, device=projected[0].device)
    inner = a | dict(zip(("query", "key", "value"), projected, strict=True))
    inner |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
    inner |= {"q_proj_weight": unit, "k_proj_weight": unit, "v_proj_weight": unit}
    inner |= {"out_proj_weight": unit, "out_proj_bias": None}
    return functional.multi_head_attention_forward(**inner)


def _samples_first(linear: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """Apply a product to ``(L, B, E)`` with the samples in front."""
    if x.ndim < 3:
        return linear(x.unsqueeze(0), weight, bias).squeeze(0)
    return linear(x.transpose(0, 1), weight, bias).transpose(0, 1)
