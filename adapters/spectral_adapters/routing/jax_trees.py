"""The rule of each leaf of a tree of JAX arrays: its matrices, its α, and the reason."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

from spectral_adapters.routing.alphas import SliceAlphas, choose_alphas, loaded
from spectral_adapters.routing.dimension_numbers import (
    AxisLayout,
    MatrixAxes,
    SpectralDimensionNumbers,
    axes_text,
    is_axes,
    layout_of,
)
from spectral_adapters.routing.names import (
    FUSED,
    kind_of_name,
    named_embedding,
    named_head,
)
from spectral_adapters.routing.table import Route, RoutingTable
from spectral_adapters.routing.types import thin_reason
from spectral_core import InputError, MatrixLayout, SpectralReport
from spectral_core._extras import require
from spectral_core.matrices.names import path_name
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
AlphaOrTree: TypeAlias = (
    float | str | SpectralReport | PathLike[str] | Tree | Callable[[Tree], Tree]
)

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
        The matrices of a leaf of T. It is None for AdamW.
    kind : str
        The layer type, a key of `TYPE_ALPHAS`. It is empty for AdamW.
    reason : str
        The reason for the rule.
    """

    axes: MatrixAxes | None
    kind: str
    reason: str


def default_dimension_numbers(params: Tree) -> Tree:
    """Return the dimension numbers of T's leaves, and None for those of AdamW.

    As in `optax.contrib.muon`, T gets leaves of two axes. AdamW gets those with a side of 1, and
    those that are an embedding, an output head, a bias or a norm by their name. Of leaves with more
    axes T gets a ``kernel`` or ``w`` of a layer whose path says ``conv``, as (kernel …, in, out).
    It also gets the projections of Flax's attention, (in, heads, width) and (heads, width, out), as
    one matrix each.

    Parameters
    ----------
    params : pytree of array
        The parameters. Only their shapes and paths count: `jax.ShapeDtypeStruct` will do.

    Returns
    -------
    pytree
        A tree of the same structure. You may change it and pass it on.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> default_dimension_numbers({"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)})["bias"] is None
    True
    """
    axes = [rule.axes for rule in rules_of(params, None)]
    return jax.tree.unflatten(jax.tree.structure(params), axes)


def rules_of(tree: Tree, dimension_numbers: AxesOrTree) -> list[LeafRule]:
    """Return the rule of each leaf.

    Parameters
    ----------
    tree : pytree of array
        The parameters or updates.
    dimension_numbers : MatrixAxes, pytree, callable or None
        One value for all leaves, or a prefix of the tree, or a function of the tree that returns
        one. None stands for the default rule.

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
    alpha : float, array, "per-type", SpectralReport, path, pytree or callable
        The exponent. It is one number for all, which may be traced; or it follows the layer's type
        (`TYPE_ALPHAS`) or the measurements of a report, for each slice of a stack if the report has
        them; or it is a prefix of the tree, or a function of the tree that returns one.
    tree : pytree of array
        The parameters or updates.
    rules : sequence of LeafRule
        The rules of the leaves of `tree`.

    Raises
    ------
    InputError
        If α is none of these or out of range.
    """
    return [route.alpha for route in _with_alphas(alpha, tree, _routes(tree, rules), rules)]


def routing_table(
    params: Tree, *, alpha: AlphaOrTree = 2.0, weight_dimension_numbers: AxesOrTree = None
) -> RoutingTable:
    """Return the rule, α and matrices of every parameter; ``print`` it.

    Parameters
    ----------
    params : pytree of array
        The parameters. Only their shapes and paths count.
    alpha, weight_dimension_numbers
        The arguments of `spectral_adapters.optax.spectral_newton`.

    Raises
    ------
    InputError
        If one does not fit the parameters.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> table = routing_table({"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)})
    >>> {route.name: route.rule for route in table}
    {'bias': 'adamw', 'kernel': 'spectral'}
    """
    rules = rules_of(params, weight_dimension_numbers)
    routes = _with_alphas(alpha, params, _routes(params, rules), rules)
    return RoutingTable(
        [
            route
            if isinstance(route.alpha, tuple | None)
            else replace(route, alpha=float(route.alpha))
            for route in routes
        ]
    )


def leaf_names(tree: Tree) -> list[str]:
    """Return the dotted paths of the leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


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
        The tree. Masked nodes and other nodes without leaves take no value.
    name : str
        The name of the argument, for the error.
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
    if thin := thin_reason(layout_of(shape, axes).matrices):
        return LeafRule(None, "", thin)
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
    if _kernel_axes(layout) and "conv" in layer.lower():
        return LeafRule(axes, "conv", "a convolution by its name")
    if isinstance(layout, MatrixLayout) and layout.spec.kind != "matrix":
        return LeafRule(axes, "conv", "a convolution by its spec")
    inputs, outputs = (layout.whole if isinstance(layout, AxisLayout) else layout).shape[-2:]
    kind = kind_of_name(layer, outputs, inputs)
    return LeafRule(axes, kind, f"{len(shape)} axes" if kind == "linear" else f"named {layer!r}")


def _kernel_axes(layout: AxisLayout | MatrixLayout) -> bool:
    """Say whether dimension numbers join axes, as those of a kernel do."""
    return isinstance(layout, AxisLayout) and len(layout.rows + layout.columns) > 2


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
    if isinstance(value, SliceAlphas):
        return value
    if is_number(value):
        if 0 <= value <= 4:
            return float(value)
    elif hasattr(value, "dtype") and value.ndim == 0 and jax.numpy.isrealobj(value):
        return value
    raise InputError(f"alpha: {value!r} of {name!r} is not a number in [0, 4].")


def _routes(tree: Tree, rules: Sequence[LeafRule]) -> list[Route]:
    """Return the route of each leaf, yet without α."""
    found = []
    for name, leaf, rule in zip(leaf_names(tree), jax.tree.leaves(tree), rules, strict=True):
        shape = tuple(leaf.shape)
        if rule.axes is None:
            found.append(Route(name, shape, "adamw", "", "", rule.reason))
        else:
            text = axes_text(rule.axes)
            found.append(Route(name, shape, "spectral", rule.kind, text, rule.reason))
    return found


def _with_alphas(
    alpha: AlphaOrTree, tree: Tree, routes: list[Route], rules: Sequence[LeafRule]
) -> list[Route]:
    """Return the routes with α, which may be traced, and its source."""
    alpha = loaded(alpha)
    if isinstance(alpha, SpectralReport) or (isinstance(alpha, str) and alpha == "per-type"):
        stacks = [
            () if rule.axes is None else layout_of(route.shape, rule.axes).stack
            for route, rule in zip(routes, rules, strict=True)
        ]
        return choose_alphas(alpha, routes, each_slice=True, stacks=stacks)
    if isinstance(alpha, str):
        raise InputError(
            f"alpha: {alpha!r} is unknown; pass a number in [0, 4], 'per-type', a SpectralReport "
            "or its path, a tree of numbers or a function of the parameters that returns one."
        )
    values = spread(alpha, tree, "alpha", lambda node: isinstance(node, SliceAlphas))
    return [
        replace(route, alpha=_checked(value, route.name)) if route.rule == "spectral" else route
        for route, value in zip(routes, values, strict=True)
    ]
