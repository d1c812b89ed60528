"""Small problems and optimizers in NumPy, whose results `record` writes down."""

from collections.abc import Callable
from typing import Any

import numpy as np

Bits = list[tuple[str, str, tuple[int, ...], bytes]]


def _network(**options: Any) -> Any:
    from spectral_backends.numpy import DenseNetwork

    network = DenseNetwork((7, 9, 8, 5), **options)
    rng = np.random.default_rng(0)
    params = {
        name: rng.standard_normal(shape) / 3
        for name, shape in {
            "0.weight": (9, 7), "0.bias": (9,), "1.weight": (8, 9), "1.bias": (8,),
            "head.weight": (5, 8), "head.bias": (5,),
        }.items()
    }  # fmt: skip
    batches = [(rng.standard_normal((n, 7)), rng.integers(5, size=n)) for n in (6, 5)]
    return network, params, batches


def _problem(name: str, **options: Any) -> Any:
    from spectral_backends.numpy import CurvatureProblem

    network, params, batches = _network(activation=name)
    return CurvatureProblem(
        network.gradient, params, batches, weight=lambda batch: len(batch[0]), **options
    )


def reports() -> dict[str, Callable[[], Any]]:
    """Return measurements by name."""
    import spectral_core as sc

    def network(**options: Any) -> Any:
        built, params, batches = _network(activation="gelu-tanh")
        return sc.measure(built.problem(params, batches), top_k=4, **options)

    return {
        "network": network,
        "network-ggn": lambda: network(curvature="ggn"),
        "network-decomposed": lambda: network(decompose=True),
        "network-one-layer": lambda: network(layers="1*"),
        "complex-step": lambda: sc.measure(_problem("tanh"), top_k=4),
        "differences": lambda: sc.measure(_problem("tanh", method="differences"), top_k=4),
        "relu": lambda: sc.measure(_problem("relu"), top_k=3),
        "no-such-layer": lambda: network(layers="nothing*"),
    }


def states() -> dict[str, Callable[[], Bits]]:
    """Return runs of optimizers by name."""
    return {
        "default": lambda: _run(),
        "absolute": lambda: _run(alpha=1.5, damping=0.1, damping_mode="absolute", scale="none"),
        "per-type": lambda: _run(alpha="per-type", damping=0.1, weight_decay=0.01),
        "stack": lambda: _run(route={"layers.experts": {"matrices": "stack"}}, damping=0.1),
        "globs": lambda: _run(alpha={"layers.*": 1.0, "linear": 1.7}, method="svd"),
    }


def _run(**options: Any) -> Bits:
    from spectral_adapters.array_optim import SpectralNewton

    rng = np.random.default_rng(1)
    shapes = {
        "embed.weight": (11, 6), "layers.0.attn.q": (8, 6), "layers.1.attn.q": (8, 6),
        "layers.experts": (3, 8, 12), "layers.0.bias": (8,), "head.weight": (9, 6),
    }  # fmt: skip
    if "layers.experts" not in options.get("route", {}):
        shapes.pop("layers.experts")
    params = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    optimizer = SpectralNewton(lr=1e-2, **options)
    state = optimizer.init(params)
    for _ in range(20):
        gradients = {
            name: (value + rng.standard_normal(value.shape)).astype("f4")
            for name, value in params.items()
        }
        params, state = optimizer.update(params, gradients, state)
    table = str(optimizer.routing(params)).encode()
    kept = {
        f"{field}.{k}": v for field in state._fields[1:] for k, v in getattr(state, field).items()
    }
    return [("routing", "text", (), table), *bits(params | kept)]


def bits(arrays: dict[str, Any]) -> Bits:
    """Return name, dtype, shape and bytes of each array."""
    hosts = {name: np.asarray(value) for name, value in arrays.items()}
    return [(name, str(a.dtype), a.shape, a.tobytes()) for name, a in sorted(hosts.items())]
