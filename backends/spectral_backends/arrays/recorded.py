"""A problem of recorded arrays: gradients, inputs and output gradients, and no function at all."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import array_api_compat

from spectral_backends.arrays.differences import norm
from spectral_backends.arrays.libraries import library_of, version_of
from spectral_backends.arrays.rows import Rows, RowSums, ggn_along, gradient_of
from spectral_core._renamed import renamed_arguments
from spectral_core.arrays.namespace import Array, floating
from spectral_core.curvature.argument_checks import check_direction_shapes, find_layer
from spectral_core.curvature.problem import (
    CurvatureKind,
    FisherType,
    KfacApprox,
    KroneckerFactors,
    LayerInfo,
)
from spectral_core.errors import InputError, LayerError

__all__ = ["RecordedProblem"]


class RecordedProblem:
    """A problem of arrays that were recorded in a pass over the data.

    It gives Gauss-Newton curvatures, Kronecker factors and the decomposition. It cannot give the
    Hessian of a layer, which equals the Gauss-Newton part if the network is piecewise linear in the
    weight (Theory 5.8). Measure it with ``curvature="ggn"``, and ``decompose=True``.

    Parameters
    ----------
    layers : mapping of str to Rows, or to a sequence of Rows
        The recorded rows of each layer. Several `Rows` are several batches. ``h^GGN`` needs their
        `root_gradients`.
    gradients : mapping of str to array, optional
        G of the MEAN loss, shape (m, n); by default it is made of inputs and output gradients,
        ``(1/N) Σ δ aᵀ``. If both are there they are compared, which shows an output gradient that
        was divided by N, or a G that was not.

    Raises
    ------
    InputError
        If a layer has no gradient, shapes do not fit, or the two gradients differ.

    Examples
    --------
    >>> import numpy as np
    >>> from spectral_backends.numpy import RecordedProblem, Rows
    >>> rows = Rows(np.array([[1.0, 2.0]]), np.array([[3.0]]))
    >>> RecordedProblem({"layer": rows}).gradients(["layer"])["layer"]
    array([[3., 6.]])
    """

    curvature_engine: ClassVar[str] = "rows"

    def __init__(
        self,
        layers: Mapping[str, Rows | Sequence[Rows]],
        gradients: Mapping[str, Array] | None = None,
    ) -> None:
        if not layers:
            raise InputError("layers: there is none; pass the Rows of at least one.")
        gradients = dict(gradients or {})
        if unknown := set(gradients) - set(layers):
            raise InputError(f"gradients: {sorted(unknown)} are not among the layers.")
        self._rows = {
            name: (rows,) if isinstance(rows, Rows) else tuple(rows)
            for name, rows in layers.items()
        }
        self._gradients = {
            name: _gradient(name, rows, gradients.get(name)) for name, rows in self._rows.items()
        }

    def layers(self) -> list[LayerInfo]:
        """Return the layers in the order in which they were given."""
        shapes = {name: gradient.shape for name, gradient in self._gradients.items()}
        return [LayerInfo(name, "linear", (int(m), int(n))) for name, (m, n) in shapes.items()]

    def skipped(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the description of the problem: numbers of the data, types and versions."""
        some = next(iter(self._gradients.values()))
        name = library_of(some)
        batches = next(iter(self._rows.values()))
        xp = array_api_compat.array_namespace(some)
        return {
            "backend": name,
            "versions": {name: version_of(some)},
            "dtype": str(some.dtype).rpartition(".")[2],
            "device": str(array_api_compat.device(some)),
            "seed": None,
            "loss": None,
            "gradient_norm": sum(norm(xp, g) ** 2 for g in self._gradients.values()) ** 0.5,
            "n_terms": sum(rows.n_terms for rows in batches),
            "n_batches": len(batches),
        }

    def gradients(self, layers: Sequence[str]) -> dict[str, Array]:
        """Return G of each named layer, shape (m, n).

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        for name in layers:
            self._batches(name)
        return {name: self._gradients[name] for name in layers}

    def curvatures(self, layer: str, u: Array, v: Array, kind: CurvatureKind = "hessian") -> Array:
        """Return ``h^GGN`` along ``u_k v_kᵀ``, shape (K,), for u (m, K) and v (n, K).

        Raises
        ------
        InputError
            If the layer is unknown or the shapes do not fit.
        LayerError
            If the Hessian is asked for, or the layer has no root_gradients.
        """
        batches = self._batches(layer)
        _, (u, v) = floating(u=u, v=v)
        m, n = self._gradients[layer].shape
        check_direction_shapes(LayerInfo(layer, "linear", (int(m), int(n))), u.shape, v.shape)
        if kind != "ggn":
            raise LayerError(
                layer,
                "recorded arrays say nothing of the Hessian beyond Gauss-Newton; measure with "
                "curvature='ggn', or pass hvp= or a gradient function to CurvatureProblem.",
            )
        if any(rows.root_gradients is None for rows in batches):
            raise LayerError(layer, "no Gauss-Newton curvature without root_gradients; pass them.")
        total = ggn_along(batches[0], u, v)
        for rows in batches[1:]:
            total = total + ggn_along(rows, u, v)
        return total / sum(rows.n_terms for rows in batches)

    @renamed_arguments
    def kronecker_factors(
        self,
        layers: Sequence[str],
        *,
        fisher_type: FisherType = "ggn",
        kfac_approx: KfacApprox = "expand",
        directions: Mapping[str, tuple[Array, Array]] | None = None,
    ) -> dict[str, KroneckerFactors]:
        """Return ``C_δ`` and ``C_A`` of each named layer (Theory 4).

        Layers that are in `directions`, with u (m, K) and v (n, K), get ``h^diag`` along them
        (Theory 5.3), except under "empirical" and "reduce".

        Raises
        ------
        InputError
            If a name is no layer, or an option is unknown.
        LayerError
            If a layer lacks the output gradients that `fisher_type` asks for.
        """
        found = {}
        for name in layers:
            sums = RowSums(name, fisher_type, kfac_approx, (directions or {}).get(name))
            for rows in self._batches(name):
                sums.add(rows)
            found[name] = sums.factors()
        return found

    def _batches(self, name: str) -> tuple[Rows, ...]:
        return find_layer(name, self._rows, {})


def _gradient(name: str, batches: tuple[Rows, ...], given: Array | None) -> Array:
    """Return G of a layer, given or made of rows. If there are both, they are compared."""
    if not batches:
        raise InputError(f"layers: {name!r} has no rows; pass at least one batch.")
    inputs = batches[0].inputs.shape[-1]
    widths = {rows.outputs for rows in batches} - {None}
    if len(widths) > 1 or any(rows.inputs.shape[-1] != inputs for rows in batches):
        raise InputError(f"layers: the batches of {name!r} have inputs or outputs of other widths.")
    made = None
    if all(rows.output_gradients is not None for rows in batches):
        total = gradient_of(batches[0])
        for rows in batches[1:]:
            total = total + gradient_of(rows)
        made = total / sum(rows.n_terms for rows in batches)
    if given is None:
        if made is None:
            raise InputError(
                f"layers: {name!r} has no gradient; pass it in gradients=, or output_gradients."
            )
        return made
    _, (given,) = floating(gradients=given)
    width = widths.pop() if widths else given.shape[0]
    if tuple(given.shape) != (width, inputs):
        raise InputError(
            f"gradients: that of {name!r} has shape {tuple(given.shape)}; its rows are of a matrix "
            f"{width}×{inputs}, outputs by inputs."
        )
    if made is not None:
        _compare(name, given, made)
    return given


def _compare(name: str, given: Array, made: Array) -> None:
    xp = array_api_compat.array_namespace(given, made)
    # Half of the digits must agree, so other orders of sums and coarser products pass.
    tolerance = float(xp.finfo(given.dtype).eps) ** 0.5
    sizes = norm(xp, given), norm(xp, made)
    if not norm(xp, given - made) <= tolerance * max(sizes):
        raise InputError(
            f"gradients: that of {name!r} has norm {sizes[0]:.4g}, and (1/N) Σ δ aᵀ of its rows "
            f"{sizes[1]:.4g}, not the same matrix. G is of the mean loss, δ of un-reduced terms: N "
            "times what autograd gives of a mean."
        )
