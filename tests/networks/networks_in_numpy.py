"""What flows through a drawn network, written out in NumPy, and how rounding grows in it."""

import numpy as np

STEEPEST = 1.13  # slope of GELU; the others' are at most 1
ROUNDINGS = 8  # of an activation or a softmax


class Flow:
    """Rows of layers, output gradients, and all that the theory makes of them, in float64.

    Each layer is a matrix (m, n) that meets rows (B, S, n): places with their neighbours for a
    convolution, and one row a sample for the head.

    Rounding is bounded by the same network with the sizes of all its numbers in their place: those
    of rows and of output gradients. L layers of n products each err by ``L (n + 8) ε`` of them, and
    slopes and probabilities, which move with their argument z, by ``1 + max |z|`` times as much.

    Parameters
    ----------
    net : Network
        As drawn.
    precise : callable
        Rounds to the dtype that is tested.
    eps : float
        Of that dtype.
    """

    def __init__(self, net, precise, eps):
        self.net = net
        self.kinds = dict(zip(net.layers, (*net.kinds, "dense"), strict=True))
        self.matrices = {name: precise(as_matrix(w)) for name, w in net.weights.items()}
        x = precise(net.inputs)
        self.rows, self.slopes, self.outputs, _ = self._forward(x, self.matrices, activated)
        sizes = {name: np.abs(w) for name, w in self.matrices.items()}

        def size_of(_, z):
            return STEEPEST * z, np.full_like(z, STEEPEST)

        self.sizes, self._steep, out, largest = self._forward(np.abs(x), sizes, size_of)
        most = 1.0 if net.loss == "cross-entropy" else out + np.abs(precise(net.targets))
        start = np.maximum(np.broadcast_to(most, out.shape), 1.0)
        self.pulls = self._backward(start, sizes, self._steep)
        widest = max(w.shape[1] for w in sizes.values())
        steps = len(sizes) * (widest + ROUNDINGS) + net.samples * net.positions
        self.rounding = 2 * steps * eps * (1 + largest)

    # Forward and back

    def _forward(self, x, matrices, activate):
        rows, slopes, largest = {}, {}, 0.0
        for name in self.net.layers[:-1]:
            rows[name] = neighbours(x) if self.kinds[name] == "convolution" else x
            z = rows[name] @ matrices[name].T
            largest = max(largest, np.max(np.abs(z)))
            x, slopes[name] = activate(self.net.activation, z)
        rows["head"] = x.mean(1, keepdims=True)
        outputs = (rows["head"] @ matrices["head"].T)[:, 0]
        return rows, slopes, outputs, max(largest, np.max(np.abs(outputs)))

    def _backward(self, cotangents, matrices, slopes):
        """Output gradients (B, S, m) of each layer for cotangents (B, C) of the outputs."""
        found = {"head": cotangents[:, None]}
        positions = self.net.positions
        pulled = np.repeat(found["head"] @ matrices["head"] / positions, positions, axis=1)
        for name in reversed(self.net.layers[:-1]):
            found[name] = pulled * slopes[name]
            pulled = found[name] @ matrices[name]
            pulled = scattered(pulled) if self.kinds[name] == "convolution" else pulled
        return found

    def deltas(self, layer, cotangents):
        """δ (B, S, m) of a layer for cotangents of the outputs: one sample's, not a mean's."""
        return self._backward(cotangents, self.matrices, self.slopes)[layer]

    @property
    def probabilities(self):
        p = np.exp(self.outputs - self.outputs.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    @property
    def residuals(self):
        """Gradients of the terms in the outputs (B, C)."""
        if self.net.loss == "cross-entropy":
            return self.probabilities - np.eye(self.net.widths[-1])[self.net.targets]
        return self.outputs - self.net.targets

    @property
    def columns(self):
        """By Theory 4.4, columns of ``S_i`` with ``S_i S_iᵀ`` the loss's Hessian, each (B, C)."""
        eye = np.eye(self.net.widths[-1])
        if self.net.loss == "squared":
            return [np.broadcast_to(e, self.outputs.shape) for e in eye]
        root = np.sqrt(self.probabilities)
        return [root[:, [c]] * (e - self.probabilities) for c, e in enumerate(eye)]

    # What the theory makes of them

    def gradient(self, layer):
        delta = self.deltas(layer, self.residuals)
        return np.einsum("bsm,bsn->mn", delta, self.rows[layer]) / self.net.samples

    def input_factor(self, layer, sharing):
        rows = self.rows[layer]
        if sharing == "reduce":
            rows = rows.mean(1, keepdims=True)
        return np.einsum("bsm,bsn->mn", rows, rows) / (rows.shape[0] * rows.shape[1])

    def output_factor(self, layer, cotangents, sharing):
        """``(1/N) Σ δ δᵀ`` over lists of cotangents, each (B, C)."""
        total = 0.0
        for each in cotangents:
            delta = self.deltas(layer, each)
            if sharing == "reduce":
                delta = delta.sum(1, keepdims=True)
            total = total + np.einsum("bsm,bsn->mn", delta, delta)
        return total / self.net.samples

    def ggn_curvatures(self, layer, u, v):
        """``(1/N) Σ_i Σ_c (Σ_t (u_kᵀ δ_{i,c,t})(v_kᵀ a_{i,t}))²``, shape (K,)."""
        along = self.rows[layer] @ v
        each = [np.sum((self.deltas(layer, c) @ u) * along, axis=1) for c in self.columns]
        return np.sum(np.square(each), axis=(0, 1)) / self.net.samples

    # Errors, entry by entry: means over samples of products of sizes

    def error_of_input_factor(self, layer):
        sizes = self.sizes[layer].sum(1) / np.sqrt(self.sizes[layer].shape[1])
        return self._mean(sizes, sizes)

    def error_of_output_factor(self, layer):
        return self.net.widths[-1] * self._mean(self._pulled(layer), self._pulled(layer))

    def error_of_gradient(self, layer):
        return self._mean(self._pulled(layer), self.sizes[layer].sum(1))

    def error_of_curvatures(self, layer, u, v):
        """Twice, as in a square, for each column; with φ'' ≤ 2 for the Hessian's other part."""
        along = (self.pulls[layer] @ np.abs(u)) * (self.sizes[layer] @ np.abs(v))
        along = along.sum(1)
        sizes = self.net.widths[-1] * along**2 + 2 * len(self.matrices) * along * (1 + along)
        return 2 * self.rounding * np.mean(sizes, axis=0)

    def _pulled(self, layer):
        return self.pulls[layer].sum(1)

    def _mean(self, left, right):
        return 2 * self.rounding * (left.T @ right) / self.net.samples


def as_matrix(weight):
    """Lay a kernel (m, n, 3) out as (m, 3 n); a matrix stays."""
    return weight.reshape(len(weight), -1)


def neighbours(x):
    """Return rows (B, S, 3 n) in the order of kernels: channel by channel, each with three places."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    places = [padded[:, i : i + x.shape[1]] for i in range(3)]
    return np.stack(places, axis=-1).reshape(*x.shape[:2], -1)


def scattered(rows):
    """The transpose of `neighbours`."""
    places = rows.reshape(*rows.shape[:2], -1, 3)
    padded = np.zeros((rows.shape[0], rows.shape[1] + 2, places.shape[2]))
    for i in range(3):
        padded[:, i : i + rows.shape[1]] += places[..., i]
    return padded[:, 1:-1]


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
