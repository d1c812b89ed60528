"""Measures small networks on one device and on eight, and watches what the eight gather.

A program of its own, as JAX reads the number of host devices when it starts: prints one JSON object
of findings by case. XLA writes down what it compiles; the operations in there say what any device
held of a batch.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DUMP = Path(tempfile.mkdtemp())
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    f"--xla_dump_to={DUMP} --xla_dump_hlo_as_text"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import json  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from jax_networks import Numbers, cross_entropy, layer_norm  # noqa: E402

import spectral_core as sc  # noqa: E402
from spectral_backends.jax import CurvatureProblem  # noqa: E402
from spectral_backends.jax.objective.compiled import CompileCache  # noqa: E402
from spectral_core.errors import InputError  # noqa: E402

SAMPLES = 8 * 23
"""A length that no axis of a device's share has, nor of a weight."""


def mlp(samples: int, width: int = 8) -> Any:
    new = Numbers(0)
    params = {"first": new(width, 2 * width), "second": new(2 * width, 6)}

    def forward(p, x):
        return jax.nn.gelu(x @ p["first"]) @ p["second"]

    return forward, params, (new(samples, width), new.labels(6, samples))


def cnn(samples: int) -> Any:
    """With convolutions in a scan under remat and under jit, and a maximum over windows."""
    new = Numbers(1)
    params = {"in": new(3, 3, 2, 4), "blocks": new(2, 3, 3, 4, 4), "head": new(4, 6)}

    @jax.jit
    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.checkpoint
    def block(x, w):
        return jax.nn.relu(conv(x, w)), None

    def forward(p, x):
        x = jax.nn.relu(conv(x, p["in"]))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return lax.scan(block, x, p["blocks"])[0].mean((1, 2)) @ p["head"]

    return forward, params, (new(samples, 6, 6, 2), new.labels(6, samples))


def transformer(samples: int) -> Any:
    new = Numbers(2)
    params = {"embed": new(9, 8), "qkv": new(8, 3, 2, 4), "up": new(8, 16), "down": new(16, 8)}

    def forward(p, tokens):
        x = jnp.take(p["embed"], tokens, axis=0)
        q, k, v = jnp.einsum("btd,dchs->cbths", layer_norm(x), p["qkv"])
        scores = jax.nn.softmax(jnp.einsum("bths,buhs->bhtu", q, k))
        x = x + jnp.einsum("bhtu,buhs->bths", scores, v).reshape(x.shape)
        x = x + jax.nn.gelu(layer_norm(x) @ p["up"]) @ p["down"]
        return x @ p["embed"].T

    return forward, params, (new.labels(9, samples, 3), new.labels(9, samples, 3))


def spectral(samples: int) -> Any:
    """With a Fourier transform and a choice of the largest."""
    new = Numbers(3)

    def forward(p, x):
        x = jnp.fft.rfft(x @ p["first"], axis=-1)
        return lax.top_k(jnp.tanh(x.real + x.imag) @ p["second"], 6)[0]

    return (
        forward,
        {"first": new(7, 16), "second": new(9, 16)},
        (new(samples, 7), new.labels(6, samples)),
    )


NETWORKS = {network.__name__: network for network in (mlp, cnn, transformer, spectral)}

LINE, TWO_AXES = ((8,), ("data",)), ((4, 2), ("data", "model"))


def sharded(array: Any, spec: P, grid: Any = LINE, *, explicit: bool = False) -> jax.Array:
    shape, names = grid
    mesh = (
        jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Explicit,) * len(shape))
        if explicit
        else Mesh(np.array(jax.devices()).reshape(shape), names)
    )
    return jax.device_put(array, NamedSharding(mesh, spec))


def by_samples(batch: Any, grid: Any = LINE, **options: Any) -> Any:
    return jax.tree.map(lambda leaf: sharded(leaf, P("data"), grid, **options), batch)


def by_one_axis(params: Any, grid: Any = LINE, axis: str = "data", **options: Any) -> Any:
    """Shard each parameter on the last axis that can be divided."""
    count = dict(zip(grid[1], grid[0], strict=True))[axis]

    def placed(leaf):
        able = [i for i, n in enumerate(leaf.shape) if n % count == 0]
        spec = P(*[None] * able[-1], axis) if able else P()
        return sharded(leaf, spec, grid, **options)

    return jax.tree.map(placed, params)


def everywhere(params: Any) -> Any:
    return jax.tree.map(lambda leaf: sharded(leaf, P()), params)


# Cases: the network, how parameters and batch are placed, what is measured.

COLUMNS = {"engine": "columns", "curvature": "ggn"}
TANGENTS, ALONE = {"engine": "tangents"}, {"engine": "double-backward"}
SPLIT = {"decompose": True}

PLACED = {
    "batch": lambda p, b: (everywhere(p), by_samples(b)),
    "params": lambda p, b: (by_one_axis(p), b),
    "both": lambda p, b: (by_one_axis(p), by_samples(b)),
    "two axes": lambda p, b: (by_one_axis(p, TWO_AXES, "model"), by_samples(b, TWO_AXES)),
    "explicit": lambda p, b: (
        by_one_axis(p, TWO_AXES, "model", explicit=True), by_samples(b, TWO_AXES, explicit=True)
    ),
    "params on one device, targets in NumPy": lambda p, b: (
        jax.device_put(p, jax.devices()[3]), (*by_samples(b[:-1]), np.asarray(b[-1]))
    ),
}  # fmt: skip

CASES = {
    "mlp batch decomposed": ("mlp", "batch", SPLIT),
    "mlp params one by one": ("mlp", "params", ALONE),
    "mlp both tangents": ("mlp", "both", TANGENTS),
    "mlp targets elsewhere": ("mlp", "params on one device, targets in NumPy", ALONE),
    "cnn batch decomposed": ("cnn", "batch", SPLIT),
    "cnn both tangents": ("cnn", "both", TANGENTS),
    "cnn two axes columns": ("cnn", "two axes", COLUMNS),
    "mlp explicit tangents": ("mlp", "explicit", TANGENTS),
    "transformer both ggn columns": ("transformer", "both", COLUMNS),
    "spectral batch one by one": ("spectral", "batch", ALONE),
}


def found() -> Iterator[tuple[str, Any]]:
    for name, (network, placed, options) in CASES.items():
        forward, params, batch = NETWORKS[network](SAMPLES)
        alone = measured((forward, cross_entropy), params, [batch], options)
        params, batch = PLACED[placed](params, batch)
        with watched() as seen:
            there = measured((forward, cross_entropy), params, [batch], options)
        yield name, compared(alone, there, [] if placed == "params" else seen)
    yield "uneven batches", uneven()
    yield "weights larger than the batch", wide()
    yield "one sample a device, loss alone", one_each()
    yield "loss of no independent terms", not_additive()


def uneven() -> Any:
    """A smaller last batch lies where the loader left it; a padded one has weights of zero."""
    forward, params, (x, y) = mlp(SAMPLES + 13)
    mask = jnp.arange(2 * SAMPLES) < SAMPLES + 13

    def masked(z, targets):
        y, kept = targets
        losses = -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]
        return jnp.sum(losses * kept) / jnp.maximum(kept.sum(), 1)

    padded = jax.tree.map(
        lambda a: jnp.pad(a, [(0, SAMPLES - 13), *[(0, 0)] * (a.ndim - 1)]), (x, y)
    )
    cut = [slice(0, SAMPLES), slice(SAMPLES, None)]
    plain = [(x[s], y[s]) for s in cut]
    weighted = [(padded[0][s], (padded[1][s], mask[s])) for s in cut]
    alone = measured((forward, cross_entropy), params, [(x, y)], COLUMNS)
    with watched() as seen:
        there = [
            measured((forward, cross_entropy), params, [by_samples(plain[0]), plain[1]], COLUMNS),
            measured(
                (forward, masked), everywhere(params), list(map(by_samples, weighted)), COLUMNS
            ),
        ]
    results = [compared(alone, each, seen) for each in there]
    return {"off": max(r["off"] for r in results), "gathered": seen}


def wide() -> Any:
    """Left as they are, such weights stay, and XLA gathers the batch to them."""
    forward, params, batch = mlp(24, width=320)
    options = ALONE | {"curvature": "ggn"}
    alone = measured((forward, cross_entropy), params, [batch], options)
    with watched(24) as seen:
        there = measured((forward, cross_entropy), *PLACED["both"](params, [batch]), options)
    return compared(alone, there, seen)


def one_each() -> Any:
    """Also the test of the halves of a batch lies on the devices that hold them."""
    forward, params, batch = mlp(8, width=7)

    def loss(p, batch):
        return cross_entropy(forward(p, batch[0]), batch[1])

    alone = measured(loss, params, [batch, batch], ALONE)
    with watched(8) as seen:
        there = measured(loss, everywhere(params), [by_samples(batch)] * 2, ALONE)
    return compared(alone, there, seen)


def not_additive() -> Any:
    """A loss whose halves do not add up is refused, sharded or not."""
    forward, params, batch = mlp(SAMPLES)
    loss = (forward, lambda z, y: cross_entropy(z, y) * SAMPLES / (SAMPLES + y.sum()))
    refused = []
    for placed in (batch, by_samples(batch)):
        try:
            CurvatureProblem(loss, params, [placed, placed])
        except InputError as error:
            refused.append(str(error))
    return {"off": float(len(refused) != 2 or refused[0] != refused[1]), "gathered": refused[:0]}


def measured(loss: Any, params: Any, batches: Any, options: Any) -> sc.SpectralReport:
    return sc.measure(CurvatureProblem(loss, params, batches), top_k=3, progress=False, **options)


def compared(alone: sc.SpectralReport, there: sc.SpectralReport, seen: list[str]) -> Any:
    """Return how far two reports are from each other, relative to what each layer has."""
    assert list(alone) == list(there) and alone.skipped == there.skipped
    worst = 0.0
    for name in alone:
        one, other = alone[name], there[name]
        assert one.certificate.engine == other.certificate.engine
        for x, y in [
            (one.sigma, other.sigma),
            (one.curvature, other.curvature),
            (one.ggn, other.ggn),
        ]:
            assert (x is None) == (y is None)
            if x is not None:
                worst = max(
                    worst, float(np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(x).max())
                )
        if one.decomposition is not None:
            for term in ("alpha", "beta", "phi", "kappa", "nu"):
                x, y = (getattr(each.decomposition, term).exponent for each in (one, other))
                worst = max(worst, abs(x - y))
    return {"off": worst, "gathered": seen}


# What is watched


@contextmanager
def watched(samples: int = SAMPLES) -> Iterator[list[str]]:
    """List what brings a whole batch to one device, or to the host."""
    seen: list[str] = []
    before = set(DUMP.iterdir())
    kind = type(jnp.zeros(()))
    compiled, to_host = CompileCache.compiled, kind.__array__

    def read(array: Any, *args: Any, **options: Any) -> Any:
        if array.ndim and array.shape[0] == samples and not array.is_fully_replicated:
            seen.append(f"host: {array.dtype}{list(array.shape)}")
        return to_host(array, *args, **options)

    def compiled_and_seen(cache: Any, batch: Any, what: Any, make: Any) -> Any:
        run = compiled(cache, batch, what, make)

        def and_seen(*arguments: Any) -> Any:
            results = run(*arguments)
            seen.extend(f"held: {x}" for x in jax.tree.leaves(results) if _whole(x, samples))
            return results

        return and_seen

    CompileCache.compiled, kind.__array__ = compiled_and_seen, read  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        CompileCache.compiled, kind.__array__ = compiled, to_host  # type: ignore[method-assign]
    for file in sorted(set(DUMP.iterdir()) - before):
        if file.name.endswith("after_optimizations.txt"):
            seen.extend(f"{file.name}: {line}" for line in wholes(file.read_text(), samples))


def _whole(array: Any, samples: int) -> bool:
    """Say whether one device holds an axis of all samples, with more than a number for each."""
    own = array.sharding.shard_shape(array.shape)
    return samples in own and int(np.prod(own)) > samples


def wholes(program: str, samples: int) -> list[str]:
    """Return the operations of a partitioned program that make values of all samples.

    Arrays of one index or factor for each sample are not counted.
    """
    if not re.search(r"num_partitions=[2-8]", program):
        return []
    found = []
    for line in program.splitlines():
        made = re.match(r"\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
        for kind, axes in re.findall(r"(\w+)\[([\d,]+)\]", made[1] if made else ""):
            shape = [int(n) for n in axes.split(",")]
            moved = made[2].startswith(("all-gather", "all-to-all", "collective-permute"))
            if samples in shape and (np.prod(shape) > samples or moved):
                found.append(f"{made[2]} {kind}[{axes}]")
    return sorted(set(found))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == 8
    chosen = sys.argv[1:]
    CASES = {name: case for name, case in CASES.items() if not chosen or name in chosen}
    for name, finding in found():
        print(json.dumps({name: finding}), flush=True)
