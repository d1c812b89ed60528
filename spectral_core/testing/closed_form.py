"""A network, a loss and data in plain NumPy, with every exact value that a backend returns.

The values come from formulas of their own: second derivatives from a Taylor expansion that runs
forward, gradients and Kronecker factors from the Jacobians of the outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from spectral_core._renamed import renamed_arguments
from spectral_core.curvature.problem import CurvatureKind, FisherType, KfacApprox

__all__ = ["Batch", "ClosedForm"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples.

    Parameters
    ----------
    inputs : ndarray, shape (B, n) or (B, S, n), float64
        The inputs x. With an axis S, the S positions share the weights.
    targets : ndarray, shape (B, C), float64, or (B,), int64
        The targets t of a squared error, or labels.
    weights : ndarray, shape (B,), float64
        The number ω of terms that each sample is. A weight of 0 leaves the sample out.
    """

    inputs: Array
    targets: Array
    weights: Array


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A mean loss of a small network, to build in a backend and to compare with.

    ``L = Σ_i ω_i l(z_i, t_i) / Σ_i ω_i`` over all samples of all batches, with
    ``z = W_L φ(… φ(W_1 x))``, and with positions the mean of that over them. The loss l is
    ``½ (z − t)ᵀ M (z − t)``, or the softmax cross-entropy ``log Σ_c exp z_c − z_t``.

    Parameters
    ----------
    name : str
        The name, for messages.
    matrices : tuple of ndarray, float64
        The matrices ``W_1 … W_L`` in the order of the forward pass, outputs × inputs.
    batches : tuple of Batch
        The data, batch by batch.
    loss : {"squared", "cross-entropy"}
        The loss l.
    metric : ndarray of shape (C, C), or None
        The matrix M of a squared error, symmetric and positive definite; None for the identity.
    activation : {"identity", "square"}
        The activation φ: nothing, or ``φ(y) = y²``, with which the Hessian is not its Gauss-Newton
        part.
    """

    name: str
    matrices: tuple[Array, ...]
    batches: tuple[Batch, ...]
    loss: Literal["squared", "cross-entropy"] = "squared"
    metric: Array | None = None
    activation: Literal["identity", "square"] = "identity"

    @property
    def weighted(self) -> bool:
        """Whether a sample is anything but one term."""
        return any(bool(np.any(batch.weights != 1)) for batch in self.batches)

    @property
    def has_positions(self) -> bool:
        """Whether inputs have an axis of positions."""
        return self.batches[0].inputs.ndim == 3

    @property
    def n_terms(self) -> float:
        """``Σ ω``, the number N of terms."""
        return float(sum(batch.weights.sum() for batch in self.batches))

    # These methods present the same data in other ways.

    def cut(self, sizes: Sequence[int]) -> "ClosedForm":
        """Return the form with batches of these sizes, the samples in the same order."""
        x, t, w = self._joined()
        edges = [0, *np.cumsum(sizes)]
        if edges[-1] != len(x):
            raise ValueError(f"sizes: {list(sizes)} of {len(x)} samples.")
        cuts = [slice(*pair) for pair in pairwise(edges)]
        return replace(self, batches=tuple(Batch(x[c], t[c], w[c]) for c in cuts))

    def repeated(self, times: int) -> "ClosedForm":
        """Return the form with every sample that often, in one batch."""
        whole = (np.repeat(array, times, axis=0) for array in self._joined())
        return replace(self, batches=(Batch(*whole),))

    def with_weights(self, weights: Sequence[float]) -> "ClosedForm":
        """Return the form with these ω, in one batch."""
        x, t, _ = self._joined()
        return replace(self, batches=(Batch(x, t, np.asarray(weights, np.float64)),))

    def copy(self) -> "ClosedForm":
        """Return the form with arrays of its own."""
        return replace(
            self,
            matrices=tuple(w.copy() for w in self.matrices),
            metric=None if self.metric is None else self.metric.copy(),
            batches=tuple(
                Batch(b.inputs.copy(), b.targets.copy(), b.weights.copy()) for b in self.batches
            ),
        )

    def arrays(self) -> dict[str, Array]:
        """Return all arrays of the form, by name."""
        found = {f"matrix {index}": w for index, w in enumerate(self.matrices)}
        for index, batch in enumerate(self.batches):
            found |= {f"{name} of batch {index}": array for name, array in vars(batch).items()}
        return found if self.metric is None else found | {"metric": self.metric}

    # These methods return exact values.

    def mean_loss(self) -> float:
        """Return L."""
        seen = self._pass()
        return float(seen.weights @ seen.losses)

    def gradient(self, layer: int) -> Array:
        """Return ``G = Σ_i ω_i Σ_t J_itᵀ ∂l_i a_itᵀ / N``, shape (m, n)."""
        seen, a, jacobian = self._rows(layer)
        found: Array = np.einsum("i,ic,iscm,isn->mn", seen.weights, seen.slopes, jacobian, a)
        return found

    def second_derivative(
        self, layer: int, first: Array, second: Array, kind: CurvatureKind = "hessian"
    ) -> Array:
        """Return ``<D_k, H[E_k]>`` of matrices D, E of shape (K, m, n) in one layer, shape (K,).

        With ``dz`` the derivative of the outputs along one and ``ddz`` along both it is the mean of
        ``dz_Dᵀ ∂²l dz_E + ∂lᵀ ddz_DE``; Gauss-Newton's has the first term alone.
        """
        seen = self._pass()
        one, other = (seen.inputs[layer] @ np.swapaxes(d, 1, 2)[:, None] for d in (first, second))
        both = np.zeros_like(one)
        for index in range(layer, len(self.matrices)):
            if index > layer:
                one, other, both = (d @ self.matrices[index].T for d in (one, other, both))
            if index + 1 < len(self.matrices):
                slope, bend = self._slope(seen.outputs[index])
                both = slope * both + bend * one * other
                one, other = slope * one, slope * other
        one, other, both = (d.mean(2) for d in (one, other, both))
        values: Array = np.einsum("kic,icd,kid->ki", one, seen.hessians, other)
        if kind == "hessian":
            values = values + np.einsum("ic,kic->ki", seen.slopes, both)
        return values @ seen.weights

    def curvature(self, layer: int, u: Array, v: Array, kind: CurvatureKind = "hessian") -> Array:
        """Return ``h_k = <D_k, H[D_k]>`` for ``D_k = u_k v_kᵀ``, shape (K,)."""
        d = u.T[:, :, None] * v.T[:, None, :]
        return self.second_derivative(layer, d, d, kind)

    @renamed_arguments
    def factors(
        self, layer: int, fisher_type: FisherType = "ggn", kfac_approx: KfacApprox = "expand"
    ) -> tuple[Array, Array]:
        """Return ``C_δ`` (m, m) and ``C_A`` (n, n) of Theory 4.

        ``"fisher-mc"`` is an estimate of ``"ggn"``.
        """
        seen, a, jacobian = self._rows(layer)
        inner = seen.hessians
        if fisher_type == "empirical":
            inner = seen.slopes[:, :, None] * seen.slopes[:, None, :]
        if kfac_approx == "reduce":
            a, jacobian = a.mean(1, keepdims=True), jacobian.sum(1, keepdims=True)
        c_delta = np.einsum("i,iscm,icd,isdk->mk", seen.weights, jacobian, inner, jacobian)
        c_a = np.einsum("i,isn,isk->nk", seen.weights, a, a) / a.shape[1]
        return c_delta, c_a

    # These methods are the implementation.

    def _joined(self) -> tuple[Array, Array, Array]:
        whole = [(b.inputs, b.targets, b.weights) for b in self.batches]
        x, t, w = (np.concatenate(arrays) for arrays in zip(*whole, strict=True))
        return x, t, w

    def _slope(self, y: Array) -> tuple[Array, Array]:
        """Return φ' and φ''."""
        if self.activation == "identity":
            return np.ones_like(y), np.zeros_like(y)
        return 2 * y, np.full_like(y, 2)

    def _pass(self) -> "_Pass":
        x, t, w = self._joined()
        a = x if x.ndim == 3 else x[:, None, :]
        inputs, outputs = [], []
        for matrix in self.matrices:
            inputs.append(a)
            outputs.append(a @ matrix.T)
            a = outputs[-1] ** 2 if self.activation == "square" else outputs[-1]
        z = outputs[-1].mean(1)
        loss = self._squared if self.loss == "squared" else _cross_entropy
        return _Pass(inputs, outputs, w / w.sum(), *loss(z, t))

    def _squared(self, z: Array, t: Array) -> tuple[Array, Array, Array]:
        metric = np.eye(z.shape[1]) if self.metric is None else self.metric
        slopes = (z - t) @ metric
        hessians = np.broadcast_to(metric, (len(z), *metric.shape))
        return 0.5 * np.sum((z - t) * slopes, 1), slopes, hessians

    def _rows(self, layer: int) -> tuple["_Pass", Array, Array]:
        """Return the pass, inputs (N, S, n), and the Jacobian of z in the outputs (N, S, C, m)."""
        seen = self._pass()
        n, positions, width = seen.outputs[-1].shape
        jacobian = np.broadcast_to(np.eye(width) / positions, (n, positions, width, width))
        for index in range(len(self.matrices) - 1, layer, -1):
            slope = self._slope(seen.outputs[index - 1])[0]
            jacobian = (jacobian @ self.matrices[index]) * slope[:, :, None, :]
        return seen, seen.inputs[layer], jacobian


class _Pass(NamedTuple):
    """The values of a forward pass over all samples; positions are an axis of length 1 or more."""

    inputs: list[Array]  # a of each layer, (N, S, n)
    outputs: list[Array]  # y = W a of each, (N, S, m)
    weights: Array  # ω / Σ ω, (N,)
    losses: Array  # (N,)
    slopes: Array  # ∂l in z, (N, C)
    hessians: Array  # ∂²l in z, (N, C, C)


def _cross_entropy(z: Array, labels: Array) -> tuple[Array, Array, Array]:
    shifted = z - z.max(1, keepdims=True)
    total = np.exp(shifted).sum(1, keepdims=True)
    p = np.exp(shifted) / total
    right = np.eye(z.shape[1])[labels]
    hessians = p[:, :, None] * np.eye(z.shape[1]) - p[:, :, None] * p[:, None, :]
    return np.log(total[:, 0]) - np.sum(shifted * right, 1), p - right, hessians
