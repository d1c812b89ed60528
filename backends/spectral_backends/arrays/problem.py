"""`CurvatureProblem` for arrays: a gradient function, its parameters and its data."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import array_api_compat

from spectral_backends.arrays.complex_step import ComplexStep, random_direction
from spectral_backends.arrays.curvature_rules import (
    AlongFunction,
    CurvatureRule,
    NoGaussNewton,
    ProductFunction,
    RowsFunction,
    called,
)
from spectral_backends.arrays.data_pass import (
    DataPass,
    check_batch,
    check_halves,
    check_nan,
    gradient_totals,
)
from spectral_backends.arrays.differences import (
    Differences,
    check_tolerance,
    directional_changes,
    disagreement,
    norm,
)
from spectral_backends.arrays.gradient_function import GradientFunction, Params
from spectral_backends.arrays.layer_slices import LayerSlice, Matrices, find_slices
from spectral_backends.arrays.libraries import library_of, version_of
from spectral_backends.arrays.rows import Rows, RowSums
from spectral_backends.arrays.rule_engine import RuleEngine
from spectral_backends.arrays.sample_groups import batches_of_groups, n_terms, ways_of
from spectral_core.arrays.namespace import Array, floating
from spectral_core.curvature.argument_checks import check_direction_shapes
from spectral_core.curvature.base_problem import BaseProblem
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.curvature.problem import CurvatureKind, KroneckerFactors, SampleGroup
from spectral_core.errors import InputError, LayerError
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.sampling.sample_groups import check_group_count, groups_of

__all__ = ["CurvatureProblem"]

Method = Literal["auto", "complex-step", "differences"]


class CurvatureProblem(BaseProblem[LayerSlice]):
    """A mean loss over batches, known by a gradient function in array operations (Theory 1).

    Curvatures come from the best available rule. The first is `curvature` or `hvp`, exact functions
    of yours. The second is the complex step through `gradient`, which is exact to rounding if that
    function is analytic as written; this is tested layer by layer. The third is extrapolated
    central differences of `gradient`, with an error estimate for each curvature. The layer's
    certificate names the rule, and says why no better one was taken.

    Parameters
    ----------
    gradient : callable
        ``gradient(params, batch)`` returns the gradient of the batch's MEAN loss by parameter;
        ``gradient(params)`` does so without `batches`. It gets the parameters as a dict and must
        not write to its arguments.
    params : mapping of str to array
        The real floating parameters, of one library, type and device. They are copied.
    batches : iterable, optional
        The batches, of any form that `gradient` understands. They are traversed as often as needed.
    weight : callable, optional
        ``weight(batch)`` returns the number of loss terms that the batch's mean runs over; needed
        for more than one batch, so that no result depends on how the data are cut.
    matrices : mapping, optional
        The matrices of parameters, by globs of names: ``"transposed"`` for inputs × outputs, a spec
        of `as_matrices`, or None for no layer. Two axes are outputs × inputs by default.
    curvature : callable, optional
        ``curvature(layer, u, v[, batch])`` returns ``<D_k, H[D_k]>`` of the batch's mean loss along
        ``D_k = u_k v_kᵀ``, shape (K,), for u (m, K) and v (n, K). It is compared with differences
        of `gradient` along one random direction.
    hvp : callable, optional
        ``hvp(layer, direction[, batch])`` returns H[D] in the layer's parameter, for a direction of
        its shape. It is compared in the same way.
    ggn : callable, optional
        ``ggn(layer, u, v[, batch])`` returns the Gauss-Newton part, in the form of `curvature`.
    rows : callable, optional
        ``rows(layer[, batch])`` returns `Rows` of un-reduced terms. They make Kronecker factors,
        and the Gauss-Newton curvature if there is no `ggn`.
    loss : callable, optional
        ``loss(params[, batch])`` returns a scalar, the mean, or one value for each term. It is only
        for the report.
    method : {"auto", "complex-step", "differences"}
        The rule without `curvature` and `hvp`. "auto" takes the complex step for layers where the
        function passes the test, and differences elsewhere.
    tolerance : float
        The largest error estimate of a difference, relative to the curvature. A layer with a larger
        one is refused.
    check : bool
        Whether to check that two passes agree, that the first batch's halves add up to it, and that
        `curvature` or `hvp` fits `gradient`.

    Raises
    ------
    InputError
        If an argument cannot be used; the message says what to change.
    NonDeterministicError
        If the gradient changes between two passes.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import CurvatureProblem
    >>> x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0], [1.0]])
    >>> def gradient(params):
    ...     return {"w": (x @ params["w"].T - y).T @ x / 2}
    >>> problem = CurvatureProblem(gradient, {"w": np.zeros((1, 2))})
    >>> problem.curvatures("w", np.array([[1.0]]), np.array([[0.0], [1.0]])).round(6)
    array([2.])
    """

    library: ClassVar[str | None] = None

    def __init__(
        self,
        gradient: Callable[..., Mapping[str, Array]],
        params: Mapping[str, Array],
        batches: Iterable[Any] | None = None,
        *,
        weight: Callable[[Any], float] | None = None,
        matrices: Matrices | None = None,
        curvature: Callable[..., Array] | None = None,
        hvp: Callable[..., Array] | None = None,
        ggn: Callable[..., Array] | None = None,
        rows: Callable[..., Rows] | None = None,
        loss: Callable[..., Array] | None = None,
        method: Method = "auto",
        tolerance: float = 1e-3,
        check: bool = True,
    ) -> None:
        self._xp, self._params = _private(params, self.library)
        _check_options(method, tolerance, gradient)
        self._layers, self._skipped = find_slices(self._params, matrices)
        self._data = DataPass(batches, weight)
        self._gradient = GradientFunction(gradient, self._params)
        self._rows, self._check, self._method = rows, check, method
        self._probed = self._data.first()
        self._check_data()
        self._gradient.first_call(self._probed)
        self._means, self._n_terms, self._n_batches = gradient_totals(
            self._gradient, self._params, self._data, check
        )
        if check and self._n_batches > 1:
            check_halves(self._gradient, self._params, self._data, self._probed)
        self._given = _given_rule(curvature, hvp)
        self._by_kind: dict[CurvatureKind, list[RuleEngine]] = {
            "hessian": self._hessian_engines(tolerance),
            "ggn": [RuleEngine(_ggn_rule(ggn, rows), self._data, self._means)],
        }
        self._loss = None if loss is None else self._mean_loss(loss)

    def describe(self) -> dict[str, Any]:
        """Return the description of the problem: its numbers, types and versions."""
        some = next(iter(self._params.values()))
        name = library_of(some)
        return {
            "backend": name,
            "versions": {name: version_of(some)},
            "dtype": str(some.dtype).rpartition(".")[2],
            "device": str(array_api_compat.device(some)),
            "seed": None,
            "loss": self._loss,
            "gradient_norm": sum(norm(self._xp, g) ** 2 for g in self._means.values()) ** 0.5,
            "n_terms": self._n_terms if self._data.weighted else None,
            "n_batches": self._n_batches,
            "curvature": self._given.name if self._given else self._method,
        }

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
            If there are too few samples, the functions hold the data themselves, or the mean
            gradient over the groups is not that over all data.
        """
        check_group_count(count)

        def made(way: SampleAxis | None) -> list[tuple["CurvatureProblem", float, float]]:
            dealt = batches_of_groups(self._data, way, count)
            found = [self._on_data(self._data.on_batches(each)) for each in dealt]
            return [(each, n_terms(each._data), each._along_gradient(self)) for each in found]

        ways = [partial(made, way) for way in ways_of(self._data)]
        eps = float(self._xp.finfo(next(iter(self._params.values())).dtype).eps)
        return groups_of(self._along_gradient(self), ways, eps)

    def _on_data(self, data: DataPass) -> "CurvatureProblem":
        """Return the problem of the same functions and other data."""
        found = copy.copy(self)
        found._data = data
        found._means, found._n_terms, found._n_batches = gradient_totals(
            self._gradient, self._params, data, check=False
        )
        found._by_kind = {
            kind: [engine.on_data(data, found._means) for engine in engines]
            for kind, engines in self._by_kind.items()
        }
        return found

    def _along_gradient(self, other: "CurvatureProblem") -> float:
        """Return the product of the gradient with that of another problem of these parameters."""
        products = (self._xp.sum(g * other._means[name]) for name, g in self._means.items())
        return float(sum(map(float, products)))

    def _gradients(self, layers: Sequence[LayerSlice]) -> list[Array]:
        return [layer.matrix(self._means[layer.parameter]) for layer in layers]

    def _factors(
        self, layers: Sequence[LayerSlice], options: FactorOptions
    ) -> dict[str, KroneckerFactors]:
        return self._factors_along(layers, options, {})

    def _factors_along(
        self,
        layers: Sequence[LayerSlice],
        options: FactorOptions,
        directions: Mapping[str, tuple[Array, Array]],
    ) -> dict[str, KroneckerFactors]:
        """Return the factors from `rows`, which are exact."""
        if self._rows is None:
            raise LayerError(layers[0].info.name, "no Kronecker factors without rows=; see `Rows`.")
        sums = {
            name: RowSums(name, options.fisher_type, options.kfac_approx, directions.get(name))
            for name in (layer.info.name for layer in layers)
        }
        for batch, _ in self._data:
            for layer in layers:
                rows = called(self._rows, (layer.info.name,), batch)
                _check_rows(layer, rows)
                sums[layer.info.name].add(rows)
        return {name: total.factors() for name, total in sums.items()}

    @property
    def engine_names(self) -> tuple[str, ...]:
        """Return no names, as `method` and the given functions decide on the rule."""
        return ()

    def _engines_for(self, kind: CurvatureKind) -> Sequence[RuleEngine]:
        return self._by_kind[kind]

    def _one_by_one(self, kind: CurvatureKind) -> Sequence[RuleEngine]:
        return self._by_kind[kind]

    def _check_engine(self, engine: Any) -> None:
        if engine != "auto":
            raise InputError(
                f"engine: {engine!r} is one of automatic differentiation; a problem of arrays "
                "takes 'auto', and its own method='complex-step' or 'differences'."
            )

    def _hessian_engines(self, tolerance: float) -> list[RuleEngine]:
        """Return the user's function, or else complex step and differences, as `method` says."""
        data, means = self._data, self._means
        if self._given is not None:
            test = partial(_why_not_given, self._given, self._gradient, self._params, self._probed)
            return [RuleEngine(self._given, data, means, test if self._check else None)]
        step = ComplexStep(self._gradient, self._params)
        analytic = RuleEngine(step, data, means, partial(step.why_not, batch=self._probed))
        if self._method == "complex-step":
            return [analytic]
        before = [analytic] if self._method == "auto" else []
        rule = Differences(self._gradient, self._params, tolerance)
        why_not = partial(_why_no_differences, self._params)
        return [*before, RuleEngine(rule, data, means, why_not, *before)]

    def _mean_loss(self, loss: Callable[..., Array]) -> float:
        count = total = 0.0
        for batch, terms in self._data:
            values = called(loss, (dict(self._params),), batch)
            total += terms * float(self._xp.mean(values))
            count += terms
        return total / count

    def _check_data(self) -> None:
        for name, array in self._params.items():
            check_nan(array, f"params: {name!r}")
        check_batch(0, self._probed)

    def _directions(self, layer: LayerSlice, u: Array, v: Array) -> tuple[Array, Array]:
        _, (u, v) = floating(u=u, v=v)
        check_direction_shapes(layer.info, u.shape, v.shape)
        dtype = self._params[layer.parameter].dtype
        return self._xp.astype(u, dtype, copy=False), self._xp.astype(v, dtype, copy=False)


def _private(params: Mapping[str, Array], library: str | None) -> tuple[Any, dict[str, Array]]:
    """Return the namespace and copies of the parameters."""
    if not isinstance(params, Mapping) or not params:
        raise InputError(
            f"params: a {type(params).__name__} with nothing in it or no names; pass a dict of "
            "arrays."
        )
    for name, array in params.items():
        if library is not None and library_of(array) != library:
            raise InputError(
                f"params: {name!r} is a {type(array).__module__} array; this is the problem for "
                f"{library}. spectral_backends.arrays takes any library."
            )
    xp, arrays = floating(**{str(name): array for name, array in params.items()})
    if len(kinds := {(str(a.dtype), str(array_api_compat.device(a))) for a in arrays}) > 1:
        raise InputError(f"params: are of several types or devices, {sorted(kinds)}; use one.")
    if xp.finfo(arrays[0].dtype).bits < 32:
        raise InputError(
            f"params: {arrays[0].dtype} is too coarse to measure in; convert to float32 or float64."
        )
    copies = [xp.asarray(array, dtype=array.dtype, copy=True) for array in arrays]
    return xp, dict(zip(params, copies, strict=True))


def _given_rule(
    curvature: Callable[..., Array] | None, hvp: Callable[..., Array] | None
) -> AlongFunction | ProductFunction | None:
    if curvature is not None:
        return AlongFunction("curvature", curvature)
    return None if hvp is None else ProductFunction(hvp)


def _ggn_rule(ggn: Callable[..., Array] | None, rows: Callable[..., Rows] | None) -> CurvatureRule:
    if ggn is not None:
        return AlongFunction("ggn", ggn)
    return NoGaussNewton() if rows is None else RowsFunction(rows)


def _why_not_given(
    rule: AlongFunction | ProductFunction,
    gradient: GradientFunction,
    params: Params,
    batch: Any,
    layer: LayerSlice,
) -> str:
    """Return a sentence on the error of the user's function against differences of `gradient`."""
    like, (m, n) = params[layer.parameter], layer.info.shape
    xp = array_api_compat.array_namespace(like)
    if isinstance(rule, ProductFunction):
        matrix = random_direction(xp, like, m, n)
        value = rule.product(layer, matrix, batch)
    else:
        u, v = random_direction(xp, like, m, 1), random_direction(xp, like, n, 1)
        matrix = u @ xp.matrix_transpose(v)
        value = rule.batch_values(layer, u, v, batch)
    changes = directional_changes(gradient, params, layer, matrix, batch)
    if isinstance(rule, AlongFunction):
        changes = [c.along(matrix) for c in changes]
    found = disagreement(xp, value, changes)
    if found <= check_tolerance(float(xp.finfo(matrix.dtype).eps)):
        return ""
    return (
        f"{rule.name} along a random direction is off by {found:.2g} from differences of "
        "gradient: both must be of the batch's mean loss, in the layer's orientation. Pass "
        "check=False if it is the gradient that is wrong."
    )


def _why_no_differences(params: Params, layer: LayerSlice) -> str:
    dtype = params[layer.parameter].dtype
    if array_api_compat.array_namespace(params[layer.parameter]).finfo(dtype).bits == 64:
        return ""
    return (
        f"differences of gradients in {dtype} say nothing of curvature (half of it came out "
        "negative where this was tried); convert parameters and data to float64."
    )


def _check_options(method: str, tolerance: float, gradient: Any) -> None:
    if method not in ("auto", "complex-step", "differences"):
        raise InputError(
            f"method: {method!r} is unknown; choose 'auto', 'complex-step' or 'differences'."
        )
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance: {tolerance!r} is not between 0 and 1; 1e-3 is the default.")
    if not callable(gradient):
        raise InputError(f"gradient: a {type(gradient).__name__} cannot be called.")


def _check_rows(layer: LayerSlice, rows: Rows) -> None:
    m, n = layer.info.shape
    if rows.inputs.shape[-1] != n or rows.outputs not in (m, None):
        raise InputError(
            f"rows: those of {layer.info.name!r} have {rows.inputs.shape[-1]} inputs and "
            f"{rows.outputs} outputs; its matrix is {m}×{n}."
        )
