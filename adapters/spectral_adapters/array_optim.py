"""`SpectralNewton` for arrays of any library of the standard: pure functions, no framework.

It takes arrays of NumPy, CuPy, JAX, PyTorch and array-api-strict, and those of any other library
that follows the array API standard with its linear algebra. A library that does not (MLX, Dask) is
refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import array_api_compat
import numpy as np

from spectral_adapters.routing.alphas import Alpha, loaded
from spectral_adapters.routing.arrays import Overrides, route_arrays
from spectral_adapters.routing.table import Route, RoutingTable
from spectral_core import InputError, MatrixLayout, as_matrices
from spectral_core.arrays.namespace import linear_algebra
from spectral_core.arrays.numbers import check_mapping
from spectral_core.arrays.plain import plain
from spectral_core.newton import StepOptions
from spectral_core.newton.adamw import adamw_options, adamw_step
from spectral_core.newton.batched import spectral_newton_steps
from spectral_core.preconditioning.function import is_number

__all__ = ["SpectralNewton", "SpectralNewtonState"]

Array: TypeAlias = Any
Arrays = TypeVar("Arrays", bound="Mapping[str, Any] | Sequence[Any]")


class SpectralNewtonState(NamedTuple):
    """State of `SpectralNewton`; a pytree for JAX.

    Parameters
    ----------
    count : int
        The number of steps that were made.
    momentum : dict of str to array
        The momentum of the parameters that T updates, in float32 or wider.
    mean, square : dict of str to array
        The moments of the parameters that AdamW updates.
    """

    count: Any
    momentum: dict[str, Array]
    mean: dict[str, Array]
    square: dict[str, Array]


class SpectralNewton:
    """Spectral Newton on weight matrices, AdamW on the other parameters (Theory 9.9).

    Parameters
    ----------
    lr : float
        The learning rate. With ``scale="rms"`` a step has the size of AdamW's.
    alpha : float, str, mapping, SpectralReport or path
        The exponent: one number, or ``"per-type"`` by the type of layer that a name tells
        (`TYPE_ALPHAS`), or numbers by type or glob of names, or those of a report.
    damping, damping_mode, method, tolerance, precision
        The options of `spectral_core.precondition`, with less damping by default: δ = 0.001 and α =
        2 won the races of docs/results/training.md. Products in bfloat16 need a δ of 0.03 or more.
    momentum : float
        The coefficient of the exponential moving average of gradients.
    nesterov : bool
        Whether momentum looks ahead.
    weight_decay : float
        The decoupled weight decay.
    scale : {"rms", "spectral", "none"}
        The scale of a step, see `spectral_core.spectral_newton_step`.
    adamw : mapping, optional
        ``lr``, ``betas``, ``eps`` and ``weight_decay`` of AdamW. Learning rate and weight decay are
        otherwise those above. With another scale than ``"rms"`` the learning rate is 1e-3.
    route : mapping, optional
        The rules of parameters, by globs of names: ``"spectral"``, ``"adamw"`` or a dict with
        ``alpha`` or ``matrices`` (a spec of `as_matrices`).

    Raises
    ------
    InputError
        If an option is unknown or out of range; in `init` and `update`, if parameters are not real
        floating arrays of one library, or that library lacks what T needs.

    Notes
    -----
    Parameters are a dict of arrays or a list of them. A list has no names, so T gets all its
    matrices. Matrices of one shape, dtype and α are updated in one call. Nothing is written to:
    `update` returns new arrays. It runs under `jax.jit`. A parameter whose gradient holds a NaN or
    an infinity stays as it is, with its state. A matrix of T whose gradient is 0 throughout gets
    weight decay alone, while its momentum decays.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_adapters.array_optim import SpectralNewton
    >>> params = {"weight": np.eye(3), "bias": np.zeros(3)}
    >>> optimizer = SpectralNewton(lr=1e-3)
    >>> state = optimizer.init(params)
    >>> gradients = {"weight": np.ones((3, 3)), "bias": np.ones(3)}
    >>> params, state = optimizer.update(params, gradients, state)
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        alpha: Alpha = 2.0,
        damping: float = 1e-3,
        damping_mode: str = "spectral",
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: str = "rms",
        method: str = "auto",
        tolerance: float | None = None,
        precision: str = "working",
        adamw: Mapping[str, Any] | None = None,
        route: Overrides | None = None,
    ) -> None:
        self._options = StepOptions(
            lr, damping, damping_mode, momentum, nesterov, weight_decay, scale, method, tolerance,
            precision,
        )  # fmt: skip
        check_mapping("route", route or {})
        self._alpha, self._overrides = loaded(alpha), dict(route or {})
        self._adamw = adamw_options(adamw or {}, scale)
        self._check_options()

    def routing(self, params: Arrays) -> RoutingTable:
        """Return the rule, α and matrices of every parameter; ``print`` it."""
        named = _by_name("params", params)
        return RoutingTable(self._routes(named, isinstance(params, Mapping)))

    def init(self, params: Arrays) -> SpectralNewtonState:
        """Return the state before the first step: zeros.

        Parameters
        ----------
        params : dict of str to array, or list of array
            The parameters.
        """
        named = _by_name("params", params)
        routes = self._routes(named, isinstance(params, Mapping))
        rules = {route.name: route.rule for route in routes}
        zeros = {name: _wide_zeros(array) for name, array in named.items()}
        spectral = {name: array for name, array in zeros.items() if rules[name] == "spectral"}
        rest = {name: array for name, array in zeros.items() if rules[name] == "adamw"}
        return SpectralNewtonState(0, spectral, rest, dict(rest))

    def update(
        self,
        params: Arrays,
        gradients: Arrays,
        state: SpectralNewtonState,
        *,
        lr: float | Array | None = None,
    ) -> tuple[Arrays, SpectralNewtonState]:
        """Return the parameters after a step, and the new state.

        Parameters
        ----------
        params, gradients : dict of str to array, or list of array
            The parameters, in the form that `init` received, and their gradients. A gradient may be
            None, or be missing in a dict: its parameter stays.
        state : SpectralNewtonState
            The state that `init` or the last `update` returned.
        lr : float or array, optional
            The learning rate of this step, for schedules. By default it is that of the optimizer.
            AdamW follows unless it has its own.

        Returns
        -------
        params : dict or list
            The new arrays, as many as before.
        state : SpectralNewtonState
        """
        named = _by_name("params", params)
        routes = self._routes(named, isinstance(params, Mapping))
        found = _gradients(gradients, named)
        if not isinstance(state, SpectralNewtonState):
            raise InputError(f"state: a {type(state).__name__} was passed; call init for one.")
        held = state.momentum.keys() | state.mean.keys()
        if held != named.keys():
            raise InputError(
                f"state: it is of the parameters {sorted(held)[:8]}; call init for these."
            )
        rate = self._options.lr if lr is None else lr
        spectral = [r for r in routes if r.rule == "spectral" and r.name in found]
        others = [r.name for r in routes if r.rule == "adamw" and r.name in found]
        steps, momentum = self._spectral_steps(spectral, named, found, state, rate)
        count, mean, square = _number(state.count) + 1, dict(state.mean), dict(state.square)
        options: dict[str, Any] = {"lr": rate, "weight_decay": self._options.weight_decay}
        options |= self._adamw
        for name in others:
            steps[name], mean[name], square[name] = adamw_step(
                named[name], found[name], mean[name], square[name], count, **options
            )
        moved = {n: array + steps[n] if n in steps else array for n, array in named.items()}
        new: Any = moved if isinstance(params, Mapping) else list(moved.values())
        return new, SpectralNewtonState(count, momentum, mean, square)

    def _spectral_steps(
        self,
        routes: list[Route],
        params: Mapping[str, Array],
        gradients: Mapping[str, Array],
        state: SpectralNewtonState,
        lr: float | Array,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the steps of T's parameters, and all momenta."""
        names = [route.name for route in routes]
        steps, momenta = spectral_newton_steps(
            [params[name] for name in names],
            [gradients[name] for name in names],
            [state.momentum[name] for name in names],
            layouts=[_layout(route.shape, route.matrices) for route in routes],
            alphas=[_alpha(route) for route in routes],
            options=replace(self._options, lr=lr),
        )
        moved = dict(zip(names, momenta, strict=True))
        return dict(zip(names, steps, strict=True)), dict(state.momentum) | moved

    def _check_options(self) -> None:
        """Check the options now, as the steps would."""
        options = self._options
        if options.precision == "bfloat16":  # the first step knows whether there is such a dtype
            options = replace(options, precision="working", method="auto")
        alpha = self._alpha if is_number(self._alpha) else 1.0
        options.check_all(alpha, float(np.finfo(np.float64).eps))
        zeros = np.zeros((1, 2, 2))
        shared: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
        adamw_step(zeros, zeros, zeros, zeros, 1, **shared | self._adamw)

    def _routes(self, params: Mapping[str, Array], named: bool) -> list[Route]:
        _check_arrays(params)
        shapes = {name: tuple(array.shape) for name, array in params.items()}
        return route_arrays(shapes, self._alpha, self._overrides, named)


def _alpha(route: Route) -> float | tuple[float, ...]:
    return route.alpha if isinstance(route.alpha, tuple) else float(route.alpha or 0.0)


def _number(count: Any) -> Any:
    """Return a count that NumPy loaded as the number that was saved.

    NumPy's integers are no weak types: powers of β would be float64, and wider than a float32
    moment.
    """
    return int(count) if isinstance(count, (np.integer, np.ndarray)) else count


def _by_name(argument: str, arrays: Any) -> dict[str, Any]:
    """Return a dict, of a list by index."""
    if isinstance(arrays, (list, tuple)):
        arrays = {str(index): array for index, array in enumerate(arrays)}
    if not isinstance(arrays, Mapping):
        raise InputError(
            f"{argument}: a {type(arrays).__name__} was passed; pass a dict or a list of arrays."
        )
    return {name: plain(f"{argument}: {name!r}", array) for name, array in arrays.items()}


def _gradients(gradients: Any, params: Mapping[str, Array]) -> dict[str, Array]:
    """Return the gradients that are not missing."""
    found = _by_name("gradients", gradients)
    if unknown := found.keys() - params.keys():
        raise InputError(f"gradients: {sorted(unknown)} are none of the parameters.")
    found = {name: array for name, array in found.items() if array is not None}
    for name, array in found.items():
        _check_library("gradients", name, array)
        if tuple(array.shape) != tuple(params[name].shape):
            raise InputError(
                f"gradients: that of {name!r} has shape {tuple(array.shape)}; the parameter has "
                f"{tuple(params[name].shape)}."
            )
    return found


def _check_arrays(params: Mapping[str, Array]) -> None:
    if not params:
        raise InputError("params: there is none; pass a dict or a list of arrays.")
    for name, array in params.items():
        xp = _check_library("params", name, array)
        if not xp.isdtype(array.dtype, "real floating"):
            raise InputError(
                f"params: {name!r} has dtype {array.dtype}; pass real floating point parameters."
            )
        if getattr(array, "requires_grad", False):
            raise InputError(
                f"params: {name!r} requires a gradient, and every step would hang on the last in "
                "one graph; pass detached tensors."
            )


def _check_library(argument: str, name: str, array: Any) -> Any:
    """Return the namespace of an array, if it has what T needs."""
    library = type(array).__module__.partition(".")[0]
    if not array_api_compat.is_array_api_obj(array):
        raise InputError(
            f"{argument}: {name!r} is a {type(array).__name__} of {library}, which does not follow "
            "the array API standard; convert it, for instance with numpy.asarray."
        )
    return linear_algebra(f"{argument}: {name!r}", array)


def _wide_zeros(array: Array) -> Array:
    xp = array_api_compat.array_namespace(array)
    dtype = array.dtype if xp.finfo(array.dtype).bits >= 32 else xp.float32
    return xp.zeros_like(array, dtype=dtype)


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], spec: str) -> MatrixLayout:
    return as_matrices(shape, spec)
