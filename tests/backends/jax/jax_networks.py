"""Small networks, each with its matrices told by hand: where ``D`` of a layer lies in the parameters.

A case says for each layer, without any of the code under test, the kind, and how a matrix (m, n) is
written into zeros of the parameters' pytree. ``flat`` lists the layers behind which the outputs are
piecewise linear.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Place = Callable[[Any], Any]


@dataclass
class Case:
    forward: Callable[..., Any]
    loss: Callable[..., Any]
    params: Any
    batches: list[Any]
    layers: dict[str, tuple[str, tuple[int, int], Callable[[Any, Any], Any]]]
    flat: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unprobed: dict[str, str] = field(default_factory=dict)

    def joined(self) -> Any:
        return jax.tree_util.tree_map(lambda *parts: jnp.concatenate(parts), *self.batches)

    def total(self, params: Any) -> Any:
        *inputs, targets = self.joined()
        return self.loss(self.forward(params, *inputs), targets)

    def direction(self, layer: str, matrix: Any) -> Any:
        zeros = jax.tree_util.tree_map(jnp.zeros_like, self.params)
        return self.layers[layer][2](zeros, matrix)


class Numbers:
    """Reproducible values."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 0.6) -> Any:
        return jnp.asarray(scale * self._rng.normal(size=shape))

    def labels(self, most: int, *shape: int) -> Any:
        return jnp.asarray(self._rng.integers(0, most, size=shape))


def cross_entropy(logits: Any, labels: Any) -> Any:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -picked.mean()


def squared_error(outputs: Any, targets: Any) -> Any:
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


def at(*path: Any, write: Callable[[Any, Any], Any] = lambda zeros, d: d.T) -> Any:
    """Place a matrix at a path of nested dicts and lists; by default as (inputs, outputs)."""

    def place(tree: Any, matrix: Any) -> Any:
        def descend(node: Any, rest: tuple[Any, ...]) -> Any:
            if not rest:
                return write(node, matrix)
            copy = dict(node) if isinstance(node, dict) else list(node)
            copy[rest[0]] = descend(node[rest[0]], rest[1:])
            return copy

        return descend(tree, path)

    return place


def layer_norm(x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def mlp() -> Case:
    new = Numbers(0)
    params = {
        "first": {"kernel": new(5, 6), "bias": new(6)},
        "second": {"kernel": new(6, 4), "bias": new(4)},
    }

    def forward(p: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
        return hidden @ p["second"]["kernel"] + p["second"]["bias"]

    sizes = (5, 5, 2)
    return Case(
        forward, cross_entropy, params, [(new(n, 5), new.labels(4, n)) for n in sizes],
        {
            "first": ("linear", (6, 5), at("first", "kernel")),
            "second": ("linear", (4, 6), at("second", "kernel")),
        },
        flat=("second",),
    )  # fmt: skip


def _to_hwio(zeros: Any, d: Any) -> Any:
    height, width, channels, out = zeros.shape
    return d.reshape(out, channels, height, width).transpose(2, 3, 1, 0)


def _group(index: int, groups: int) -> Any:
    def write(zeros: Any, d: Any) -> Any:
        height, width, channels, out = zeros.shape
        m = out // groups
        kernel = d.reshape(m, channels, height, width).transpose(2, 3, 1, 0)
        return zeros.at[..., index * m : (index + 1) * m].set(kernel)

    return write


def cnn() -> Case:
    new = Numbers(1)
    params = [new(3, 3, 2, 6), new(3, 2, 3, 6), new(6, 3)]

    def conv(x: Any, w: Any, **options: Any) -> Any:
        return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    def forward(p: Any, x: Any) -> Any:
        x = jax.nn.relu(conv(x, p[0], window_strides=(1, 1), padding="SAME"))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = conv(x, p[1], window_strides=(1, 2), padding=((1, 0), (0, 1)), feature_group_count=2)
        return jax.nn.relu(x).mean((1, 2)) @ p[2]

    layers = {
        "0": ("conv2d", (6, 18), at(0, write=_to_hwio)),
        "1.group0": ("conv2d", (3, 18), at(1, write=_group(0, 2))),
        "1.group1": ("conv2d", (3, 18), at(1, write=_group(1, 2))),
        "2": ("linear", (3, 6), at(2)),
    }
    batches = [(new(n, 6, 5, 2), new.labels(3, n)) for n in (3, 3)]
    return Case(forward, cross_entropy, params, batches, layers, flat=tuple(layers))


def transformer() -> Case:
    """Attention with heads, LayerNorm, GELU, and a head tied to the embedding."""
    new = Numbers(2)
    vocabulary, width, heads, size = 7, 6, 2, 3
    params = {
        "embed": {"embedding": new(vocabulary, width)},
        "qkv": {"w": new(width, 3, heads, size)},
        "out": {"w": new(heads, size, width)},
        "up": {"w": new(width, 8)},
        "down": {"w": new(8, width)},
    }

    def forward(p: Any, tokens: Any) -> Any:
        x = jnp.take(p["embed"]["embedding"], tokens, axis=0)
        q, k, v = jnp.einsum("btd,dchs->cbths", layer_norm(x), p["qkv"]["w"])
        scores = jax.nn.softmax(jnp.einsum("bths,buhs->bhtu", q, k))
        mixed = jnp.einsum("bhtu,buhs->bths", scores, v)
        x = x + jnp.einsum("bths,hsd->btd", mixed, p["out"]["w"])
        x = x + jax.nn.gelu(layer_norm(x) @ p["up"]["w"]) @ p["down"]["w"]
        return layer_norm(x) @ p["embed"]["embedding"].T

    layers = {
        "embed": ("embedding+linear", (7, 6), at("embed", "embedding", write=lambda z, d: d)),
        "qkv": (
            "linear", (18, 6),
            at("qkv", "w", write=lambda z, d: d.T.reshape(z.shape)),
        ),
        "out": ("linear", (6, 6), at("out", "w", write=lambda z, d: d.T.reshape(z.shape))),
        "up": ("linear", (8, 6), at("up", "w")),
        "down": ("linear", (6, 8), at("down", "w")),
    }  # fmt: skip
    batches = [(new.labels(vocabulary, n, 3), new.labels(vocabulary, n, 3)) for n in (2, 2)]
    return Case(forward, cross_entropy, params, batches, layers)


def scanned() -> Case:
    """Stacked blocks in a scan, under remat."""
    new = Numbers(3)
    params = {
        "blocks": {
            "up": {"kernel": new(3, 4, 5)},
            "down": {"kernel": new(3, 5, 4), "bias": new(3, 4)},
        },
        "head": {"kernel": new(4, 3)},
    }

    def forward(p: Any, x: Any) -> Any:
        @jax.checkpoint
        def block(x: Any, w: Any) -> Any:
            hidden = jax.nn.relu(x @ w["up"]["kernel"])
            return x + hidden @ w["down"]["kernel"] + w["down"]["bias"], None

        x, _ = lax.scan(block, x, p["blocks"])
        return x @ p["head"]["kernel"]

    layers = {}
    for i in range(3):
        for name, shape in (("up", (5, 4)), ("down", (4, 5))):
            write = lambda zeros, d, i=i: zeros.at[i].set(d.T)  # noqa: E731
            layers[f"blocks.{i}.{name}"] = (
                "linear", shape, at("blocks", name, "kernel", write=write),
            )  # fmt: skip
    layers["head"] = ("linear", (3, 4), at("head", "kernel"))
    batches = [(new(n, 4), new(n, 3)) for n in (3, 3)]
    return Case(forward, squared_error, params, batches, layers, flat=tuple(layers))


def mapped() -> Case:
    """``vmap`` over samples with ``W x``, functions under jit, experts, a packed matrix."""
    new = Numbers(4)
    params = {"enter": {"w": new(4, 5)}, "experts": new(2, 3, 4), "packed": new(8, 3)}

    @jax.jit
    def enter(w: Any, x: Any) -> Any:
        return jnp.sin(w @ x)

    def one(p: Any, x: Any) -> Any:
        x = enter(p["enter"]["w"], x)
        x = jnp.stack([x, x**2])
        x = jax.vmap(lambda w, x: w @ x)(p["experts"], x).sum(0)
        top, bottom = jnp.split(p["packed"], 2)
        return jnp.tanh(top @ x) * (bottom @ x)

    def forward(p: Any, x: Any) -> Any:
        return jax.vmap(one, (None, 0))(p, x)

    def half(start: int) -> Any:
        return lambda zeros, d: zeros.at[start : start + 4].set(d)

    def expert(index: int) -> Any:
        return lambda zeros, d: zeros.at[index].set(d)

    layers = {
        "enter": ("linear", (4, 5), at("enter", "w", write=lambda z, d: d)),
        "experts.group0": ("linear", (3, 4), at("experts", write=expert(0))),
        "experts.group1": ("linear", (3, 4), at("experts", write=expert(1))),
        "packed.part0": ("linear", (4, 3), at("packed", write=half(0))),
        "packed.part1": ("linear", (4, 3), at("packed", write=half(4))),
    }
    batches = [(new(n, 5), new.labels(4, n)) for n in (3, 3)]
    return Case(forward, cross_entropy, params, batches, layers)


def recurrent() -> Case:
    """A recurrent matrix, shared by all steps of a scan that runs backwards."""
    new = Numbers(5)
    params = {"state": {"w": new(4, 4)}, "input": {"w": new(3, 4)}, "head": {"w": new(4, 3)}}

    def forward(p: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = jnp.tanh(state @ p["state"]["w"] + x @ p["input"]["w"])
            return state, None

        zeros = jnp.zeros((len(x), 4))
        state, _ = lax.scan(step, zeros, jnp.swapaxes(x, 0, 1), reverse=True)
        return state @ p["head"]["w"]

    layers = {
        "state": ("linear", (4, 4), at("state", "w")),
        "input": ("linear", (4, 3), at("input", "w")),
        "head": ("linear", (3, 4), at("head", "w")),
    }
    batches = [(new(n, 4, 3), new(n, 3)) for n in (3, 3)]
    return Case(forward, squared_error, params, batches, layers, flat=("head",))


def beside() -> Case:
    """Matrices that are used in other ways too, or changed on their way."""
    new = Numbers(6)
    params = {"gated": new(4, 4), "scaled": new(4, 5), "branch": new(4, 3), "custom": new(3, 3)}
    mask = jnp.asarray(np.arange(20).reshape(4, 5) % 3 > 0)

    @jax.custom_jvp
    def custom(w: Any, x: Any) -> Any:
        return jnp.sin(x @ w)

    @custom.defjvp
    def _custom(primals: Any, tangents: Any) -> Any:
        (w, x), (dw, dx) = primals, tangents
        return custom(w, x), jnp.cos(x @ w) * (dx @ w + x @ dw)

    def forward(p: Any, x: Any) -> Any:
        x = x @ p["gated"] + p["gated"].sum(0) ** 2
        x = jnp.tanh(x @ (2 * p["scaled"] * mask))[:, :4]
        x = lax.cond(x.sum() > 0, lambda w, x: x @ w, lambda w, x: x @ jnp.sin(w), p["branch"], x)
        return custom(p["custom"], x)

    layers = {
        "gated": ("linear", (4, 4), at("gated")),
        "scaled": ("linear", (5, 4), at("scaled")),
    }
    batches = [(new(n, 4), new(n, 3)) for n in (3, 3)]
    return Case(
        forward, squared_error, params, batches, layers, skipped=("branch", "custom"),
        unprobed={"gated": "otherwise", "scaled": "changed"},
    )  # fmt: skip


CASES = {
    case.__name__: case for case in (mlp, cnn, transformer, scanned, mapped, recurrent, beside)
}
