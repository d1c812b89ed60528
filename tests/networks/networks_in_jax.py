"""Networks of the registry as pure functions of JAX."""

import jax
import jax.numpy as jnp

from spectral_backends.jax import CurvatureProblem


def problem(net, dtype, batches):
    activate = {
        "relu": jax.nn.relu, "identity": lambda z: z, "tanh": jnp.tanh,
        "gelu-tanh": lambda z: jax.nn.gelu(z, approximate=True),
    }[net.activation]  # fmt: skip

    def forward(params, x):
        for name, kind in zip(net.layers, net.kinds, strict=False):
            w = params[name]
            if kind == "convolution":
                x = jax.lax.conv_general_dilated(
                    x, w, (1,), "SAME", dimension_numbers=("NWC", "OIW", "NWC")
                )
            else:
                x = x @ w.T
            x = activate(x)
        return x.mean(1) @ params["head"].T

    def loss(z, t):
        if net.loss == "squared":
            return 0.5 * jnp.mean(jnp.sum((z - t) ** 2, axis=-1))
        return -jnp.take_along_axis(jax.nn.log_softmax(z), t[:, None], axis=-1).mean()

    params = {name: jnp.asarray(w, dtype) for name, w in net.weights.items()}
    return CurvatureProblem((forward, loss), params, batches, weight=lambda batch: len(batch[0]))
