"""Closed forms of the conformance suite as problems of arrays, of any library."""

from functools import partial

import array_api_compat
import numpy as np

from spectral_backends.arrays import CurvatureProblem, DenseNetwork, Rows
from spectral_backends.arrays.output_losses import output_loss


class Squared:
    """``½ (z − t)ᵀ M (z − t)``."""

    def __init__(self, metric, root):
        self.metric, self.root = metric, root

    def values(self, xp, z, targets):
        return 0.5 * xp.sum((z - targets) * self.gradient(xp, z, targets), axis=-1)

    def gradient(self, xp, z, targets):
        return (z - targets) @ xp.astype(self.metric, z.dtype, copy=False)

    def roots(self, xp, z):
        rows = xp.permute_dims(self.root, (1, 0))[:, None, :]
        return xp.broadcast_to(rows, (rows.shape[0], *z.shape))


class Network:
    """A closed form in array operations, with positions always an axis."""

    def __init__(self, form, array):
        self.activation, self.names = form.activation, [str(i) for i in range(len(form.matrices))]
        if form.loss == "cross-entropy":
            self.loss = output_loss("cross-entropy")
        else:
            metric = np.eye(len(form.matrices[-1])) if form.metric is None else form.metric
            self.loss = Squared(array(metric), array(np.linalg.cholesky(metric)))

    def forward(self, params, batch):
        xp = array_api_compat.array_namespace(batch[0])
        x = xp.astype(batch[0], params[self.names[0]].dtype, copy=False)  # of a complex step, too
        a = x if x.ndim == 3 else x[:, None, :]
        inputs, outputs = [], []
        for name in self.names:
            inputs.append(a)
            outputs.append(a @ xp.matrix_transpose(params[name]))
            a = outputs[-1] ** 2 if self.activation == "square" else outputs[-1]
        return xp, inputs, outputs, xp.mean(outputs[-1], axis=1)

    def back(self, params, outputs, sent, layer):
        """Send derivatives in z, (..., B, C), back to a layer's outputs, (..., B, S, m)."""
        xp = array_api_compat.array_namespace(sent)
        positions = outputs[-1].shape[1]
        shape = (*sent.shape[:-1], positions, sent.shape[-1])
        delta = xp.broadcast_to(sent[..., None, :] / positions, shape)
        for index in range(len(self.names) - 1, layer, -1):
            delta = delta @ xp.astype(params[self.names[index]], delta.dtype, copy=False)
            if self.activation == "square":
                delta = delta * 2 * outputs[index - 1]
        return delta

    def gradient(self, params, batch):
        xp, inputs, outputs, z = self.forward(params, batch)
        weights = batch[2] / xp.sum(batch[2])
        sent = weights[:, None] * self.loss.gradient(xp, z, batch[1])
        return {
            name: xp.sum(
                xp.matrix_transpose(self.back(params, outputs, sent, layer)) @ inputs[layer], axis=0
            )
            for layer, name in enumerate(self.names)
        }

    def mean_loss(self, params, batch):
        xp, _, _, z = self.forward(params, batch)
        return xp.sum(batch[2] * self.loss.values(xp, z, batch[1])) / xp.sum(batch[2])

    def rows(self, params, name, batch):
        """A sample of weight ω is ω terms: outer products ω times, so roots of it √ω times."""
        xp, inputs, outputs, z = self.forward(params, batch)
        layer, root = self.names.index(name), xp.sqrt(batch[2])[:, None]
        sent = [self.loss.gradient(xp, z, batch[1]), self.loss.roots(xp, z)]
        true, roots = (self.back(params, outputs, root * each, layer) for each in sent)
        return Rows(inputs[layer], true, roots, batch[2])


def network_and_parts(form, array):
    """Return the network, its parameters and batches, in the library of `array`."""
    params = {str(index): array(matrix) for index, matrix in enumerate(form.matrices)}
    like = array(np.zeros(1))
    xp = array_api_compat.array_namespace(like)
    batches = []
    for batch in form.batches:
        targets = batch.targets
        if targets.dtype.kind == "i":
            targets = xp.asarray(targets, device=array_api_compat.device(like))
        else:
            targets = array(targets)
        batches.append((array(batch.inputs), targets, array(batch.weights)))
    return Network(form, array), params, batches


def make(form, watch, array=np.asarray, problem=CurvatureProblem, **options):
    """Build the problem of a gradient function, whose curvatures the complex step finds."""
    network, params, batches = network_and_parts(form, array)
    watch(lambda: {"params": params, "batches": batches})
    return problem(
        network.gradient, params, batches,
        weight=total_weight, rows=partial(network.rows, params), loss=network.mean_loss, **options,
    )  # fmt: skip


def total_weight(batch):
    return float(array_api_compat.array_namespace(batch[2]).sum(batch[2]))


def make_dense(form):
    """Build the problem of a `DenseNetwork`, of a form that it knows."""
    widths = (form.matrices[0].shape[1], *(len(matrix) for matrix in form.matrices))
    network = DenseNetwork(widths, "identity", form.loss, bias=False)
    weights = zip(network.layers, form.matrices, strict=True)
    return network.problem(
        {f"{name}.weight": matrix for name, matrix in weights},
        [(batch.inputs, batch.targets) for batch in form.batches],
    )
