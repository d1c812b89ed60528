"""Losses of one sample's outputs: value, gradient, Hessian and its root, written out."""

from typing import Any, Protocol

from spectral_backends.arrays.activations import real_part
from spectral_core.arrays.namespace import Array, device_of
from spectral_core.errors import InputError

__all__ = ["OutputLoss", "output_loss"]


class OutputLoss(Protocol):
    """A loss ``l_i`` of outputs z (B, C), un-reduced; leading axes of tangents may be more."""

    def values(self, xp: Any, z: Array, targets: Array) -> Array:
        """Return ``l_i``, shape (B,)."""

    def gradient(self, xp: Any, z: Array, targets: Array) -> Array:
        """Return ``∂l_i/∂z_i``, shape (B, C)."""

    def hessian_product(self, xp: Any, z: Array, tangents: Array) -> Array:
        """Return ``∂²l_i/∂z_i² t_i`` for tangents (..., B, C)."""

    def roots(self, xp: Any, z: Array) -> Array:
        """Return the columns of ``S_i`` with ``S_i S_iᵀ = ∂²l_i/∂z_i²``, shape (C, B, C)."""


def output_loss(name: str) -> OutputLoss:
    """Return the loss of that name.

    Parameters
    ----------
    name : {"cross-entropy", "squared"}
        The loss: softmax cross-entropy of integer labels (B,); ``½ Σ_c (z_c − t_c)²`` of targets
        (B, C).

    Raises
    ------
    InputError
        If there is none.
    """
    losses: dict[str, OutputLoss] = {"cross-entropy": _CrossEntropy(), "squared": _Squared()}
    if name not in losses:
        raise InputError(f"loss: {name!r} is none of {', '.join(losses)}.")
    return losses[name]


class _CrossEntropy:
    def values(self, xp: Any, z: Array, targets: Array) -> Array:
        shifted, total = _shifted(xp, z)
        picked = xp.sum(shifted * _one_hot(xp, z, targets), axis=-1)
        return xp.log(total[:, 0]) - picked

    def gradient(self, xp: Any, z: Array, targets: Array) -> Array:
        return _softmax(xp, z) - _one_hot(xp, z, targets)

    def hessian_product(self, xp: Any, z: Array, tangents: Array) -> Array:
        p = _softmax(xp, z)
        weighted = p * tangents
        return weighted - p * xp.sum(weighted, axis=-1, keepdims=True)

    def roots(self, xp: Any, z: Array) -> Array:
        p = _softmax(xp, z)
        eye = xp.eye(z.shape[-1], dtype=z.dtype, device=device_of(z))
        # Column c of diag(√p) − p √pᵀ (Theory 4.4).
        root = xp.sqrt(xp.permute_dims(p, (1, 0)))[:, :, None]
        return root * (eye[:, None, :] - p[None, :, :])


class _Squared:
    def values(self, xp: Any, z: Array, targets: Array) -> Array:
        off = self.gradient(xp, z, targets)
        return 0.5 * xp.sum(off * off, axis=-1)

    def gradient(self, xp: Any, z: Array, targets: Array) -> Array:
        return z - xp.astype(targets, z.dtype, copy=False)

    def hessian_product(self, xp: Any, z: Array, tangents: Array) -> Array:
        return tangents

    def roots(self, xp: Any, z: Array) -> Array:
        batch, classes = z.shape
        eye = xp.eye(classes, dtype=z.dtype, device=device_of(z))
        return xp.broadcast_to(eye[:, None, :], (classes, batch, classes))


def _shifted(xp: Any, z: Array) -> tuple[Array, Array]:
    # The shift cancels; a real one keeps the function of complex outputs analytic.
    shifted = z - xp.max(real_part(xp, z), axis=-1, keepdims=True)
    return shifted, xp.sum(xp.exp(shifted), axis=-1, keepdims=True)


def _softmax(xp: Any, z: Array) -> Array:
    shifted, total = _shifted(xp, z)
    return xp.exp(shifted) / total


def _one_hot(xp: Any, z: Array, labels: Array) -> Array:
    classes = xp.arange(z.shape[-1], dtype=labels.dtype, device=device_of(z))
    return xp.astype(labels[:, None] == classes, z.dtype)
