"""Curvature of all layers of a ReLU network in JAX, against a loop over jvp of grad.

The same batch, float32 weights and top-k directions of every layer for

- ours: `CurvatureProblem.layer_curvatures`, all layers together, engine "auto"
- one layer at a time: the same with engine "double-backward"
- plain loop: ``jax.jvp`` of ``jax.grad`` in one layer's weight, compiled once a layer, called once
  per direction

All are compiled before they are timed. Prints the ratio of median times (above 1: the peer is
slower), and the largest relative difference of the curvatures. For one layer, prints the same for
the ways to take a second derivative under ``vmap``: forward over reverse and ``jet`` against
forward over forward.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
from harness import arguments, interleaved, print_figure, ratio
from jax import lax
from jax.experimental import jet

from spectral_backends.jax import CurvatureProblem


def forward(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """Return the logits of a network with skip connections and max pooling."""
    first, *blocks, head = params

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = jnp.maximum(conv(x, first), 0)
    for index in range(0, len(blocks), 2):
        x = jnp.maximum(x + conv(jnp.maximum(conv(x, blocks[index]), 0), blocks[index + 1]), 0)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2)) @ head


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def network(width: int, depth: int) -> list[jax.Array]:
    """Return weights of `depth` blocks of two convolutions."""
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 3, width), *[(3, 3, width, width)] * (2 * depth), (width, 10)]
    weights = [rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1])) for s in shapes]
    weights[-1] *= 0.1  # no saturated probabilities, whose curvature is rounding in float32
    return [jnp.asarray(w, jnp.float32) for w in weights]


def as_kernel(u: np.ndarray, v: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Write ``u vᵀ`` into the layout of a kernel."""
    if len(shape) == 2:
        return np.outer(v, u)
    height, width, channels, out = shape
    return np.outer(u, v).reshape(out, channels, height, width).transpose(2, 3, 1, 0)


def all_layers(width: int, depth: int, count: int, top_k: int, repeats: int) -> None:
    """Time all layers of a network."""
    rng = np.random.default_rng(1)
    params = network(width, depth)
    x = jnp.asarray(rng.normal(size=(count, 16, 16, 3)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, count))
    problem = CurvatureProblem((forward, loss), params, [(x, y)])
    names = [layer.name for layer in problem.layers()]
    directions = {}
    for name, gradient in problem.gradients(names).items():
        u, _, vt = np.linalg.svd(np.asarray(gradient), full_matrices=False)
        directions[name] = (u[:, :top_k], vt[:top_k].T)
    kernels = {
        name: [
            jnp.asarray(as_kernel(u[:, k], v[:, k], params[int(name)].shape))
            for k in range(u.shape[1])
        ]
        for name, (u, v) in directions.items()
    }

    def of_layer(index: int):
        @jax.jit
        def product(params, x, y, d):
            def total(w):
                return loss(forward([*params[:index], w, *params[index + 1 :]], x), y)

            return jnp.vdot(jax.jvp(jax.grad(total), (params[index],), (d,))[1], d)

        return product

    products = {name: of_layer(int(name)) for name in names}

    def ours() -> dict[str, np.ndarray]:
        return {f.name: np.asarray(f.values) for f in problem.layer_curvatures(directions)}

    def alone() -> dict[str, np.ndarray]:
        found = problem.layer_curvatures(directions, engine="double-backward")
        return {f.name: np.asarray(f.values) for f in found}

    def plain_loop() -> dict[str, np.ndarray]:
        return {
            name: np.asarray([products[name](params, x, y, d) for d in kernels[name]])
            for name in names
        }

    expected = plain_loop()
    engines = {f.certificate.engine for f in problem.layer_curvatures(directions)}
    off = max(
        np.max(np.abs(h - expected[n]) / np.abs(expected[n]).max()) for n, h in ours().items()
    )
    contenders = {"ours": ours, "one layer at a time": alone, "plain loop": plain_loop}
    times = interleaved(contenders, repeats)
    print_figure(
        "curvature of all layers, JAX", layers=len(names), top_k=top_k, samples=count,
        engines=sorted(engines), plain_loop=round(ratio(times, "plain loop", "ours"), 1),
        one_layer_at_a_time=round(ratio(times, "one layer at a time", "ours"), 1),
        difference=float(off),
    )  # fmt: skip


def ways(width: int, count: int, top_k: int, repeats: int) -> None:
    """Time the ways to take one layer's second derivatives."""
    rng = np.random.default_rng(2)
    sizes = [(32, width), (width, width), (width, 10)]
    weights = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in sizes]
    x = jnp.asarray(rng.normal(size=(count, 32)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, count))
    d = jnp.asarray(rng.normal(size=(top_k, *sizes[0])), jnp.float32)

    def total(w: jax.Array) -> jax.Array:
        return loss(jnp.tanh(jnp.tanh(x @ w) @ weights[1]) @ weights[2], y)

    def slope(d: jax.Array):
        return lambda w: jax.jvp(total, (w,), (d,))[1]

    forms = {
        "forward over forward": lambda d: jax.jvp(slope(d), (weights[0],), (d,))[1],
        "forward over reverse": lambda d: jnp.vdot(
            jax.jvp(jax.grad(total), (weights[0],), (d,))[1], d
        ),
        "jet": lambda d: jet.jet(total, (weights[0],), ((d, jnp.zeros_like(d)),))[1][1],
    }
    compiled = {name: jax.jit(jax.vmap(form)) for name, form in forms.items()}
    times = interleaved(
        {name: lambda f=f: jax.block_until_ready(f(d)) for name, f in compiled.items()}, repeats
    )
    print_figure(
        "second derivative of a perceptron, over forward over forward",
        **{
            name.replace(" ", "_"): round(ratio(times, name, "forward over forward"), 2)
            for name in ("forward over reverse", "jet")
        },
    )


def main() -> None:
    """Print all figures."""
    quick = arguments(__doc__).quick
    if quick:
        all_layers(32, 4, 32, 20, 3)
        ways(64, 64, 20, 5)
    else:
        all_layers(64, 4, 128, 20, 5)
        ways(256, 256, 20, 20)


if __name__ == "__main__":
    main()
