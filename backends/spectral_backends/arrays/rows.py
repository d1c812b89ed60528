"""Unfolded activations and output gradients of a layer, and the sums that are made of them."""

from dataclasses import dataclass
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array, device_of, floating
from spectral_core.curvature.problem import FisherType, KfacApprox, KroneckerFactors
from spectral_core.errors import InputError, LayerError

__all__ = ["RowSums", "Rows", "diagonal_along", "ggn_along", "gradient_of"]


@dataclass(frozen=True)
class Rows:
    """Unfolded activations of one layer in a batch: ``y = W a`` at each position of each sample.

    Parameters
    ----------
    inputs : array, shape (B, n) or (B, S, n)
        The inputs a. S positions share the weight: tokens, or pixels of a convolution.
    output_gradients : array, shape (B, m) or (B, S, m), optional
        The gradients δ = ∂l_i/∂y of the UN-reduced terms: B times those that autograd gives of a
        mean. They make the gradient, and ``C_δ`` with ``fisher_type="empirical"``.
    root_gradients : array, shape (C, B, m) or (C, B, S, m), optional
        The GGN columns: columns of ``J_iᵀ S_i`` with ``S_i S_iᵀ`` the Hessian of the loss in the
        outputs, un-reduced (Theory 4.4). They make ``h^GGN``, and ``C_δ`` with
        ``fisher_type="ggn"``.
    terms : array, shape (B,), optional
        The number of loss terms of each sample. By default it is one.

    Raises
    ------
    InputError
        If an array is not real floating, not finite, or has a shape that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> rows = Rows(np.ones((8, 5, 3)), np.ones((8, 5, 2)))
    >>> rows.n_terms, rows.outputs
    (8.0, 2)
    """

    inputs: Array
    output_gradients: Array | None = None
    root_gradients: Array | None = None
    terms: Array | None = None

    def __post_init__(self) -> None:
        given = {
            name: value
            for name in ("inputs", "output_gradients", "root_gradients", "terms")
            if (value := getattr(self, name)) is not None
        }
        xp, arrays = floating(**given)
        held = dict(zip(given, arrays, strict=True))
        for name, array in held.items():
            if not bool(xp.all(xp.isfinite(array))):
                raise InputError(f"{name}: holds NaN or infinite values; clean the data.")
        lead = tuple(held["inputs"].shape[:-1])
        if not 1 <= len(lead) <= 2 or 0 in held["inputs"].shape:
            self._refuse("inputs", held["inputs"], "(B, n) or (B, S, n), none of them 0")
        for name, extra in (("output_gradients", 0), ("root_gradients", 1)):
            array = held.get(name)
            if array is not None and (
                array.ndim != len(lead) + 1 + extra or tuple(array.shape[extra:-1]) != lead
            ):
                self._refuse(name, array, f"{'(C, ' * extra or '('}{', '.join(map(str, lead))}, m)")
        if "terms" in held and tuple(held["terms"].shape) != lead[:1]:
            self._refuse("terms", held["terms"], f"({lead[0]},)")
        for name, array in held.items():
            axis = {"root_gradients": 1, "terms": None}.get(name, 0)
            if axis is not None and len(lead) == 1:
                array = xp.expand_dims(array, axis=axis + 1)
            object.__setattr__(self, name, array)

    @property
    def n_terms(self) -> float:
        """Return the number of loss terms of the batch."""
        if self.terms is None:
            return float(self.inputs.shape[0])
        return float(array_api_compat.array_namespace(self.terms).sum(self.terms))

    @property
    def outputs(self) -> int | None:
        """Return the width m, or None without output gradients."""
        for array in (self.output_gradients, self.root_gradients):
            if array is not None:
                return int(array.shape[-1])
        return None

    @staticmethod
    def _refuse(name: str, array: Array, wanted: str) -> None:
        raise InputError(f"{name}: has shape {tuple(array.shape)}; pass {wanted}.")


def gradient_of(rows: Rows) -> Array:
    """Return the batch's total ``Σ_i Σ_t δ aᵀ``, shape (m, n): N times the gradient."""
    assert rows.output_gradients is not None
    xp = array_api_compat.array_namespace(rows.inputs)
    return xp.matrix_transpose(_flat(xp, rows.output_gradients)) @ _flat(xp, rows.inputs)


def ggn_along(rows: Rows, u: Array, v: Array) -> Array:
    """Return the batch's total ``Σ_i Σ_c (Σ_t (u_kᵀ δ_{i,c,t})(v_kᵀ a_{i,t}))²`` (Theory 5.4).

    Parameters
    ----------
    u, v : array
        The directions, of shapes (m, K) and (n, K).

    Returns
    -------
    array, shape (K,)
        The product N · h^GGN.
    """
    assert rows.root_gradients is not None
    xp = array_api_compat.array_namespace(rows.inputs)
    projected = rows.inputs @ v
    total = xp.zeros((u.shape[1],), dtype=projected.dtype, device=device_of(projected))
    for c in range(rows.root_gradients.shape[0]):
        along = xp.sum((rows.root_gradients[c, ...] @ u) * projected, axis=1)
        total = total + xp.sum(along * along, axis=0)
    return total


def diagonal_along(rows: Rows, u: Array, v: Array) -> Array:
    """Return the batch's total ``Σ_i Σ_c Σ_t ((u_kᵀ δ_{i,c,t})(v_kᵀ a_{i,t}))²`` (Theory 5.3).

    Parameters
    ----------
    u, v : array
        The directions, of shapes (m, K) and (n, K).

    Returns
    -------
    array, shape (K,)
        The product N · h^diag.
    """
    assert rows.root_gradients is not None
    xp = array_api_compat.array_namespace(rows.inputs)
    projected = rows.inputs @ v
    total = xp.zeros((u.shape[1],), dtype=projected.dtype, device=device_of(projected))
    for c in range(rows.root_gradients.shape[0]):
        products = (rows.root_gradients[c, ...] @ u) * projected
        total = total + xp.sum(products * products, axis=(0, 1))
    return total


class RowSums:
    """Kronecker factors of one layer, summed over batches (Theory 4).

    Parameters
    ----------
    layer : str
        The name of the layer, for messages.
    fisher_type, kfac_approx
        The options of `CurvatureProblem.kronecker_factors`.
    directions : tuple of array, optional
        The directions u (m, K) and v (n, K) along which ``h^diag`` is wanted.
    """

    def __init__(
        self,
        layer: str,
        fisher_type: FisherType,
        kfac_approx: KfacApprox,
        directions: tuple[Array, Array] | None = None,
    ) -> None:
        if fisher_type not in ("ggn", "fisher-mc", "empirical"):
            raise InputError(
                f"fisher_type: {fisher_type!r} is unknown; choose 'ggn', 'fisher-mc' or "
                "'empirical'."
            )
        if kfac_approx not in ("expand", "reduce"):
            raise InputError(
                f"kfac_approx: {kfac_approx!r} is unknown; choose 'expand' or 'reduce'."
            )
        self._layer, self._fisher_type, self._kfac_approx = layer, fisher_type, kfac_approx
        positions_known = fisher_type == "ggn" and kfac_approx == "expand"
        self._directions = directions if positions_known else None
        self._diagonal: Any = 0.0
        self._inputs: Any = 0.0
        self._outputs: Any = 0.0
        self._positions = self._terms = 0.0

    def add(self, rows: Rows) -> None:
        """Add a batch.

        Raises
        ------
        LayerError
            If the output gradients that `fisher_type` asks for are not there.
        """
        xp = array_api_compat.array_namespace(rows.inputs)
        deltas, inputs, positions = self._deltas(xp, rows), rows.inputs, rows.inputs.shape[1]
        if self._kfac_approx == "reduce":
            inputs = xp.mean(inputs, axis=1, keepdims=True)
            deltas = xp.sum(deltas, axis=2, keepdims=True)
            positions = 1
        if rows.terms is None:
            weighted = inputs
        else:
            weighted = inputs * xp.astype(rows.terms, inputs.dtype, copy=False)[:, None, None]
        self._inputs = xp.matrix_transpose(_flat(xp, weighted)) @ _flat(xp, inputs) + self._inputs
        flat = _flat(xp, deltas)
        self._outputs = xp.matrix_transpose(flat) @ flat + self._outputs
        if self._directions is not None:
            self._diagonal = diagonal_along(rows, *self._directions) + self._diagonal
        self._positions += rows.n_terms * positions
        self._terms += rows.n_terms

    def factors(self) -> KroneckerFactors:
        """Return the means."""
        return KroneckerFactors(
            output_covariance=self._outputs / self._terms,
            input_covariance=self._inputs / self._positions,
            diagonal=None if self._directions is None else self._diagonal / self._terms,
        )

    def _deltas(self, xp: Any, rows: Rows) -> Array:
        if self._fisher_type == "empirical" and rows.output_gradients is not None:
            return rows.output_gradients[None, ...]
        if self._fisher_type == "ggn" and rows.root_gradients is not None:
            return rows.root_gradients
        needed = {
            "ggn": "pass its root_gradients, or fisher_type='empirical'",
            "empirical": "pass its output_gradients, or fisher_type='ggn'",
            "fisher-mc": "arrays have no model to draw targets from; choose 'ggn' or 'empirical'",
        }[self._fisher_type]
        raise LayerError(
            self._layer, f"no factors with fisher_type={self._fisher_type!r}: {needed}."
        )


def _flat(xp: Any, rows: Array) -> Array:
    return xp.reshape(rows, (-1, rows.shape[-1]))
