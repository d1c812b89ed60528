"""Closed forms of the conformance suite as problems of PyTorch and of JAX."""

import importlib

import numpy as np


def make_torch(form, watch):
    """Build it of a module and a loss function; samples are weighed where a form asks for it."""
    torch = importlib.import_module("torch")
    functional = torch.nn.functional
    problem = importlib.import_module("spectral_backends.torch").CurvatureProblem

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Linear(*w.shape[::-1], bias=False, dtype=torch.float64)
                for w in form.matrices
            )
            for layer, matrix in zip(self.layers, form.matrices, strict=True):
                layer.weight.data = torch.from_numpy(matrix)

        def forward(self, x):
            for index, layer in enumerate(self.layers):
                x = layer(x if index == 0 or form.activation == "identity" else x**2)
            return x.mean(1) if form.has_positions else x

    def each(z, t):
        off = z - t
        return 0.5 * (
            off * (off if form.metric is None else off @ torch.from_numpy(form.metric))
        ).sum(1)

    def loss(z, targets):
        t, w = targets if form.weighted else (targets, None)
        if form.loss == "cross-entropy":
            if w is None:
                return functional.cross_entropy(z, t)
            terms = functional.cross_entropy(z, t, reduction="none")
        else:
            terms = each(z, t)
        return terms.mean() if w is None else (w * terms).sum() / w.sum()

    model = Network()
    batches = [tuple(map(torch.from_numpy, (b.inputs, b.targets, b.weights))) for b in form.batches]
    watch(
        lambda: {
            "state": {name: value.detach() for name, value in model.state_dict().items()},
            "gradients": [p.grad for p in model.parameters()],
            "mode": model.training,
            "batches": batches,
            "PyTorch's generator": torch.get_rng_state(),
        }
    )
    if form.weighted:
        return problem(
            model, loss, batches,
            forward=lambda model, batch: (model(batch[0]), batch[1:]),
            weight=lambda batch: float(batch[2].sum()),
        )  # fmt: skip
    return problem(model, loss, [batch[:2] for batch in batches])


def make_jax(form, watch):
    """Build it of a forward and a loss function; samples are weighed where a form asks for it."""
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    problem = importlib.import_module("spectral_backends.jax").CurvatureProblem

    def forward(params, x):
        for index, kernel in enumerate(params):
            x = (x if index == 0 or form.activation == "identity" else x**2) @ kernel
        return x.mean(1) if form.has_positions else x

    def each(z, t):
        if form.loss == "cross-entropy":
            return -jnp.take_along_axis(jax.nn.log_softmax(z), t[:, None], axis=1)[:, 0]
        off = z - t
        return 0.5 * (off * (off if form.metric is None else off @ form.metric)).sum(1)

    def loss(z, targets):
        if form.weighted:
            t, w = targets
            return (w * each(z, t)).sum() / w.sum()
        return each(z, targets).mean()

    params = [np.ascontiguousarray(w.T) for w in form.matrices]
    whole = [(b.inputs, b.targets, b.weights) for b in form.batches]
    batches = [(x, (t, w)) if form.weighted else (x, t) for x, t, w in whole]
    watch(lambda: {"params": params, "batches": batches})
    return problem((forward, loss), params, batches)
