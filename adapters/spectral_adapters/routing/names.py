"""Facts told by names of parameters: the type of a layer, embeddings, output heads."""

import re

__all__ = [
    "FUSED",
    "TYPE_ALPHAS",
    "kind_of_name",
    "named_embedding",
    "named_head",
]

TYPE_ALPHAS = {"conv": 2.0, "attention": 1.2, "mlp-up": 0.8, "mlp-down": 1.15, "linear": 1.0}
"""Typical α by layer type (Theory 6); ``"linear"`` is every other matrix."""

FUSED = {"qkv", "c_attn", "in_proj", "qkv_proj", "wqkv", "to_qkv"}
"""Names of projections to queries, keys and values, one after the other."""

_ATTENTION = {
    "q_proj", "k_proj", "v_proj", "o_proj", "q", "k", "v", "query", "key", "value",
    "wq", "wk", "wv", "to_q", "to_k", "to_v", "to_out", "q_lin", "k_lin", "v_lin", "out_lin",
}  # fmt: skip
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "densereludense")
_UP = {"up_proj", "gate_proj", "c_fc", "gate_up_proj", "dense_h_to_4h", "intermediate"}
_DOWN = {"down_proj", "c_proj", "dense_4h_to_h"}
# These names say something only inside a repeated block.
_UP_IN_BLOCK = {"up", "gate", "fc_in", "fc1", "linear1", "lin1", "w1", "w3", "wi", "wi_0", "wi_1"}
_DOWN_IN_BLOCK = {"down", "fc_out", "fc2", "linear2", "lin2", "w2", "wo"}
_HEADS = {"head", "heads", "lm_head", "classifier", "logits", "score"}
_SHALLOW_HEADS = {"fc", "output", "out", "output_layer"}
_EMBEDDING_WORDS = re.compile(r"embed|(^|[._])(pos|wte|wpe|tok|token|cls)([._]|$)|position|_token")


def kind_of_name(path: str, out: int, inputs: int) -> str:
    """Return the layer type, a key of `TYPE_ALPHAS`, of a matrix by its dotted path.

    Parameters
    ----------
    path : str
        The path of the layer, or of the parameter if its name says more.
    out, inputs : int
        The widths of the matrix: outputs and inputs.
    """
    segments = path.lower().split(".")
    last, in_block = segments[-1], any(segment.isdigit() for segment in segments)
    if last in _ATTENTION or any("attn" in s or "attention" in s for s in segments):
        return "attention"
    if last in _UP or "intermediate" in segments or (in_block and last in _UP_IN_BLOCK):
        return "mlp-up"
    if last in _DOWN or (in_block and (last in _DOWN_IN_BLOCK or "output" in segments)):
        return "mlp-down"
    if any(word in segment for segment in segments for word in _MLP) and out != inputs:
        return "mlp-up" if out > inputs else "mlp-down"
    return "linear"


def named_embedding(path: str) -> bool:
    """Return whether a dotted path names an embedding."""
    return bool(_EMBEDDING_WORDS.search(path.lower()))


def named_head(path: str) -> bool:
    """Return whether the dotted path of a layer names an output head."""
    segments = path.lower().split(".")
    if any(segment.isdigit() for segment in segments) or len(segments) > 3:
        return False
    if any(kind_of_name(segment, 1, 1) == "attention" for segment in segments):
        return False
    last = segments[-1]
    return last in _HEADS or (
        last in _SHALLOW_HEADS and len(segments) <= (2 if last == "fc" else 1)
    )
