"""Small problems and optimizers in JAX, whose results `record` writes down."""

from collections.abc import Callable
from typing import Any

import numpy as np


def _models() -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """Return by name: functions, parameters and batches."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)

    def labels(*shape: int, classes: int) -> Any:
        return jnp.asarray(rng.integers(classes, size=shape))

    def cross_entropy(outputs: Any, targets: Any) -> Any:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], -1)
        return -chosen.mean()

    def dense(activation: Any) -> Callable[[], Any]:
        def run() -> Any:
            def forward(params: Any, x: Any) -> Any:
                for name in ("a", "b"):
                    x = activation(x @ params[name]["kernel"] + params[name]["bias"])
                return x @ params["head"]["kernel"]

            params = {
                "a": {"kernel": array(8, 10), "bias": array(10)},
                "b": {"kernel": array(10, 9), "bias": array(9)}, "head": {"kernel": array(9, 6)},
            }  # fmt: skip
            batches = [(array(n, 8), labels(n, classes=6)) for n in (9, 7)]
            return (forward, cross_entropy), params, batches

        return run

    def convolution() -> Any:
        def forward(params: Any, x: Any) -> Any:
            axes = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    x, params["conv"], (1, 1), "SAME", dimension_numbers=axes
                )
            )
            return x.mean((1, 2)) @ params["head"]

        params = {"conv": array(3, 3, 3, 6), "head": array(6, 5)}
        return (
            (forward, cross_entropy),
            params,
            [(array(n, 6, 6, 3), labels(n, classes=5)) for n in (6, 4)],
        )

    def scanned() -> Any:
        def forward(params: Any, x: Any) -> Any:
            out, _ = jax.lax.scan(
                lambda h, w: (jnp.tanh(h @ w), None), params["embed"][x], params["blocks"]
            )
            return out @ params["head"]

        params = {"embed": array(11, 8), "blocks": array(3, 8, 8), "head": array(8, 7)}
        batches = [(labels(n, 4, classes=11), labels(n, 4, classes=7)) for n in (5, 4)]
        return (forward, cross_entropy), params, batches

    def loss_alone() -> Any:
        def loss(params: Any, batch: Any) -> Any:
            x, y = batch
            return ((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2).mean()

        return (
            loss,
            {"up": array(6, 9), "down": array(9, 5)},
            [(array(n, 6), array(n, 5)) for n in (8, 6)],
        )

    return {
        "relu": dense(jax.nn.relu), "gelu": dense(jax.nn.gelu), "convolution": convolution,
        "scanned": scanned, "loss-alone": loss_alone,
    }  # fmt: skip


def reports() -> dict[str, Callable[[], Any]]:
    """Return measurements by name."""
    import spectral_core as sc
    from spectral_backends.jax import CurvatureProblem

    models = _models()

    def measured(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: sc.measure(CurvatureProblem(*models[name]()), top_k=4, **options)

    return {
        **{name: measured(name) for name in models},
        "relu-decomposed": measured("relu", decompose=True),
        "scanned-decomposed": measured("scanned", decompose=True),
        "gelu-ggn": measured("gelu", curvature="ggn"),
        "gelu-tangents": measured("gelu", engine="tangents"),
        "gelu-columns": measured("gelu", engine="columns"),
        "gelu-double-backward": measured("gelu", engine="double-backward"),
        "loss-alone-ggn": measured("loss-alone", curvature="ggn"),
    }


def states() -> dict[str, Callable[[], Any]]:
    """Return runs of the optimizer for Optax by name."""
    if not _has_optax():
        return {}
    return {
        "default": lambda: _run("convolution"),
        "per-type": lambda: _run("scanned", alpha="per-type", damping=0.1, weight_decay=0.01),
        "one": lambda: _run(
            "gelu", alpha=1.0, damping=0.05, scale="spectral", method="svd", adam_learning_rate=1e-3
        ),
    }


def _has_optax() -> bool:
    from importlib.util import find_spec

    return find_spec("optax") is not None


def _run(name: str, **options: Any) -> Any:
    import golden_numpy
    import jax
    import optax

    from spectral_adapters.optax import routing_table, spectral_newton

    (forward, loss), params, batches = _models()[name]()
    optimizer = spectral_newton(1e-2, **options)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        gradients = jax.grad(lambda p: loss(forward(p, batch[0]), batch[1]))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(20):
        params, state = step(params, state, batches[count % 2])
    leaves = jax.tree_util.tree_leaves_with_path((params, state))
    kept = {jax.tree_util.keystr(path): value for path, value in leaves}
    table = str(routing_table(params)).encode()
    return [("routing", "text", (), table), *golden_numpy.bits(kept)]
