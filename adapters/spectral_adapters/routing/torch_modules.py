"""The layer type of a parameter, the matrices that it holds, and output heads."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectral_adapters.routing.names import (
    FUSED,
    TYPE_ALPHAS,
    kind_of_name,
    named_embedding,
    named_head,
)

__all__ = ["TYPE_ALPHAS", "LayerType", "embedding_reason", "layer_type", "output_heads"]

_INTERLEAVED = {"query_key_value"}
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KEY_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")


@dataclass(frozen=True)
class LayerType:
    """A layer's type, its matrices, and the reason for both.

    Parameters
    ----------
    kind : str
        A key of `TYPE_ALPHAS`.
    matrices : str
        A spec for `spectral_core.MatrixSpec.parse`, or ``"stack"``. It is empty if it is not known.
    reason : str
        The reason that the routing table shows.
    """

    kind: str
    matrices: str
    reason: str


def layer_type(
    module: nn.Module | None, path: str, name: str, parameter: Tensor, parent: nn.Module | None
) -> LayerType:
    """Recognise the layer of a parameter with two or more axes.

    Parameters
    ----------
    module, parent : nn.Module or None
        The module that holds the parameter, and the module that holds that one. Both are None if
        only the parameter is known.
    path : str
        The path of the module in the model, without wrappers.
    name : str
        The name of the parameter in the module.
    parameter : Tensor
        The parameter. Only its shape counts.
    """
    if isinstance(module, _ConvNd):
        kind = "conv-transpose" if isinstance(module, _ConvTransposeNd) else "conv"
        groups = f" groups={module.groups}" if module.groups > 1 else ""
        return LayerType("conv", kind + groups, type(module).__name__)
    if isinstance(module, nn.MultiheadAttention):
        fused = name == "in_proj_weight"
        return LayerType("attention", "qkv" if fused else "matrix", "MultiheadAttention")
    for recurrent, gates in _GATES.items():
        if isinstance(module, recurrent) and name.startswith(("weight_ih", "weight_hh")):
            return LayerType("linear", f"matrix rows={gates}", f"{type(module).__name__} by gates")
    if parameter.ndim == 2:
        return _two_axes(module, path, name, parameter, parent)
    if module is None:
        return LayerType("conv", "conv", f"{parameter.ndim} axes: taken for a convolution")
    if parameter.ndim == 3:
        kind = kind_of_name(f"{path}.{name}", parameter.shape[1], parameter.shape[2])
        return LayerType(kind, "stack", "three axes: a stack of matrices")
    return LayerType("linear", "", f"{parameter.ndim} axes of unknown meaning")


def embedding_reason(module: nn.Module, path: str, name: str) -> str:
    """Say why a parameter is an embedding, or return an empty string."""
    kind = type(module).__name__
    if "Embedding" in kind:
        return f"embedding: {kind}"
    if isinstance(module, (nn.Linear, _ConvNd)) or kind == "Conv1D":
        return ""  # a patch_embed.proj is a linear map
    full = f"{path}.{name}".strip(".")
    return f"embedding: its name {name!r}" if named_embedding(full) else ""


def output_heads(model: nn.Module, clean: Any = str) -> dict[int, str]:
    """Return the reason why a weight is an output head, by the identity of the weight.

    The model's own word counts first (`get_output_embeddings`, `get_classifier`), then names, then
    the last `nn.Linear`, unless it is the last of a row of equal blocks.
    """
    found: dict[int, str] = {}
    for method in ("get_output_embeddings", "get_classifier"):
        for module in _answer(model, method):
            found |= {id(w): f"output head: {method}()" for w in _last_weight(module)}
    if found:
        return found
    for path, module in model.named_modules():
        if path and named_head(clean(path)):
            found |= {id(w): f"output head: named {clean(path)!r}" for w in _last_weight(module)}
    if found:
        return found
    linear = [(clean(path), m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear or _in_equal_blocks(linear[-1][0], [path for path, _ in linear]):
        return {}
    return {id(linear[-1][1].weight): "output head: the last Linear"}


def _two_axes(
    module: nn.Module | None, path: str, name: str, parameter: Tensor, parent: nn.Module | None
) -> LayerType:
    rows, columns = parameter.shape
    stored = type(module).__name__ if module is not None else "two axes"
    transposed = stored == "Conv1D"  # of transformers: (inputs, outputs)
    out, inputs = (columns, rows) if transposed else (rows, columns)
    named = path if name == "weight" else f"{path}.{name}".strip(".")
    last = re.sub(r"_weight$", "", named.lower().rsplit(".", 1)[-1])
    if last in FUSED:
        sizes, reason = _fused_sizes(out, inputs, parent)
        cut = f"matrix {'columns' if transposed else 'rows'}={sizes}" if sizes else "matrix"
        return LayerType("attention", cut, f"{stored} named {last!r}: {reason}")
    if last in _INTERLEAVED:
        reason = "heads interleaved: taken whole; name its parts with route="
        return LayerType("attention", "matrix", f"{stored} named {last!r}: {reason}")
    kind = kind_of_name(named, out, inputs)
    word = f"{stored} named {last!r}" if kind != "linear" else stored
    return LayerType(kind, "matrix", word)


def _fused_sizes(out: int, inputs: int, parent: nn.Module | None) -> tuple[str, str]:
    """Return the sizes of fused queries, keys and values as in a spec, or none; with the reason."""
    config = getattr(parent, "config", None)
    heads = _count(parent, _HEAD_COUNTS) or _count(config, _HEAD_COUNTS)
    key_heads = _count(parent, _KEY_HEAD_COUNTS) or _count(config, _KEY_HEAD_COUNTS)
    if heads and key_heads and key_heads != heads and out % (heads + 2 * key_heads) == 0:
        width = out // (heads + 2 * key_heads)
        query, key = heads * width, key_heads * width
        return f"{query},{key},{key}", f"{heads} heads of queries, {key_heads} of keys"
    if out == 3 * inputs or (heads and key_heads in (None, heads) and out % (3 * heads) == 0):
        return "3", "queries, keys and values"
    if inputs < out < 3 * inputs and (out - inputs) % 2 == 0:
        key = (out - inputs) // 2
        return f"{inputs},{key},{key}", "queries as wide as the input, grouped keys"
    return "", "parts not known: taken whole; name them with route="


def _count(holder: Any, names: Iterable[str]) -> int | None:
    for name in names:
        if isinstance(value := getattr(holder, name, None), int):
            return value
    return None


def _answer(model: nn.Module, method: str) -> Iterator[nn.Module]:
    try:
        answer = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return
    for module in answer if isinstance(answer, (tuple, list)) else (answer,):
        if isinstance(module, nn.Module):
            yield module


def _last_weight(module: nn.Module) -> list[Tensor]:
    """Return the last weight matrix in a head, in a list, or none."""
    found = [getattr(child, "weight", None) for child in module.modules()]
    weights = [weight for weight in found if isinstance(weight, Tensor) and weight.ndim >= 2]
    return weights[-1:]


def _in_equal_blocks(path: str, paths: list[str]) -> bool:
    """Return whether a path such as ``layers.3.linear2`` has the same module in other blocks."""
    if path.rsplit(".", 1)[-1].isdigit():
        return False
    pattern = re.sub(r"(^|\.)\d+(?=\.)", r"\1#", path)
    return sum(re.sub(r"(^|\.)\d+(?=\.)", r"\1#", other) == pattern for other in paths) > 1
