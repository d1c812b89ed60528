"""`CurvatureProblem` for JAX: a pure function, its parameters and its data."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.processes import find_board, identity_of
from spectral_backends.jax.engines.hessian_products import curvatures_along
from spectral_backends.jax.engines.registry import CurvatureDriver
from spectral_backends.jax.factors.kronecker import kronecker_factors
from spectral_backends.jax.jaxprs.sizes import largest_value
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.layers.matrix_view import MatrixView
from spectral_backends.jax.objective.batch_statistics import refuse_batch_statistics
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.gradient_errors import gradient_errors
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss
from spectral_core.arrays.plain import plain
from spectral_core.curvature.argument_checks import (
    check_chunk_size,
    check_direction_shapes,
    check_kind,
    check_reduction,
    check_reiterable,
    check_seed,
    find_layer,
    narrowed,
)
from spectral_core.curvature.certificate import Engine, LayerCurvature
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.curvature.problem import (
    CurvatureKind,
    Delta,
    KroneckerFactors,
    LayerInfo,
    Sharing,
)
from spectral_core.curvature.processes import OtherData
from spectral_core.errors import InputError, LayerError
from spectral_core.losses.terms import Reduction

__all__ = ["CurvatureProblem"]

ENGINES = ("auto", "columns", "tangents", "double-backward")

LIVE_VALUES = 8
"""Values of the largest size that a direction takes while it passes through the network."""


class CurvatureProblem:
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
        curvature, as nothing tells its outputs. Pure, and fit for ``jax.jit``.
    params : pytree
        Of floating arrays; whatever else is among its leaves is a constant. Dicts, Equinox
        modules, Flax states and any other pytree will do.
    batches : iterable
        Of pytrees of arrays, traversed as often as needed. Floating arrays are cast to the dtype
        of the parameters.
    weight : callable, optional
        ``weight(batch)`` returns the number of terms that the batch's loss averages. By default it
        is read off the end of the loss, and the parts of a batch that is cut in two must bear it
        out. Weights that contradict the loss are refused.
    reduction : {"mean", "sum"}, optional
        How the loss reduces its terms, where that cannot be read off. A sum is divided by the
        number of terms.
    dtype : dtype, optional
        Measure in this type. By default that of the parameters, float32 for half precision;
        float64 needs ``jax_enable_x64``.
    seed : int
        Of random draws.
    chunk_size : int, optional
        Directions differentiated together. By default what fits `memory_budget`.
    memory_budget : int, optional
        Bytes that one chunk may take on each device. By default 8 MiB on a CPU, where larger chunks
        fall out of the caches and were measured slower, and 1 GiB elsewhere.
    check_deterministic : bool
        Refuse a loader that gives other data in its second pass (a list or tuple is not asked), and
        a model that normalises by statistics of its batch, as batch norm in training mode.

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
        self._seed, self._chunk_size = seed, chunk_size
        self._device = next(iter(self._parameters.values[0].devices()))
        self._objective = Objective(loss_fn, self._parameters, batches, weight, reduction, seed)
        first = self._objective.first()
        self._objective.check_differentiable(first)
        each = memory_budget or 2 ** (23 if self._device.platform == "cpu" else 30)
        placement = first.placement
        self._memory_budget = each * (1 if placement is None else placement.shares)
        if check_deterministic:
            refuse_batch_statistics(loss_fn, self._parameters, first)
        self._objective.evaluate(check=check_deterministic)
        if self._is_narrowed():
            told = narrowed(str(self._parameters.dtype), str(self._objective.precision))
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        self._layers, self._skipped = first.program.found
        self._reversed: set[int] = set()
        self._others = OtherData(
            find_board(),
            partial(identity_of, self._parameters.values),
            self._objective.loss,
            self._objective.n_terms if self._objective.known else None,
        )
        self._others.look()

    def layers(self) -> list[LayerInfo]:
        """Return the weight matrices in the order of the forward pass."""
        return [layer.info for layer in self._layers.values()]

    def skipped(self) -> dict[str, str]:
        """Return the parameters of two or more axes that are no layer, with the reason."""
        return dict(self._skipped)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem: numbers of the data, loss, types and versions."""
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

    def gradients(self, layers: Sequence[str]) -> dict[str, jax.Array]:
        """Return ``G = ∂L/∂W`` of shape ``(m, n)`` for each named layer, in one pass.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        self._others.look()  # those that were slower may be there by now
        located = [self._find(name) for name in layers]
        found = self._matrices(located, self._objective.gradient_sums(), self._objective.n_terms)
        if self._objective.placement is not None:
            found = [self._objective.placement.on_one(matrix) for matrix in found]
        return dict(zip(layers, found, strict=True))

    def gradient_errors(
        self, layers: Sequence[str], *, samples: int | None = None
    ) -> dict[str, jax.Array]:
        """Return about ``G − G'`` of shape ``(m, n)``, with G' exact for the same values.

        G' is computed in float64, which need not be enabled. For a problem in float64 it is
        computed in float32, and the difference scaled by 2⁻²⁹.

        Parameters
        ----------
        layers : sequence of str
            Names of layers.
        samples : int, optional
            If given, the first batch does, or the first samples of a long one: what compiling takes
            is more. By default all data are gone through.

        Returns
        -------
        dict of str to jax.Array
            In the problem's dtype; empty where the functions cannot be run in the other type, draw
            random numbers, or lie on several devices.

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

    def curvatures(self, layer: str, u: Any, v: Any, kind: CurvatureKind = "hessian") -> jax.Array:
        """Return ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, exactly, in one pass.

        Parameters
        ----------
        layer : str
            Name of the layer.
        u, v : array
            Shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            The Hessian of L in this layer's weight, or its generalised Gauss-Newton part.

        Returns
        -------
        jax.Array
            Shape ``(K,)``, in the problem's dtype and on its device.

        Raises
        ------
        InputError
            If the layer is unknown, the shapes do not fit it, or the outputs are not told.
        LayerError
            If JAX cannot differentiate the layer twice.
        """
        located = self._find(layer)
        check_kind(kind)
        u, v = self._directions(located, u, v)
        total = np.zeros(u.shape[1])
        for batch, terms in self._objective.weighted():
            if kind == "ggn" and batch.program.forward is None:
                raise InputError(_NO_OUTPUTS)
            total += terms.scale * np.asarray(
                self._batch_curvatures(located, batch, u, v, kind), np.float64
            )
        return jnp.asarray(total / self._objective.n_terms, self._parameters.dtype)

    def layer_curvatures(
        self,
        directions: Mapping[str, tuple[Any, Any]],
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        draws: int = 64,
        done: Collection[str] = (),
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of many layers, computed together.

        Parameters
        ----------
        directions : mapping of str to (u, v)
            By layer, shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            As in `curvatures`.
        engine : {"auto", "columns", "tangents", "double-backward"}
            How; ``"auto"`` takes the cheapest that is exact for each layer.
        draws : int
            Is for other backends.
        done : collection of str
            Layers that are not wanted. What they are does not change a bit of the others.
        tell : callable, optional
            Is told, in a few words, what is being computed.

        Yields
        ------
        LayerCurvature or LayerError
            For each layer, as soon as it is computed, in any order.

        Raises
        ------
        InputError
            If a layer or engine is unknown, or the shapes do not fit.
        """
        check_kind(kind)
        if engine not in ENGINES:
            raise InputError(
                f"engine: {engine!r} is none of those of the JAX backend; choose one of "
                f"{', '.join(map(repr, ENGINES))}."
            )
        given = {name: self._directions(self._find(name), *d) for name, d in directions.items()}
        if kind == "ggn" and self._objective.first().program.forward is None:
            raise InputError(_NO_OUTPUTS)
        driver = CurvatureDriver(
            self._objective,
            self._layers,
            given,
            kind,
            one_layer=self.curvatures,
            memory_budget=self._memory_budget,
            together=self._chunk,
            tell=tell or (lambda text: None),
        )
        return driver.run(engine, done)

    def kronecker_factors(
        self,
        layers: Sequence[str],
        *,
        delta: Delta = "ggn",
        sharing: Sharing = "expand",
        draws: int = 16,
        max_columns: int = 128,
    ) -> dict[str, KroneckerFactors]:
        """Return ``C_δ`` and ``C_A`` of each named layer in one pass over the data (Theory 4).

        ``C_A`` is the mean of ``a aᵀ`` over positions and terms, ``C_δ = (1/N) Σ δ δᵀ`` with the
        un-reduced terms' gradients δ at the layer's outputs; all loss scaling is in ``C_δ``.
        Memory is O(m² + n²) for each layer; sums over batches are in float64 on the host.

        Parameters
        ----------
        layers : sequence of str
            Names of layers.
        delta : {"ggn", "fisher-mc", "empirical"}
            Columns of the root of the loss's Hessian in the outputs; gradients for targets drawn
            from the model; gradients for the true targets.
        sharing : {"expand", "reduce"}
            Positions that share the weight each count, or inputs are averaged and output gradients
            summed over them first (Theory 4.3; as in KFAC-expand and KFAC-reduce).
        draws : int
            Monte-Carlo draws per batch, an even number, where ``C_δ`` cannot be exact.
        max_columns : int
            ``C_δ`` is exact where the loss has at most this many root vectors per sample: classes
            (less one) times positions of the outputs. Beyond it, or where samples of the outputs
            meet in the network (flattened tokens), it is an unbiased estimate from `draws` random
            combinations of all of them, with `KroneckerFactors.output_noise` for its standard
            error.

        Returns
        -------
        dict of str to KroneckerFactors
            Arrays on the problem's device, in float64 where ``jax_enable_x64`` is set.

        Raises
        ------
        InputError
            If a name is no layer, an option is unknown, the outputs are not told, or the loss is
            not convex in them.
        LayerError
            If a factor would be too large, or positions cannot be told from samples.
        """
        located = [self._find(name) for name in layers]
        options = FactorOptions(delta, sharing, draws, max_columns)
        return kronecker_factors(self._objective, located, options, self._memory_budget)

    def _matrices(self, layers: list[Layer], totals: list[Any], count: float) -> list[Any]:
        """Return the matrices of layers in totals of their parameters."""
        places = [(layer.parameter, layer.family.view, layer.starts) for layer in layers]
        key = ("matrices", *(layer.info.name for layer in layers))
        run = self._objective.cache.once(key, lambda: jax.jit(_matrices(places)))
        return list(run(totals, count))

    def _batch_curvatures(self, layer: Layer, batch: Batch, u: Any, v: Any, kind: Any) -> Any:
        # Batches of other shapes have other jaxprs, and with them families of their own.
        own = batch.program.layers[layer.info.name]
        ways = [True] if layer.parameter in self._reversed else [False, True]
        arguments = (batch.values, batch.leaves, own.starts, u, v)
        for reverse in ways:
            key = (kind, own.family, u.shape[1], reverse)
            run = self._objective.cache.compiled(
                batch,
                key,
                partial(
                    curvatures_along,
                    batch.program,
                    own,
                    kind,
                    self._chunk(batch, own),
                    reverse=reverse,
                ),
            )
            try:
                return run(*arguments)
            except (TypeError, ValueError, NotImplementedError) as error:
                if reverse:
                    first = str(error).strip().splitlines()[0]
                    raise LayerError(
                        layer.info.name,
                        f"JAX cannot differentiate the loss twice here ({first}); replace the "
                        "operation by one with a second derivative.",
                    ) from error
                self._reversed.add(layer.parameter)
        raise AssertionError("unreachable")

    def _chunk(self, batch: Batch, layer: Layer) -> int:
        """Return how many directions of a layer go together."""
        weight = self._parameters.values[layer.parameter].nbytes
        each = LIVE_VALUES * largest_value(batch.program.model) + 3 * weight
        return self._chunk_size or max(1, self._memory_budget // each)

    def _find(self, name: str) -> Layer:
        return find_layer(name, self._layers, self._skipped)

    def _directions(self, layer: Layer, u: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        given = (plain(f"layer {layer.info.name!r}: a direction", d) for d in (u, v))
        u, v = (jnp.asarray(d if isinstance(d, jax.Array) else np.asarray(d)) for d in given)
        check_direction_shapes(layer.info, u.shape, v.shape)
        u, v = u.astype(self._parameters.dtype), v.astype(self._parameters.dtype)
        placement = self._objective.placement
        return (u, v) if placement is None else (placement.everywhere(u), placement.everywhere(v))


def _matrices(places: list[tuple[int, MatrixView, tuple[int, ...]]]) -> Callable[..., Any]:
    def run(totals: Any, count: Any) -> Any:
        return [view.matrix(totals[index], starts) / count for index, view, starts in places]

    return run


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


_NO_OUTPUTS = (
    "curvature 'ggn' needs to know the model's outputs, which loss_fn(params, batch) does not "
    "tell; pass the pair (forward, loss) with forward(params, *inputs) and loss(outputs, targets)."
)
