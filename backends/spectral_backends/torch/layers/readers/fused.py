"""Fused operations, which hide what happens at single positions: attention, recurrent layers."""

import inspect
from typing import Any

from torch.nn import functional

from spectral_backends.torch.instruments.nested import tensors_in
from spectral_backends.torch.layers.readers.base import Consumed, Found, Reader, ViewOf

__all__ = ["READERS"]


def _read_attention(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    """Read `nn.MultiheadAttention`: its packed projection is three matrices."""
    bound = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    arguments = bound.arguments
    packed: Any = arguments.get("in_proj_weight")
    if (tracked := view_of(packed)) is not None:
        for label, part in zip("qkv", tracked.chunk(3), strict=True):
            yield packed, Consumed(part, "attention", label=label)
    for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"):
        weight: Any = arguments.get(key)
        if (tracked := view_of(weight)) is not None:
            yield weight, Consumed(tracked, "attention")


def _read_recurrent(args: tuple[Any, ...], kwargs: dict[str, Any], view_of: ViewOf) -> Found:
    """Read an LSTM, GRU or RNN: each gate matrix stack is one matrix, as the layer holds it."""
    for tensor in tensors_in((args, kwargs)):
        if (tracked := view_of(tensor)) is not None and tracked.ndim == 2:
            yield tensor, Consumed(tracked, "recurrent")


READERS: dict[str, Reader] = {
    "multi_head_attention_forward": _read_attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _read_recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _read_recurrent),
}
