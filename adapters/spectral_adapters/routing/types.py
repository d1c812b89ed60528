"""The type of a layer, which may decide its α, and matrices that are too thin for T."""

from collections.abc import Iterable

from spectral_adapters.routing.names import kind_of_name
from spectral_core import MatrixLayout

__all__ = ["kind_of_matrices", "thin_reason"]


def kind_of_matrices(path: str, layout: MatrixLayout, known: str = "") -> str:
    """Return the layer type, a key of `TYPE_ALPHAS`, of a parameter that is split by a spec.

    A parameter is a convolution if its spec is that of one. The type of other matrices is the one
    that their module or name says, also if a convolution would have been expected without a spec.

    Parameters
    ----------
    path : str
        The name of the layer.
    layout : MatrixLayout
        The split of the parameter, which is outputs × inputs.
    known : str, optional
        The type of its module.
    """
    if layout.spec.kind != "matrix":
        return "conv"
    return known if known not in ("", "conv") else kind_of_name(path, *layout.shape[-2:])


def thin_reason(matrices: Iterable[tuple[int, int, int]]) -> str:
    """Say that a matrix has a side of 1, for which T is only a scale, or return nothing."""
    for _, m, n in matrices:
        if min(m, n) == 1:
            return f"its matrices are {m}×{n}"
    return ""
