"""What flows through a drawn network without weight sharing, by NumPy, and how rounding grows."""

import numpy as np

STEEPEST = 1.13  # slope of GELU; the others' are at most 1
ROUNDINGS = 8  # of an activation or a softmax


class Flow:
    """Inputs of layers, outputs and Gauss-Newton curvatures; and bounds of their errors.

    Rounding is bounded by the same network with the sizes of all its numbers: `sizes` of the inputs
    (B, n) and `pulls` of output gradients (B, m). L layers of n products each err by
    ``L (n + 8) ε`` of them, and slopes and probabilities, which move with their argument z, by
    ``1 + max |z|`` as much.

    Parameters
    ----------
    net : Network
        Of dense layers and one position.
    precise : callable
        Rounds to the dtype that is tested.
    eps : float
        Of that dtype.
    """

    def __init__(self, net, precise, eps):
        self.net = net
        self.weights = {name: precise(w) for name, w in net.weights.items()}
        x = precise(net.inputs[:, 0])
        targets = net.targets if net.loss == "cross-entropy" else precise(net.targets)
        self.inputs, self.slopes = {}, {}
        a, size, largest, self.sizes = x, np.abs(x), 0.0, {}
        for name, w in self.weights.items():
            self.inputs[name], self.sizes[name] = a, size
            z, size = a @ w.T, STEEPEST * size @ np.abs(w).T
            largest = max(largest, np.max(size))
            a, self.slopes[name] = activated(net.activation, z)
        self.outputs = z
        steps = len(self.weights) * (max(net.widths) + ROUNDINGS) + net.samples
        self.rounding = 2 * steps * eps * (1 + largest)
        start = 1.0 if net.loss == "cross-entropy" else size + np.abs(targets)
        pull, self.pulls = np.maximum(np.broadcast_to(start, z.shape), 1.0), {}
        for name in reversed(self.weights):
            self.pulls[name] = pull
            pull = STEEPEST * pull @ np.abs(self.weights[name])

    def ggn_curvatures(self, layer, u, v):
        """``(1/N) Σ_i (J_i u)ᵀ H_i (J_i u) (vᵀ a_i)²`` with the loss's Hessian H_i, shape (K,)."""
        names = list(self.weights)
        moved = np.broadcast_to(u, (self.net.samples, *u.shape))  # (B, m, K)
        for before, after in zip(
            names[names.index(layer) :], names[names.index(layer) + 1 :], strict=False
        ):
            moved = self.weights[after] @ (self.slopes[before][:, :, None] * moved)
        if self.net.loss == "cross-entropy":
            p = np.exp(self.outputs - self.outputs.max(1, keepdims=True))
            p = (p / p.sum(1, keepdims=True))[:, :, None]
            forms = np.sum(p * moved**2, 1) - np.sum(p * moved, 1) ** 2
        else:
            forms = np.sum(moved**2, 1)
        return np.mean(forms * (self.inputs[layer] @ v) ** 2, axis=0)

    # Errors, entry by entry: means over samples of products of sizes.

    def error_of_input_factor(self, layer):
        return self._mean(self.sizes[layer], self.sizes[layer])

    def error_of_output_factor(self, layer):
        return self._mean(self.pulls[layer], self.pulls[layer]) * self._columns

    def error_of_gradient(self, layer):
        return self._mean(self.pulls[layer], self.sizes[layer])

    def error_of_curvatures(self, layer, u, v):
        """Twice, as in a square, for each output; with φ'' ≤ 2 for the Hessian's other part."""
        along = (self.pulls[layer] @ np.abs(u)) * (self.sizes[layer] @ np.abs(v))
        sizes = self._columns * along**2 + 2 * len(self.weights) * along * (1 + along)
        return 2 * self.rounding * np.mean(sizes, axis=0)

    @property
    def _columns(self):
        """Root vectors of each sample."""
        return self.net.widths[-1]

    def _mean(self, left, right):
        return 2 * self.rounding * (left.T @ right) / self.net.samples


def activated(name, z):
    """Return φ(z) and its slope."""
    if name == "relu":
        return np.maximum(z, 0), (z > 0).astype(float)
    if name == "identity":
        return z, np.ones_like(z)
    if name == "tanh":
        return np.tanh(z), 1 - np.tanh(z) ** 2
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t**2) * c * (1 + 3 * 0.044715 * z**2)
