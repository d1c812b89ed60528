"""What happens to each leaf of a tree of JAX arrays: its matrices, its α, and why."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from spectral_adapters.routing.dimension_numbers import (
    MatrixAxes,
    SpectralDimensionNumbers,
    axes_text,
    is_axes,
    layout_of,
)
from spectral_adapters.routing.names import (
    FUSED,
    TYPE_ALPHAS,
    kind_of_name,
    named_embedding,
    named_head,
)
from spectral_adapters.routing.table import Route, RoutingTable
from spectral_core import InputError
from spectral_core._extras import require
from spectral_core.preconditioning.function import is_number

if TYPE_CHECKING:
    import jax
else:
    jax = require("jax", "optax", "Spectral Newton for JAX")

__all__ = [
    "LeafRule",
    "Tree",
    "alphas_of",
    "default_dimension_numbers",
    "leaf_names",
    "routing_table",
    "rules_of",
    "spread",
]

Tree: TypeAlias = Any
"""A pytree of JAX arrays."""

AxesOrTree: TypeAlias = MatrixAxes | Tree | Callable[[Tree], Tree] | None
AlphaOrTree: TypeAlias = float | str | Tree | Callable[[Tree], Tree]

_WEIGHTS = {"kernel", "w", "weight"}
_VECTORS = {"bias", "b", "scale", "offset", "gamma", "beta", "mean", "var"}
_HEADED = dict.fromkeys(("query", "key", "value"), SpectralDimensionNumbers(0, (1, 2)))
_HEADED["out"] = SpectralDimensionNumbers((0, 1), 2)


@dataclass(frozen=True)
class LeafRule:
    """The rule of one leaf.

    Parameters
    ----------
    axes : MatrixAxes or None
        Its matrices for T; None for AdamW.
    kind : str
        Layer type, a key of `TYPE_ALPHAS`; empty for AdamW.
    reason : str
        Why.
    """

    axes: MatrixAxes | None
    kind: str
    reason: str


def default_dimension_numbers(params: Tree) -> Tree:
    """Return the dimension numbers of T's leaves, and None for those of AdamW.

    As in `optax.contrib.muon` T gets leaves of two axes, but for what a name says to be an
    embedding, an output head, a bias or a norm, and what has a side of 1. Beyond two axes it gets
    a ``kernel`` or ``w`` of a layer whose path says ``conv``, as (kernel …, in, out), and the
    projections of Flax's attention, (in, heads, width) and (heads, width, out), as one matrix each.

    Parameters
    ----------
    params : pytree of array
        Of which shapes and paths count; `jax.ShapeDtypeStruct` will do.

    Returns
    -------
    pytree
        Of the same structure. Change what you know better and pass it on.
    """
    axes = [rule.axes for rule in rules_of(params, None)]
    return jax.tree.unflatten(jax.tree.structure(params), axes)


def rules_of(tree: Tree, dimension_numbers: AxesOrTree) -> list[LeafRule]:
    """Return the rule of each leaf.

    Parameters
    ----------
    tree : pytree of array
        Parameters or updates.
    dimension_numbers : MatrixAxes, pytree, callable or None
        One for all leaves, or a prefix of the tree, or a function of the tree that returns one;
        None for the default rule.

    Raises
    ------
    InputError
        If the numbers do not fit the tree or the shape of a leaf.
    """
    leaves = jax.tree.leaves(tree)
    names = leaf_names(tree)
    if dimension_numbers is None:
        return [_by_name(name, tuple(leaf.shape)) for name, leaf in zip(names, leaves, strict=True)]
    given = spread(dimension_numbers, tree, "weight_dimension_numbers", is_axes)
    return [
        _as_given(name, tuple(leaf.shape), axes)
        for name, leaf, axes in zip(names, leaves, given, strict=True)
    ]


def alphas_of(alpha: AlphaOrTree, tree: Tree, rules: Sequence[LeafRule]) -> list[Any]:
    """Return α of each leaf, None for AdamW's.

    Parameters
    ----------
    alpha : float, array, "per-type", pytree or callable
        One number for all, which may be traced, or by the layer's type (`TYPE_ALPHAS`), or a prefix
        of the tree, or a function of the tree that returns one.
    tree : pytree of array
        Parameters or updates.
    rules : sequence of LeafRule
        Of its leaves.

    Raises
    ------
    InputError
        If α is none of these or out of range.
    """
    if isinstance(alpha, str):
        if alpha != "per-type":
            raise InputError(
                f"alpha: {alpha!r} is unknown; pass a number in [0, 4], 'per-type', a tree of "
                "numbers or a function of the parameters that returns one."
            )
        return [TYPE_ALPHAS[rule.kind] if rule.axes is not None else None for rule in rules]
    found = []
    for name, rule, value in zip(
        leaf_names(tree), rules, spread(alpha, tree, "alpha"), strict=True
    ):
        found.append(None if rule.axes is None else _checked(value, name))
    return found


def routing_table(
    params: Tree, *, alpha: AlphaOrTree = 2.0, weight_dimension_numbers: AxesOrTree = None
) -> RoutingTable:
    """Return the rule, α and matrices of every parameter; ``print`` it.

    Parameters
    ----------
    params : pytree of array
        Of which shapes and paths count.
    alpha, weight_dimension_numbers
        As of `spectral_adapters.optax.spectral_newton`.

    Raises
    ------
    InputError
        If one does not fit the parameters.
    """
    rules = rules_of(params, weight_dimension_numbers)
    alphas = alphas_of(alpha, params, rules)
    leaves = jax.tree.leaves(params)
    by_type = isinstance(alpha, str)
    rows = zip(leaf_names(params), leaves, rules, alphas, strict=True)
    return RoutingTable([_route(*row, by_type) for row in rows])


def leaf_names(tree: Tree) -> list[str]:
    """Return the dotted paths of the leaves."""
    return [_dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def spread(
    prefix: Any, tree: Tree, name: str, is_value: Callable[[Any], bool] | None = None
) -> list[Any]:
    """Return the value of a prefix tree for each leaf of a tree.

    Parameters
    ----------
    prefix : pytree or callable
        A value, a prefix of the tree with values as leaves, or a function of the tree that
        returns one. None is a value too.
    tree : pytree
        Masked nodes and other nodes without leaves take no value.
    name : str
        Of the argument, for the error.
    is_value : callable, optional
        Whether a node of the prefix is a value.

    Raises
    ------
    InputError
        If it is no prefix.
    """
    # Modules of Equinox are callable, but they are trees and mean themselves.
    if callable(prefix) and jax.tree_util.all_leaves([prefix]):
        prefix = prefix(tree)
    found: list[Any] = []
    if not jax.tree.leaves(tree):  # also what stands for parameters in `optax.tree.map_params`
        return found

    def collect(value: Any, below: Tree) -> None:
        found.extend([value] * len(jax.tree.leaves(below)))

    def is_leaf(node: Any) -> bool:
        return node is None or (is_value is not None and is_value(node))

    try:
        jax.tree.map(collect, prefix, tree, is_leaf=is_leaf)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name}: its structure is no prefix of that of the parameters "
            f"({str(error).splitlines()[0]}); pass one value for all, or a tree with one for each."
        ) from error
    return found


def _dotted(path: Sequence[Any]) -> str:
    """Return a path as text; the attribute in which `flax.nnx` holds the array is left out."""
    if len(path) > 1 and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def _by_name(name: str, shape: tuple[int, ...]) -> LeafRule:
    last = name.rpartition(".")[2]
    layer = _layer(name)
    if last.lower() in _VECTORS:
        return LeafRule(None, "", f"named {last!r}")
    if len(shape) < 2:
        return LeafRule(None, "", "a vector" if shape else "a number")
    # The kernel of a layer is a linear map, whatever the layer's name: patch_embed.
    if last.lower() not in ("kernel", "w") and named_embedding(name):
        return LeafRule(None, "", "embedding: its name")
    if len(shape) == 2 and named_head(layer):
        return LeafRule(None, "", f"output head: named {layer!r}")
    axes = _default_axes(layer, last, shape)
    if axes is None:
        reason = f"{len(shape)} axes of unknown meaning; name them in weight_dimension_numbers"
        return LeafRule(None, "", reason)
    rule = _as_given(name, shape, axes)
    ((_, m, n),) = layout_of(shape, axes).matrices
    if min(m, n) == 1:
        return LeafRule(None, "", f"its matrices are {m}×{n}")
    return rule


def _default_axes(layer: str, last: str, shape: tuple[int, ...]) -> MatrixAxes | None:
    rank, projection = len(shape), layer.lower().rpartition(".")[2]
    outputs_first = last == "weight"  # as in Equinox and PyTorch
    if rank == 2 and projection in FUSED and max(shape) == 3 * min(shape):
        return "matrix rows=3" if shape[0] > shape[1] else "matrix columns=3"
    if rank == 2 or (last in _WEIGHTS and "conv" in layer.lower()):
        if outputs_first:
            return SpectralDimensionNumbers(_one_or_several(range(1, rank)), 0)
        return SpectralDimensionNumbers(_one_or_several(range(rank - 1)), rank - 1)
    if rank == 3 and last == "kernel" and projection in _HEADED:
        return _HEADED[projection]
    return None


def _one_or_several(axes: range) -> int | tuple[int, ...]:
    return axes[0] if len(axes) == 1 else tuple(axes)


def _as_given(name: str, shape: tuple[int, ...], axes: MatrixAxes | None) -> LeafRule:
    if axes is None:
        return LeafRule(None, "", "weight_dimension_numbers says None")
    if not is_axes(axes):
        raise InputError(
            f"weight_dimension_numbers: {axes!r} of {name!r}; pass SpectralDimensionNumbers, a "
            "spec of as_matrices, or None for AdamW."
        )
    try:
        layout = layout_of(shape, axes)
    except InputError as error:
        raise InputError(f"{name!r}: {error}") from error
    layer = _layer(name)
    _, inputs, outputs = layout.matrices[0]
    if len(shape) > 2 and "conv" in layer.lower():
        return LeafRule(axes, "conv", "a convolution by its name")
    kind = kind_of_name(layer, outputs, inputs)
    return LeafRule(axes, kind, f"{len(shape)} axes" if kind == "linear" else f"named {layer!r}")


def _layer(name: str) -> str:
    """Return the path of the layer that holds a leaf, as `layer_names` reads it.

    ``params.layers_0.mlp.up.kernel`` is ``layers.0.mlp.up``.
    """
    path = name.removeprefix("params.")
    head, _, last = path.rpartition(".")
    if head and last.lower() in _WEIGHTS:
        path = head
    return re.sub(r"_(\d+)(?=\.)", r".\1", path)


def _checked(value: Any, name: str) -> Any:
    if is_number(value):
        if 0 <= value <= 4:
            return float(value)
    elif hasattr(value, "dtype") and value.ndim == 0 and jax.numpy.isrealobj(value):
        return value
    raise InputError(f"alpha: {value!r} of {name!r} is not a number in [0, 4].")


def _route(name: str, leaf: Any, rule: LeafRule, alpha: Any, by_type: bool) -> Route:
    shape = tuple(leaf.shape)
    if rule.axes is None:
        return Route(name, shape, "adamw", "", "", rule.reason)
    source = f"α of type {rule.kind!r}" if by_type else ""
    text = axes_text(rule.axes)
    return Route(
        name, shape, "spectral", rule.kind, text, rule.reason,
        alpha=float(alpha), alpha_reason=source,
    )  # fmt: skip
