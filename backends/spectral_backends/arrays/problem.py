"""`CurvatureProblem` for arrays: a gradient function, its parameters and its data."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import array_api_compat

from spectral_backends.arrays.complex_step import ComplexStep, random_direction
from spectral_backends.arrays.curvature_rules import (
    AlongFunction,
    CurvatureRule,
    Found,
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
from spectral_backends.arrays.gradient_function import GradientFunction
from spectral_backends.arrays.layer_slices import LayerSlice, Matrices, find_slices
from spectral_backends.arrays.libraries import library_of, version_of
from spectral_backends.arrays.rows import Rows, RowSums
from spectral_core.arrays.namespace import Array, floating, to_numpy
from spectral_core.curvature.argument_checks import check_direction_shapes, check_kind, find_layer
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature
from spectral_core.curvature.problem import (
    CurvatureKind,
    Delta,
    KroneckerFactors,
    LayerInfo,
    Sharing,
)
from spectral_core.errors import InputError, LayerError

__all__ = ["CurvatureProblem"]

Method = Literal["auto", "complex-step", "differences"]


class CurvatureProblem:
    """A mean loss over batches, known by a gradient function in array operations (Theory 1).

    Curvatures come from the best that there is: `curvature` or `hvp`, exact functions of yours; or
    the complex step through `gradient`, exact to rounding where that is analytic as written, which
    is tested layer by layer; or central differences of it, extrapolated, with an error estimate for
    each curvature. The layer's certificate says which, and why no better one.

    Parameters
    ----------
    gradient : callable
        ``gradient(params, batch)`` returns the gradient of the batch's MEAN loss by parameter;
        ``gradient(params)`` without `batches`. It gets the parameters as a dict and must not write
        to what it gets.
    params : mapping of str to array
        Real floating parameters of one library, type and device; copied.
    batches : iterable, optional
        Of anything that `gradient` understands; traversed as often as needed.
    weight : callable, optional
        ``weight(batch)`` returns the number of loss terms that the batch's mean runs over; needed
        for more than one batch, so that no result depends on how the data are cut.
    matrices : mapping, optional
        Globs of parameter names to ``"transposed"`` for inputs × outputs, a spec of `as_matrices`,
        or None for no layer. Two axes are outputs × inputs by default.
    curvature : callable, optional
        ``curvature(layer, u, v[, batch])`` returns ``<D_k, H[D_k]>`` of the batch's mean loss along
        ``D_k = u_k v_kᵀ``, shape (K,), for u (m, K) and v (n, K). Compared with differences of
        `gradient` along one random direction.
    hvp : callable, optional
        ``hvp(layer, direction[, batch])`` returns H[D] in the layer's parameter, for a direction of
        its shape. Compared likewise.
    ggn : callable, optional
        As `curvature`, of the Gauss-Newton part.
    rows : callable, optional
        ``rows(layer[, batch])`` returns `Rows` of un-reduced terms: Kronecker factors, and the
        Gauss-Newton curvature where there is no `ggn`.
    loss : callable, optional
        ``loss(params[, batch])`` returns a scalar, the mean, or one value a term. For the report.
    method : {"auto", "complex-step", "differences"}
        Without `curvature` and `hvp`: "auto" takes the complex step where the function stands the
        test, and differences elsewhere.
    tolerance : float
        Largest error estimate of a difference, relative to the curvature; a layer beyond it is
        refused.
    check : bool
        Whether to look that two passes agree, that the first batch's halves add up to it, and that
        `curvature` or `hvp` fits `gradient`.

    Raises
    ------
    InputError
        If an argument cannot be used; the message says what to change.
    NonDeterministicError
        If the gradient changes between two passes.
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
        self._slices, self._skipped = find_slices(self._params, matrices)
        self._data = DataPass(batches, weight)
        self._gradient = GradientFunction(gradient, self._params)
        self._rows, self._check, self._method = rows, check, method
        self._probed = self._data.first()
        self._check_data()
        self._gradient.first_call(self._probed)
        self._gradients, self._n_terms, self._n_batches = gradient_totals(
            self._gradient, self._params, self._data, check
        )
        if check and self._n_batches > 1:
            check_halves(self._gradient, self._params, self._data, self._probed)
        self._complex = ComplexStep(self._gradient, self._params)
        self._differences = Differences(self._gradient, self._params, tolerance)
        self._given = _given_rule(curvature, hvp)
        self._ggn = AlongFunction("ggn", ggn) if ggn else RowsFunction(rows) if rows else None
        self._loss = None if loss is None else self._mean_loss(loss)
        self._chosen: dict[str, tuple[CurvatureRule, str]] = {}

    def layers(self) -> list[LayerInfo]:
        """Return the weight matrices in the order of the parameters."""
        return [layer.info for layer in self._slices.values()]

    def skipped(self) -> dict[str, str]:
        """Return the parameters of two or more axes that are no layer, with the reason."""
        return dict(self._skipped)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem: its numbers, types and versions."""
        some = next(iter(self._params.values()))
        name = library_of(some)
        return {
            "backend": name,
            "versions": {name: version_of(some)},
            "dtype": str(some.dtype).rpartition(".")[2],
            "device": str(array_api_compat.device(some)),
            "seed": None,
            "loss": self._loss,
            "gradient_norm": sum(norm(self._xp, g) ** 2 for g in self._gradients.values()) ** 0.5,
            "n_terms": self._n_terms if self._data.weighted else None,
            "n_batches": self._n_batches,
            "curvature": self._given.name if self._given else self._method,
        }

    def gradients(self, layers: Sequence[str]) -> dict[str, Array]:
        """Return ``G = ∂L/∂W`` of shape ``(m, n)`` for each named layer.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        slices = [self._find(name) for name in layers]
        return {p.info.name: p.matrix(self._gradients[p.parameter]) for p in slices}

    def curvatures(self, layer: str, u: Array, v: Array, kind: CurvatureKind = "hessian") -> Array:
        """Return ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, shape (K,).

        Raises
        ------
        InputError
            If the layer is unknown or the shapes do not fit it.
        LayerError
            If there is no way to the curvature, or it is not finite, or differences are too coarse.
        """
        return self._measured(layer, u, v, kind)[0].values

    def layer_curvatures(
        self,
        directions: Mapping[str, tuple[Array, Array]],
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        draws: int = 64,
        done: Collection[str] = (),
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of each layer with its certificate.

        Parameters
        ----------
        directions : mapping of str to (u, v)
            By layer, shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            As in `curvatures`.
        engine : {"auto"}
            The engines are those of automatic differentiation; here the ways are as said above.
        draws : int
            Of no use here.
        done : collection of str
            Layers that are not wanted.
        tell : callable, optional
            Is told which layer is being computed.

        Raises
        ------
        InputError
            If another engine is asked for, a layer is unknown or shapes do not fit.
        """
        if engine != "auto":
            raise InputError(
                f"engine: {engine!r} is one of automatic differentiation; a problem of arrays "
                "takes 'auto', and its own method='complex-step' or 'differences'."
            )
        for name, (u, v) in directions.items():
            if name in done:
                continue
            if tell is not None:
                tell(name)
            try:
                found, rule, reason = self._measured(name, u, v, kind)
            except LayerError as error:
                yield error
                continue
            derivative, remark = self._derivative(name, u, v, found)
            certificate = Certificate(
                rule,
                reason=reason or remark,
                standard_error=None if found.error is None else to_numpy(found.error),
            )
            ggn = found.values if kind == "ggn" else None
            yield LayerCurvature(name, found.values, certificate, ggn, derivative)

    def kronecker_factors(
        self, layers: Sequence[str], *, delta: Delta = "ggn", sharing: Sharing = "expand"
    ) -> dict[str, KroneckerFactors]:
        """Return ``C_δ`` and ``C_A`` of each named layer, from `rows` (Theory 4).

        Raises
        ------
        InputError
            If a name is no layer, or an option is unknown.
        LayerError
            If there is no `rows`, or it lacks what `delta` needs.
        """
        slices = [self._find(name) for name in layers]
        sums = {p.info.name: RowSums(p.info.name, delta, sharing) for p in slices}
        if self._rows is None:
            name = slices[0].info.name
            raise LayerError(name, "no Kronecker factors without rows=; see `Rows`.")
        for batch, _ in self._data:
            for own in slices:
                rows = called(self._rows, (own.info.name,), batch)
                _check_rows(own, rows)
                sums[own.info.name].add(rows)
        return {name: total.factors() for name, total in sums.items()}

    def _measured(self, layer: str, u: Array, v: Array, kind: str) -> tuple[Found, str, str]:
        """Return what a rule found, the rule's name, and why no better one was taken."""
        own = self._find(layer)
        check_kind(kind)
        u, v = self._directions(own, u, v)
        rule, reason = self._rule(own) if kind == "hessian" else (self._ggn_rule(own), "")
        count, totals = 0.0, None
        for batch, terms in self._data:
            values = terms * rule.batch_values(own, u, v, batch)
            totals = values if totals is None else totals + values
            count += terms
        assert totals is not None
        try:
            found = rule.finish(own, totals / count)
        except LayerError as error:
            raise LayerError(layer, f"{error.reason} {reason}".rstrip()) from error
        if not bool(self._xp.all(self._xp.isfinite(found.values))):
            raise LayerError(
                layer,
                f"{rule.name} gives NaN or infinite curvatures; look for an overflow, a division "
                "by zero or a square root at zero behind this layer.",
            )
        return found, rule.name, reason

    def _derivative(self, layer: str, u: Array, v: Array, found: Found) -> tuple[Any, str]:
        """Return the derivatives along the directions, or a remark where they are rounding."""
        if found.derivative is None:
            return None, ""
        xp, gradient = self._xp, self.gradients([layer])[layer]
        wanted = xp.sum(u * (gradient @ v), axis=0)
        largest = float(xp.max(xp.abs(wanted)))
        off = float(xp.max(xp.abs(found.derivative - wanted)))
        if off <= 0.5 * float(xp.finfo(gradient.dtype).eps) ** 0.5 * largest:
            return found.derivative, ""
        return None, (
            f"derivatives along D_k differ by {off / largest:.1g} σ_1 from those of the real "
            "gradient, which is left over from a cancellation and has no more digits"
        )

    def _rule(self, layer: LayerSlice) -> tuple[CurvatureRule, str]:
        if layer.info.name not in self._chosen:
            self._chosen[layer.info.name] = self._choose(layer)
        return self._chosen[layer.info.name]

    def _choose(self, layer: LayerSlice) -> tuple[CurvatureRule, str]:
        """Return the best rule for a layer, and why it is no better one."""
        name = layer.info.name
        if self._given is not None:
            if self._check:
                self._check_given(layer, self._given)
            return self._given, ""
        reason = ""
        if self._method != "differences":
            reason = self._complex.why_not(layer, self._probed)
            if not reason:
                return self._complex, ""
            if self._method == "complex-step":
                raise LayerError(name, reason)
        dtype = self._params[layer.parameter].dtype
        if self._xp.finfo(dtype).bits != 64:
            raise LayerError(
                name,
                f"{f'{reason} And differences' if reason else 'differences'} of gradients in "
                f"{dtype} say nothing of curvature (half of it came out negative where this was "
                "tried); convert parameters and data to float64.",
            )
        return self._differences, reason

    def _ggn_rule(self, layer: LayerSlice) -> CurvatureRule:
        if self._ggn is None:
            raise LayerError(
                layer.info.name, "no Gauss-Newton curvature without ggn= or rows=; pass one."
            )
        return self._ggn

    def _check_given(self, layer: LayerSlice, rule: AlongFunction | ProductFunction) -> None:
        """Hold the user's function against differences of the user's gradient."""
        xp, (m, n) = self._xp, layer.info.shape
        like = self._params[layer.parameter]
        if isinstance(rule, ProductFunction):
            matrix = random_direction(xp, like, m, n)
            value = rule.product(layer, matrix, self._probed)
        else:
            u, v = random_direction(xp, like, m, 1), random_direction(xp, like, n, 1)
            matrix = u @ xp.matrix_transpose(v)
            value = rule.batch_values(layer, u, v, self._probed)
        changes = directional_changes(self._gradient, self._params, layer, matrix, self._probed)
        if isinstance(rule, AlongFunction):
            changes = [c.along(matrix) for c in changes]
        found = disagreement(xp, value, changes)
        if not found <= check_tolerance(float(xp.finfo(matrix.dtype).eps)):
            raise LayerError(
                layer.info.name,
                f"{rule.name} along a random direction is off by {found:.2g} from differences of "
                "gradient: both must be of the batch's mean loss, in the layer's orientation. Pass "
                "check=False if it is the gradient that is wrong.",
            )

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

    def _find(self, name: str) -> LayerSlice:
        return find_layer(name, self._slices, self._skipped)

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
