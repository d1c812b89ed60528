"""`CurvatureProblem` for JAX: a pure function, its parameters and its data."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.processes import find_board, identity_of
from spectral_backends.jax.engines.registry import ENGINES
from spectral_backends.jax.engines.setting import Setting
from spectral_backends.jax.factors.kronecker import kronecker_factors
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.batch_statistics import refuse_batch_statistics
from spectral_backends.jax.objective.gradient_errors import gradient_errors
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss
from spectral_backends.jax.objective.sample_groups import (
    batches_of_groups,
    terms_and_loss,
    ways_of,
)
from spectral_core.arrays.plain import plain
from spectral_core.curvature.argument_checks import (
    check_chunk_size,
    check_direction_shapes,
    check_reduction,
    check_reiterable,
    check_seed,
    narrowed,
)
from spectral_core.curvature.base_problem import BaseProblem
from spectral_core.curvature.engine import CurvatureEngine
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.curvature.problem import CurvatureKind, KroneckerFactors, SampleGroup
from spectral_core.curvature.processes import OtherData
from spectral_core.errors import InputError
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.losses.terms import Reduction
from spectral_core.sampling.sample_groups import check_group_count, groups_of

__all__ = ["CurvatureProblem"]


class CurvatureProblem(BaseProblem[Layer]):
    """The mean loss of a pure function over batches, as a function of each of its weight matrices.

    ``L(W) = (1/N) Σ_i l_i`` over all N terms of all batches (samples, or tokens that are not
    masked), so that batch size, order and a ragged last batch do not change a result (Theory 1).
    Curvatures are exact second derivatives by automatic differentiation. The functions are traced
    once for each shape of batch, and everything that is computed is compiled once for each.

    Parameters
    ----------
    loss_fn : callable or pair of callables
        ``(forward, loss)`` with ``forward(params, *inputs)`` and ``loss(outputs, targets)``, for
        batches ``(*inputs, targets)``; or ``loss_fn(params, batch)``, which has no Gauss-Newton
        curvature, as nothing tells its outputs. The functions are pure, and fit for ``jax.jit``.
    params : pytree
        The model's parameters: its floating arrays. Whatever else is among its leaves is a
        constant. Dicts, Equinox modules, Flax states and any other pytree will do.
    batches : iterable
        The batches, each a pytree of arrays. They are traversed as often as needed, and floating
        arrays are cast to the dtype of the parameters.
    weight : callable, optional
        ``weight(batch)`` returns the number of terms that the batch's loss averages. By default it
        is read off the end of the loss, and the parts of a batch that is cut in two must bear it
        out. Weights that contradict the loss are refused.
    reduction : {"mean", "sum"}, optional
        The way in which the loss reduces its terms, if it cannot be read off. A sum is divided by
        the number of terms.
    dtype : dtype, optional
        The type to measure in. By default it is that of the parameters, float32 for half
        precision; float64 needs ``jax_enable_x64``.
    seed : int
        The seed of random draws.
    chunk_size : int, optional
        The number of directions that are differentiated together. By default it is what fits
        `memory_budget`.
    memory_budget : int, optional
        The bytes that one chunk may take on each device. By default they are 8 MiB on a CPU, where
        larger chunks fall out of the caches and were measured slower, and 1 GiB elsewhere.
    check_deterministic : bool
        Whether to refuse a loader that gives other data in its second pass (a list or tuple is not
        asked), and a model that normalises by statistics of its batch, as batch norm does in
        training mode.

    Raises
    ------
    InputError
        If functions, parameters or data cannot be used; the message says what to change.
    NonDeterministicError
        If the batches are not repeatable, or the loss depends on how they are cut, and
        `check_deterministic`.

    Warns
    -----
    UserWarning
        If another process measures the same model on other data, each as if it were the whole.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from spectral_backends.jax import CurvatureProblem
    >>> def forward(params, x):
    ...     return x @ params["weight"]
    >>> def loss(outputs, targets):
    ...     return ((outputs - targets) ** 2).mean()
    >>> batch = (jnp.ones((4, 3)), jnp.zeros((4, 1)))
    >>> problem = CurvatureProblem((forward, loss), {"weight": jnp.ones((3, 1))}, [batch])
    >>> problem.curvatures("weight", jnp.ones((1, 2)), jnp.eye(3)[:, :2]).tolist()
    [2.0, 2.0]
    """

    def __init__(
        self,
        loss_fn: Loss | tuple[Loss, Loss],
        params: Any,
        batches: Iterable[Any],
        *,
        weight: Callable[[Any], float] | None = None,
        reduction: Reduction | None = None,
        dtype: Any = None,
        seed: int = 0,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        check_deterministic: bool = True,
    ) -> None:
        check_reiterable(batches)
        _check_options(loss_fn, weight, reduction, dtype, chunk_size, seed)
        self._parameters = Parameters(params, dtype)
        self._seed = seed
        self._device = next(iter(self._parameters.values[0].devices()))
        self._objective = Objective(loss_fn, self._parameters, batches, weight, reduction, seed)
        first = self._objective.first()
        self._objective.check_differentiable(first)
        budget = memory_budget or 2 ** (23 if self._device.platform == "cpu" else 30)
        budget *= 1 if first.placement is None else first.placement.shares
        if check_deterministic:
            refuse_batch_statistics(loss_fn, self._parameters, first)
        self._objective.evaluate(check=check_deterministic)
        if self._is_narrowed():
            told = narrowed(str(self._parameters.dtype), str(self._objective.precision))
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        self._layers, self._skipped = first.program.found
        self._setting = Setting(self._objective, first.program, chunk_size, budget, self._objective)
        self._engines = [engine(self._setting) for engine in ENGINES]
        self._others = OtherData(
            find_board(),
            partial(identity_of, self._parameters.values),
            self._objective.loss,
            self._objective.n_terms if self._objective.known else None,
        )
        self._others.look()

    def describe(self) -> dict[str, Any]:
        """Return the description of the problem: numbers of the data, loss, types and versions."""
        objective = self._objective
        count = objective.n_terms if objective.known else None
        return {
            "backend": "jax",
            "versions": {"jax": str(jax.__version__)},
            "dtype": str(self._parameters.dtype),
            **({"precision": str(objective.precision)} if self._is_narrowed() else {}),
            "model_dtype": str(self._parameters.stored_dtype),
            "device": self._devices(),
            "seed": self._seed,
            "loss": objective.loss,
            "n_terms": int(count) if count is not None and count == int(count) else count,
            "n_batches": len(objective.terms),
        }

    def _is_narrowed(self) -> bool:
        return bool(self._objective.precision != self._parameters.dtype)

    def _devices(self) -> str:
        placement = self._objective.placement
        if placement is None:
            return f"{self._device.platform}:{self._device.id}"
        return f"{self._device.platform}, {placement.mesh.size} devices, {placement.shares} shares"

    def gradient_errors(
        self, layers: Sequence[str], *, samples: int | None = None
    ) -> dict[str, jax.Array]:
        """Return about ``G − G'`` of shape ``(m, n)``, with G' exact for the same values.

        G' is computed in float64, which need not be enabled. For a problem in float64 it is
        computed in float32, and the difference scaled by 2⁻²⁹.

        Parameters
        ----------
        layers : sequence of str
            The names of layers.
        samples : int, optional
            If it is given, only the first batch is used, or the first samples of a long one, as
            compiling takes more time than they do. By default all data are used.

        Returns
        -------
        dict of str to jax.Array
            The differences in the problem's dtype. There are none where the functions cannot be run
            in the other type, draw random numbers, or lie on several devices.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        located = [self._find(name) for name in layers]
        errors = gradient_errors(self._objective, part=samples is not None)
        if errors is None:
            return {}
        return dict(zip(layers, self._matrices(located, errors, 1.0), strict=True))

    def sample_groups(self, count: int) -> list[SampleGroup]:
        """Return disjoint groups of whole samples, as equal as the data allow.

        A group takes samples in the order of a checksum of what they hold, so that neither batches
        nor their order matter. Samples lie along the first axis where shapes leave a choice. Where
        they cannot be told apart, whole batches are dealt out.

        Parameters
        ----------
        count : int
            The number of groups, 4 or more.

        Raises
        ------
        InputError
            If there are too few samples, the mean loss over the groups is not that over all data,
            or the data lie on several devices.
        """
        check_group_count(count)

        def made(way: SampleAxis | None) -> list[tuple["CurvatureProblem", float, float]]:
            dealt = batches_of_groups(self._objective, way, count)
            found = [self._on_objective(self._objective.on_batches(each)) for each in dealt]
            return [(each, *terms_and_loss(each._objective)) for each in found]

        ways = [partial(made, way) for way in ways_of(self._objective)]
        return groups_of(self._objective.loss, ways, self._objective.eps)

    def _on_objective(self, objective: Objective) -> "CurvatureProblem":
        """Return the problem of the same model and other data."""
        found, program = copy.copy(self), objective.first().program
        if list(program.layers) != list(self._layers):
            raise InputError("sampling: the model has other layers for batches of another size.")
        found._objective, (found._layers, _) = objective, program.found
        found._setting = replace(self._setting, objective=objective, program=program)
        found._engines = [engine(found._setting) for engine in ENGINES]
        return found

    def _gradients(self, layers: Sequence[Layer]) -> list[jax.Array]:
        self._others.look()  # slower processes may have left their notes by now
        objective = self._objective
        found = self._matrices(layers, objective.gradient_sums(), objective.n_terms)
        placement = objective.placement
        return found if placement is None else [placement.on_one(matrix) for matrix in found]

    def _factors(
        self, layers: Sequence[Layer], options: FactorOptions
    ) -> dict[str, KroneckerFactors]:
        return self._factors_along(layers, options, {})

    def _factors_along(
        self,
        layers: Sequence[Layer],
        options: FactorOptions,
        directions: Mapping[str, tuple[jax.Array, jax.Array]],
    ) -> dict[str, KroneckerFactors]:
        budget = self._setting.memory_budget
        return kronecker_factors(self._objective, layers, options, budget, directions)

    def _directions(self, layer: Layer, u: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        given = (plain(f"layer {layer.info.name!r}: a direction", d) for d in (u, v))
        u, v = (jnp.asarray(d if isinstance(d, jax.Array) else np.asarray(d)) for d in given)
        check_direction_shapes(layer.info, u.shape, v.shape)
        u, v = u.astype(self._parameters.dtype), v.astype(self._parameters.dtype)
        placement = self._objective.placement
        return (u, v) if placement is None else (placement.everywhere(u), placement.everywhere(v))

    def _engines_for(self, kind: CurvatureKind) -> Sequence[CurvatureEngine[Layer]]:
        if kind == "ggn" and not self._setting.tells_outputs:
            raise InputError(
                "curvature 'ggn' needs to know the model's outputs, which loss_fn(params, batch) "
                "does not tell; pass the pair (forward, loss) with forward(params, *inputs) and "
                "loss(outputs, targets)."
            )
        return super()._engines_for(kind)

    def _matrices(self, layers: Sequence[Layer], totals: list[Any], count: float) -> list[Any]:
        """Return the matrices of layers in totals of their parameters, over a count."""
        slices = [(layer.parameter, layer.family.view, layer.starts) for layer in layers]

        def run(totals: Any, count: Any) -> list[Any]:
            return [view.matrix(totals[index], starts) / count for index, view, starts in slices]

        key = ("matrices", *(layer.info.name for layer in layers))
        return list(self._objective.cache.once(key, lambda: jax.jit(run))(totals, count))


def _check_options(
    loss_fn: Any, weight: Any, reduction: Any, dtype: Any, chunk_size: Any, seed: Any
) -> None:
    pair = isinstance(loss_fn, tuple) and len(loss_fn) == 2 and all(map(callable, loss_fn))
    if not pair and not callable(loss_fn):
        raise InputError(
            f"loss_fn: {loss_fn!r} cannot be called; pass loss_fn(params, batch), or the pair "
            "(forward, loss)."
        )
    if weight is not None and not callable(weight):
        raise InputError(f"weight: a {type(weight).__name__} cannot be called; pass a function.")
    check_reduction(reduction)
    if dtype is not None:
        wanted = jnp.dtype(dtype)
        if wanted not in (jnp.dtype("float32"), jnp.dtype("float64")):
            raise InputError(
                f"dtype: {wanted} is no type to measure in; choose float32 or float64."
            )
        if wanted == jnp.dtype("float64") and jax.dtypes.canonicalize_dtype(wanted) != wanted:
            raise InputError(
                "dtype: float64 needs jax.config.update('jax_enable_x64', True) before any array "
                "is made."
            )
    check_chunk_size(chunk_size)
    check_seed(seed)
