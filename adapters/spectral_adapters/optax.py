"""Spectral Newton for Optax: a transformation to compose, and an optimizer that routes.

Needs the extra ``optax``. Weights of JAX are mostly inputs × outputs; T does not care, for
``T(Gᵀ) = T(G)ᵀ`` (Theory 9.3).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from spectral_adapters.jax_updates.explicit_sharding import with_automatic_axes
from spectral_adapters.jax_updates.step_options import StepOptions
from spectral_adapters.routing.alphas import loaded
from spectral_adapters.routing.dimension_numbers import SpectralDimensionNumbers, layout_of
from spectral_adapters.routing.jax_trees import (
    AlphaOrTree,
    AxesOrTree,
    LeafRule,
    Tree,
    alphas_of,
    default_dimension_numbers,
    leaf_names,
    routing_table,
    rules_of,
    spread,
)
from spectral_adapters.routing.table import RoutingTable
from spectral_core import InputError
from spectral_core._extras import require
from spectral_core.newton.batched import spectral_newton_steps
from spectral_core.preconditioning.function import is_number

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    optax = require("optax", "optax", "Spectral Newton for Optax")
    jax, jnp = (
        require(name, "optax", "Spectral Newton for Optax") for name in ("jax", "jax.numpy")
    )

__all__ = [
    "RoutingTable",
    "ScaleBySpectralNewtonState",
    "SpectralDimensionNumbers",
    "default_dimension_numbers",
    "routing_table",
    "scale_by_spectral_newton",
    "spectral_newton",
]

Scalar: TypeAlias = Any
"""A number of Python, or a scalar array, which may be traced."""


class ScaleBySpectralNewtonState(NamedTuple):
    """State of `scale_by_spectral_newton`.

    Parameters
    ----------
    mu : pytree of array
        The momentum, of the structure and shapes of the parameters.
    """

    mu: Tree


def scale_by_spectral_newton(
    alpha: AlphaOrTree = 2.0,
    damping: Scalar = 1e-3,
    beta: Scalar = 0.95,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Tree | Callable[[Tree], Tree] | None = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    scale: str = "rms",
    damping_mode: str = "spectral",
    method: str = "auto",
    tolerance: float | None = None,
    precision: str = "working",
    weight_dimension_numbers: AxesOrTree = None,
) -> "optax.GradientTransformationExtraArgs":
    """Replace gradients by ``scaled T(d) + weight_decay · weight`` (Theory 9.9).

    d is the momentum, Nesterov's by default. The sign is that of the gradient: put
    `optax.scale_by_learning_rate` behind it. Every leaf must be made of matrices; `spectral_newton`
    leaves the others to AdamW.

    Parameters
    ----------
    alpha : float, array, "per-type", SpectralReport, path, pytree or callable
        The exponent, in [0, 4]. It is one number for all; or it follows the type of layer that the
        path tells (`TYPE_ALPHAS`) or the measurements of a report, for each slice of a stack if the
        report knows its blocks; or it is a prefix of the tree of parameters, or a function of that
        tree, or of the updates, that returns one. Arrays may be traced, and their values are not
        checked.
    damping : float or array
        The damping δ, or d with ``damping_mode="absolute"``. α = 2 with δ = 0.001 won the races of
        docs/results/training.md.
    beta : float or array
        The coefficient of the exponential moving average of gradients, in [0, 1).
    weight_decay : float or array
        The decoupled weight decay. It is computed here, and not by `optax.add_decayed_weights`
        behind it, so that a matrix with a gradient that is not finite is not decayed either. It
        needs `params`.
    weight_decay_mask : pytree of bool or callable, optional
        The leaves that decay: a prefix of the tree of parameters, or a function of it.
    mu_dtype : dtype, optional
        The dtype in which momentum is kept; float32 or wider by default. It is computed in float32
        or wider.
    nesterov : bool
        Whether momentum looks ahead.
    scale : {"rms", "spectral", "none"}
        The scale of a step, see `spectral_core.spectral_newton_step`.
    damping_mode, method, tolerance, precision
        The options of `spectral_core.precondition`. With an array for α or spectral damping, "auto"
        is "eigh", which serves any value at the price of an eigendecomposition of the small side.
        Its error grows for δ far below 0.1 in float32, where "svd" is exact.
    weight_dimension_numbers : MatrixAxes, pytree or callable, optional
        The matrices of each leaf: `SpectralDimensionNumbers`, or a spec of `as_matrices`; one for
        all, a prefix of the tree, or a function of the tree that returns one. By default all
        leaves have two axes, and others are refused.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its updates are in the dtype of the parameters where these are passed, otherwise of the
        gradients. Matrices of one shape, dtype, α and weight decay are updated in one call.

    Raises
    ------
    InputError
        If an option is out of range; in `init` and `update`, if a leaf is not real floating point
        or not made of matrices as said, or if weight decay has no parameters.

    Notes
    -----
    A matrix whose gradient holds a NaN or an infinity gets an update of exactly 0 and keeps its
    momentum to the bit. One whose gradient is 0 throughout gets weight decay alone, while its
    momentum decays. Under `jax.jit` arrays are whole however they are sharded, and so is T of them.
    Inside `jax.shard_map` or `jax.pmap` a leaf that is only a shard of a matrix would be taken for
    a matrix. Pass whole gradients there, as data parallelism has them.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from spectral_adapters.optax import scale_by_spectral_newton
    >>> rule = optax.chain(scale_by_spectral_newton(), optax.scale_by_learning_rate(1e-3))
    >>> params = {"kernel": jnp.ones((4, 2))}
    >>> updates, state = rule.update(params, rule.init(params), params)
    >>> updates["kernel"].shape
    (4, 2)
    """
    options = StepOptions(
        1.0, damping, damping_mode, beta, nesterov, weight_decay, scale, method, tolerance,
        precision,
    )  # fmt: skip
    alpha = loaded(alpha)
    _check_options(options, alpha)

    def init(params: Tree) -> ScaleBySpectralNewtonState:
        _matrix_rules(params, weight_dimension_numbers)
        return ScaleBySpectralNewtonState(jax.tree.map(lambda p: _zeros(p, mu_dtype), params))

    def update(
        updates: Tree, state: ScaleBySpectralNewtonState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, ScaleBySpectralNewtonState]:
        structure: Any = jax.tree.structure(updates)
        rules = _matrix_rules(updates, weight_dimension_numbers)
        alphas = alphas_of(alpha, updates, rules)
        decays = _decays(weight_decay, weight_decay_mask, updates if params is None else params)
        gradients = structure.flatten_up_to(updates)
        held = structure.flatten_up_to(state.mu)
        layouts: list[Any] = [
            layout_of(tuple(gradient.shape), rule.axes)  # type: ignore[arg-type]
            for gradient, rule in zip(gradients, rules, strict=True)
        ]

        def steps_of(constants: Any, weights: Any, gradients: Any, momenta: Any) -> Any:
            alphas, decays, options = constants
            return spectral_newton_steps(
                weights, gradients, momenta, layouts=layouts, alphas=alphas,
                weight_decays=decays, options=options,
            )  # fmt: skip

        steps, momenta = with_automatic_axes(
            steps_of,
            (alphas, decays, replace(options, method=_method(options, alphas))),
            [_weights(gradients, structure, params, decays), gradients, list(map(_wide, held))],
        )
        mu = [new.astype(old.dtype) for new, old in zip(momenta, held, strict=True)]
        return (
            structure.unflatten([-step for step in steps]),
            ScaleBySpectralNewtonState(structure.unflatten(mu)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def spectral_newton(
    learning_rate: "optax.ScalarOrSchedule",
    alpha: AlphaOrTree = 2.0,
    damping: Scalar = 1e-3,
    beta: Scalar = 0.95,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Tree | Callable[[Tree], Tree] | None = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    scale: str = "rms",
    damping_mode: str = "spectral",
    method: str = "auto",
    tolerance: float | None = None,
    precision: str = "working",
    adam_learning_rate: "optax.ScalarOrSchedule | None" = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: Scalar | None = None,
    weight_dimension_numbers: AxesOrTree = None,
) -> "optax.GradientTransformationExtraArgs":
    """Spectral Newton on weight matrices, AdamW on the other parameters (Theory 9.9).

    Parameters
    ----------
    learning_rate : float, array or schedule
        The learning rate. With ``scale="rms"`` that of AdamW serves.
    alpha, damping, beta, mu_dtype, nesterov, scale, damping_mode, method, tolerance, precision
        The arguments of `scale_by_spectral_newton`.
    weight_decay, weight_decay_mask
        The arguments of `scale_by_spectral_newton`. They count for AdamW too.
    adam_learning_rate : float, array or schedule, optional
        The learning rate of AdamW. It is `learning_rate` by default, and required with another
        scale than ``"rms"``.
    adam_b1, adam_b2, adam_eps : float or array
        The arguments b1, b2 and eps of `optax.adamw`.
    adam_weight_decay : float or array, optional
        The weight decay of AdamW. By default it is `weight_decay`.
    weight_dimension_numbers : MatrixAxes, pytree or callable, optional
        The argument of `scale_by_spectral_newton`, where None in a tree leaves a parameter to
        AdamW. By default it is `default_dimension_numbers`. `routing_table` shows what becomes of
        each parameter.

    Returns
    -------
    optax.GradientTransformationExtraArgs

    Raises
    ------
    InputError
        If `scale_by_spectral_newton` raises it, or if AdamW has no learning rate.

    Notes
    -----
    `optax.inject_hyperparams` makes arrays of all numbers and schedules of all functions. Name the
    arguments that it must leave as they are: ``static_args=("alpha", "damping",
    "weight_dimension_numbers", "weight_decay_mask")``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from spectral_adapters.optax import spectral_newton
    >>> optimizer = spectral_newton(1e-3)
    >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> params = optax.apply_updates(params, updates)
    """
    if adam_learning_rate is None and scale != "rms":
        raise InputError(
            f"adam_learning_rate: with scale={scale!r} the learning rate is no one for AdamW; pass "
            "it apart, for instance 1e-3."
        )
    alpha = loaded(alpha)
    scaled = partial(
        scale_by_spectral_newton, damping=damping, beta=beta, weight_decay=weight_decay,
        mu_dtype=mu_dtype, nesterov=nesterov, scale=scale, damping_mode=damping_mode,
        method=method, tolerance=tolerance, precision=precision,
    )  # fmt: skip
    scaled(alpha)  # which refuses what is out of range now
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam_decay = weight_decay if adam_weight_decay is None else adam_weight_decay

    def parts(tree: Tree) -> Any:
        """Return the partition for a tree of parameters or updates, whole and not yet masked."""
        structure: Any = jax.tree.structure(tree)
        rules = rules_of(tree, weight_dimension_numbers)
        _check_dtypes(tree, rules)
        mask = None
        if weight_decay_mask is not None:
            mask = structure.unflatten(spread(weight_decay_mask, tree, "weight_decay_mask"))
        spectral = scaled(
            structure.unflatten(alphas_of(alpha, tree, rules)),
            weight_decay_mask=None if mask is None else lambda _: mask,
            weight_dimension_numbers=structure.unflatten([rule.axes for rule in rules]),
        )
        adamw = optax.adamw(
            adam_rate, b1=adam_b1, b2=adam_b2, eps=adam_eps, weight_decay=adam_decay,
            mask=None if mask is None else lambda _: mask,
        )  # fmt: skip
        labels = ["adamw" if rule.axes is None else "spectral" for rule in rules]
        chain = optax.chain(spectral, optax.scale_by_learning_rate(learning_rate))
        return optax.partition(
            {"spectral": chain, "adamw": adamw}, lambda _: structure.unflatten(labels)
        )

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> tuple[Tree, Any]:
        tree = updates if params is None else params
        found: tuple[Tree, Any] = parts(tree).update(updates, state, params, **extra)
        return found

    return optax.GradientTransformationExtraArgs(lambda params: parts(params).init(params), update)


def _matrix_rules(tree: Tree, axes: AxesOrTree) -> list[LeafRule]:
    """Return the rules of leaves that are all for T; without axes they must be matrices."""
    if axes is None:
        _check_two_axes(tree)
        axes = SpectralDimensionNumbers()
    rules = rules_of(tree, axes)
    _check_dtypes(tree, rules)
    for name, rule in zip(leaf_names(tree), rules, strict=True):
        if rule.axes is None:
            raise InputError(
                f"weight_dimension_numbers: None for {name!r}; scale_by_spectral_newton is for "
                "matrices alone. Use spectral_newton, or optax.partition or optax.masked around it."
            )
    return rules


def _check_two_axes(tree: Tree) -> None:
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if leaf.ndim > 2:
            raise InputError(
                f"weight_dimension_numbers: {name!r} has shape {tuple(leaf.shape)}, of which any "
                "two axes may be those of a matrix; say which by SpectralDimensionNumbers or a "
                "spec of as_matrices, 'conv-last' for a kernel (…, in, out)."
            )


def _check_dtypes(tree: Tree, rules: list[LeafRule]) -> None:
    for name, leaf, rule in zip(leaf_names(tree), jax.tree.leaves(tree), rules, strict=True):
        allowed = jnp.inexact if rule.axes is None else jnp.floating  # AdamW takes complex numbers
        if not jnp.issubdtype(leaf.dtype, allowed):
            raise InputError(
                f"params: {name!r} has dtype {leaf.dtype}; pass real floating point parameters, "
                "and leave this one out with optax.partition or optax.masked."
            )


def _zeros(parameter: Any, dtype: Any) -> Any:
    wide = jnp.promote_types(parameter.dtype, jnp.float32)
    return jnp.zeros_like(parameter, dtype=wide if dtype is None else dtype)


def _wide(momentum: Any) -> Any:
    return momentum.astype(jnp.promote_types(momentum.dtype, jnp.float32))


def _decays(weight_decay: Scalar, mask: Any, tree: Tree) -> list[Scalar]:
    """Return the weight decay of each leaf."""
    decayed = spread(True if mask is None else mask, tree, "weight_decay_mask")
    return [weight_decay if own else 0.0 for own in decayed]


def _weights(gradients: list[Any], structure: Any, params: Tree, decays: list[Scalar]) -> list[Any]:
    """Return the parameters, or zeros if they do not count."""
    absent = params is None
    weights = gradients if absent else structure.flatten_up_to(params)
    counts = [not (is_number(decay) and decay == 0) for decay in decays]
    if absent and any(counts):
        raise InputError(
            "params: weight decay needs the parameters; call update(gradients, state, params)."
        )
    pairs = zip(weights, counts, strict=True)
    return [weight if own else jnp.zeros_like(weight) for weight, own in pairs]


def _method(options: StepOptions, alphas: list[Any]) -> str:
    """Return "eigh" for "auto" if values are not known before the step."""
    known = (isinstance(alpha, tuple) or is_number(alpha) for alpha in alphas)
    unknown = not (is_number(options.damping) and all(known))
    spectral = options.damping_mode == "spectral" and options.precision == "working"
    return "eigh" if unknown and spectral and options.method == "auto" else options.method


def _check_options(options: StepOptions, alpha: Any) -> None:
    """Refuse options now, as the step would."""
    if options.tolerance is not None and not is_number(options.tolerance):
        raise InputError(
            "tolerance: it is an array; pass a number, and under optax.inject_hyperparams name it "
            "in static_args."
        )
    if options.precision == "bfloat16":
        return  # the first update knows whether α and damping allow it
    if not is_number(alpha):
        alpha, options = 1.0, replace(options, method="auto")
    options.check_all(alpha, float(np.finfo(np.float64).eps))
