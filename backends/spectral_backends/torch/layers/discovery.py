"""The layers of a model, named, from what its operations did with the parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from spectral_backends.torch.distributed.shards import WHOLE_COPY, is_distributed
from spectral_backends.torch.layers.matrix_view import MatrixView
from spectral_backends.torch.layers.recorder import MatrixUse, OperationRecorder
from spectral_core.curvature.problem import LayerInfo
from spectral_core.matrices.names import MODULE_ENDING, distinct_name, layer_names

__all__ = ["Layer", "image_kernels", "name_layers", "parameters_of"]

MIN_GROUP_RANK = 3
"""The shortest side that a group may have: below it a fit has too few directions."""

_SHARDED = f"it is a distributed tensor (DTensor); {WHOLE_COPY}"


@dataclass(frozen=True)
class Layer:
    """A weight matrix: its public description, parameter, parameter slice and work.

    `work` is the number of multiply-adds of its uses in the forward pass of the first batch.
    """

    info: LayerInfo
    parameter: str
    view: MatrixView
    work: float


def name_layers(
    recorder: OperationRecorder, parameters: Mapping[str, Tensor], frozen: frozenset[str]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by name, and the parameters that are no layer, with the reason.

    Parameters with fewer than two axes (biases, norms) are neither. Layers come in the order of
    the forward pass.
    """
    matrices = [name for name, p in parameters.items() if p.ndim >= 2]
    bases = dict(zip(matrices, layer_names(matrices, MODULE_ENDING), strict=True))
    unused = [name for name in bases if name not in recorder.order]
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name in recorder.order + unused:
        base, uses = bases[name], recorder.uses[name]
        reason = (
            _SHARDED
            if is_distributed(parameters[name])
            else _why_no_layer(name in frozen, uses.matrices, uses.other_operations)
        )
        if reason:
            skipped[base] = reason
            continue
        begins = sorted(use.view.offset for use in uses.matrices)
        for number, use in enumerate(uses.matrices):
            label = use.label or ("" if len(uses.matrices) == 1 else f"part{number}")
            full = f"{base}.{label}" if label else base
            full = distinct_name(full, layers, bases.values() if label else ())
            index = begins.index(use.view.offset)
            info = LayerInfo(full, "+".join(use.kinds), use.view.shape, name, index)
            layers[full] = Layer(info, name, use.view, use.work)
    return layers, skipped


def parameters_of(layers: Iterable[Layer]) -> list[str]:
    """Return the parameters that layers are in, each once."""
    return list(dict.fromkeys(layer.parameter for layer in layers))


def image_kernels(layers: Iterable[Layer]) -> list[str]:
    """Return the parameters that convolutions of images use."""
    return parameters_of(layer for layer in layers if "conv2d" in layer.info.kind)


def _why_no_layer(frozen: bool, matrices: list[MatrixUse], others: list[str]) -> str:
    if frozen:
        return "frozen; call requires_grad_(True) on it to measure it"
    if not matrices and not others:
        return (
            "no operation of the model used it on the first batch, or one out of sight did, as in "
            "a scripted module or under vmap"
        )
    if not matrices:
        seen = ", ".join(sorted(set(others)))
        return f"no matrix product, convolution or lookup used it as it is stored (seen: {seen})"
    if len(matrices) > 1 and all(min(use.view.shape) < MIN_GROUP_RANK for use in matrices):
        m, n = matrices[0].view.shape
        return (
            f"its {len(matrices)} groups are {m}×{n} matrices, of rank {min(m, n)} at most: "
            "too few directions for a fit"
        )
    return ""
