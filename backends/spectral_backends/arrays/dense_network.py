"""A dense network in nothing but array operations: forward, backward, Hessian products by hand.

It needs no framework, and it is an oracle that shares no code with one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import array_api_compat
import numpy as np

from spectral_backends.arrays.activations import activation
from spectral_backends.arrays.output_losses import OutputLoss, output_loss
from spectral_backends.arrays.problem import CurvatureProblem
from spectral_backends.arrays.rows import Rows
from spectral_core.arrays.namespace import Array, device_of
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

__all__ = ["DenseNetwork"]

Batch = tuple[Array, Array]
Params = Mapping[str, Array]


@dataclass(frozen=True)
class _Pass:
    """Holds the results of a forward pass: the inputs (B, n) of every layer, and the outputs.

    The activation's first and second derivatives belong to the layer in front: index l holds those
    at the inputs of layer l, and index 0 holds nothing.
    """

    inputs: list[Array]
    slopes: list[Array]
    second_derivatives: list[Array]
    outputs: Array


@dataclass(frozen=True)
class DenseNetwork:
    """``z_l = W_l a_l + b_l``, ``a_{l+1} = φ(z_l)``, a mean loss of the last z.

    Parameters are a dict of ``"0.weight"`` (m, n) and ``"0.bias"`` (m,), … up to
    ``"head.weight"``. A batch is ``(x, targets)``: x (B, n), and labels (B,) or values (B, C). All
    methods work in any Array API library, in the dtype and on the device of the parameters, and
    write to no argument. `gradient` is analytic: complex parameters give the complex step.

    Parameters
    ----------
    widths : tuple of int
        The widths of the input, the hidden layers and the output.
    activation : {"relu", "tanh", "gelu-tanh", "identity"}
        The activation φ; ``"gelu-tanh"`` is PyTorch's ``GELU(approximate="tanh")``.
    loss : {"cross-entropy", "squared"}
        The loss: softmax cross-entropy of integer labels, or ``½ Σ_c (z_c − t_c)²``. It is the mean
        over samples.
    bias : bool
        Whether the layers have biases b_l.

    Raises
    ------
    InputError
        If a width is no positive number, or a name is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> network = DenseNetwork((3, 4, 2), activation="tanh")
    >>> params = network.init(seed=0)
    >>> batch = (np.ones((5, 3)), np.array([0, 1, 0, 1, 0]))
    >>> network.gradient(params, batch)["0.weight"].shape
    (4, 3)
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    loss: str = "cross-entropy"
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) < 2 or not all(isinstance(w, int) and w > 0 for w in self.widths):
            raise InputError(
                f"widths: {self.widths!r}; pass those of input, hidden layers and output."
            )
        activation(self.activation)
        output_loss(self.loss)

    @property
    def layers(self) -> list[str]:
        """Return the names of the layers, first to last."""
        return [*map(str, range(len(self.widths) - 2)), "head"]

    def init(self, seed: int = 0, *, like: Array | None = None) -> dict[str, Array]:
        """Return first parameters: normal, of variance 2/n before ReLU and GELU, else 1/n.

        Parameters
        ----------
        seed : int
            The seed of NumPy's generator. The values are the same in every library.
        like : array, optional
            An array whose library, dtype and device the parameters get. By default they are NumPy's
            float64.
        """
        like = np.zeros(1) if like is None else like
        xp = array_api_compat.array_namespace(like)
        generator = np.random.default_rng(seed)
        gain = sqrt(2.0) if self.activation in ("relu", "gelu-tanh") else 1.0
        params = {}
        for name, n, m in zip(self.layers, self.widths[:-1], self.widths[1:], strict=True):
            weight = generator.standard_normal((m, n)) * (gain / sqrt(n))
            own = {"weight": weight, "bias": np.zeros(m)}
            for part in ("weight", "bias") if self.bias else ("weight",):
                params[f"{name}.{part}"] = xp.asarray(
                    own[part], dtype=like.dtype, device=device_of(like)
                )
        return params

    def outputs(self, params: Params, x: Array) -> Array:
        """Return z of the last layer, shape (B, C)."""
        return self._forward(*self._checked(params, x)).outputs

    def losses(self, params: Params, batch: Batch) -> Array:
        """Return the loss of each sample, shape (B,)."""
        xp, params, x = self._checked(params, batch[0])
        return self._loss.values(xp, self._forward(xp, params, x).outputs, _targets(batch))

    def gradient(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Return the gradient of the mean loss in every parameter, in its shape."""
        xp, params, x = self._checked(params, batch[0])
        seen = self._forward(xp, params, x)
        delta = self._loss.gradient(xp, seen.outputs, _targets(batch)) / x.shape[0]
        found: dict[str, Array] = {}
        for index in reversed(range(len(self.layers))):
            name = self.layers[index]
            found[f"{name}.weight"] = _transposed(xp, delta) @ seen.inputs[index]
            if self.bias:
                found[f"{name}.bias"] = xp.sum(delta, axis=0)
            if index:
                delta = (delta @ params[f"{name}.weight"]) * seen.slopes[index]
        return {name: found[name] for name in params}

    def hessian_product(
        self, params: Params, batch: Batch, directions: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return H[D] of the mean loss, exactly, by the R-operator (Pearlmutter, 1994).

        Parameters
        ----------
        params, batch
            The parameters and one batch, as in `gradient`.
        directions : mapping of str to array
            The directions D by parameter, each of the parameter's shape behind leading axes that
            all share: many directions at once. Parameters that are left out have D = 0.

        Returns
        -------
        dict of str to array
            The product for every parameter. Its leading axes are those of `directions`.
        """
        return self._product(params, batch, directions, gauss_newton=False)

    def ggn_product(
        self, params: Params, batch: Batch, directions: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the Gauss-Newton part of `hessian_product`, ``Jᵀ (∂²l/∂z²) J D``."""
        return self._product(params, batch, directions, gauss_newton=True)

    def rows(self, params: Params, layer: str, batch: Batch) -> Rows:
        """Return the unfolded activations of a layer, for its Kronecker factors (Theory 4)."""
        xp, params, x = self._checked(params, batch[0])
        seen = self._forward(xp, params, x)
        wanted = self.layers.index(layer)
        sent = [
            self._loss.gradient(xp, seen.outputs, _targets(batch)),
            self._loss.roots(xp, seen.outputs),
        ]
        for index in range(len(self.layers) - 1, wanted, -1):
            weight = params[f"{self.layers[index]}.weight"]
            sent = [(delta @ weight) * seen.slopes[index] for delta in sent]
        return Rows(seen.inputs[wanted], output_gradients=sent[0], root_gradients=sent[1])

    def problem(self, params: Params, batches: Iterable[Batch]) -> CurvatureProblem:
        """Return the problem of the mean loss over batches, with these exact products."""
        params = dict(params)

        def along(product: Any) -> Any:
            def values(layer: str, u: Array, v: Array, batch: Batch) -> Array:
                xp = array_api_compat.array_namespace(u)
                # (K, m, n): one matrix for each direction, all in one pass.
                outer = u.T[:, :, None] * v.T[:, None, :]
                name = f"{layer}.weight"
                image = product(params, batch, {name: outer})[name]
                return xp.sum(outer * image, axis=(1, 2))

            return values

        return CurvatureProblem(
            self.gradient,
            params,
            batches,
            weight=lambda batch: batch[0].shape[0],
            curvature=along(self.hessian_product),
            ggn=along(self.ggn_product),
            rows=lambda layer, batch: self.rows(params, layer, batch),
            loss=self.losses,
        )

    @property
    def _loss(self) -> OutputLoss:
        return output_loss(self.loss)

    def _checked(self, params: Params, x: Array) -> tuple[Any, Params, Array]:
        params = {name: plain(f"params: {name!r}", array) for name, array in params.items()}
        x = plain("batch: the array of its inputs", x)
        parts = ("weight", "bias") if self.bias else ("weight",)
        wanted = {f"{name}.{part}" for name in self.layers for part in parts}
        if set(params) != wanted:
            raise InputError(
                f"params: have {sorted(params)}; this network has {sorted(wanted)} (see init)."
            )
        for name, n, m in zip(self.layers, self.widths[:-1], self.widths[1:], strict=True):
            if (shape := tuple(params[f"{name}.weight"].shape)) != (m, n):
                raise InputError(f"params: '{name}.weight' has shape {shape}; pass {(m, n)}.")
        if x.ndim != 2 or x.shape[1] != self.widths[0]:
            raise InputError(
                f"batch: its inputs have shape {tuple(x.shape)}; pass (B, {self.widths[0]})."
            )
        return array_api_compat.array_namespace(x, *params.values()), params, x

    def _affine(self, xp: Any, params: Params, name: str, a: Array) -> Array:
        z = a @ _transposed(xp, params[f"{name}.weight"])
        return z + params[f"{name}.bias"] if self.bias else z

    def _forward(self, xp: Any, params: Params, x: Array) -> _Pass:
        phi = activation(self.activation)
        weight = params["head.weight"]
        a = xp.astype(x, weight.dtype, copy=False)
        inputs, slopes, second = [a], [xp.ones_like(a)], [xp.zeros_like(a)]
        for name in self.layers[:-1]:
            a, slope, curvature = phi(xp, self._affine(xp, params, name, a))
            inputs.append(a)
            slopes.append(slope)
            second.append(curvature)
        return _Pass(inputs, slopes, second, self._affine(xp, params, "head", a))

    def _product(
        self, params: Params, batch: Batch, directions: Mapping[str, Array], *, gauss_newton: bool
    ) -> dict[str, Array]:
        xp, params, x = self._checked(params, batch[0])
        if unknown := set(directions) - set(params):
            raise InputError(f"directions: {sorted(unknown)} are no parameters.")
        seen = self._forward(xp, params, x)
        tangents, last = self._tangents(xp, params, seen, directions)
        count = x.shape[0]
        delta = self._loss.gradient(xp, seen.outputs, _targets(batch)) / count
        moved = self._loss.hessian_product(xp, seen.outputs, last) / count
        found: dict[str, Array] = {}
        for index in reversed(range(len(self.layers))):
            name = self.layers[index]
            weight = params[f"{name}.weight"]
            image = _transposed(xp, moved) @ seen.inputs[index]
            if not gauss_newton:
                image = image + _transposed(xp, delta) @ tangents[index][0]
            found[f"{name}.weight"] = image
            if self.bias:
                found[f"{name}.bias"] = xp.sum(moved, axis=-2)
            if not index:
                break
            slope, second = seen.slopes[index], seen.second_derivatives[index]
            back, moved = delta @ weight, moved @ weight
            if not gauss_newton:
                if f"{name}.weight" in directions:
                    moved = moved + delta @ directions[f"{name}.weight"]
                moved = moved * slope + second * tangents[index][1] * back
            else:
                moved = moved * slope
            delta = back * slope
        return {name: found[name] for name in params}

    def _tangents(
        self, xp: Any, params: Params, seen: _Pass, directions: Mapping[str, Array]
    ) -> tuple[list[tuple[Array, Array]], Array]:
        """Return ``(R a_l, R z_{l−1})`` of every layer, and R z of the last."""
        moved_a = moved_z = xp.zeros_like(seen.inputs[0])
        found = [(moved_a, moved_z)]
        for index, name in enumerate(self.layers):
            moved_z = moved_a @ _transposed(xp, params[f"{name}.weight"])
            if f"{name}.weight" in directions:
                moved_z = moved_z + seen.inputs[index] @ _transposed(
                    xp, directions[f"{name}.weight"]
                )
            if f"{name}.bias" in directions:
                moved_z = moved_z + directions[f"{name}.bias"][..., None, :]
            if index + 1 < len(self.layers):
                moved_a = seen.slopes[index + 1] * moved_z
                found.append((moved_a, moved_z))
        return found, moved_z


def _targets(batch: Batch) -> Array:
    return plain("batch: the array of its targets", batch[1])


def _transposed(xp: Any, matrix: Array) -> Array:
    return xp.matrix_transpose(matrix)
