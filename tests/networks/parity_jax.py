"""Networks as pure JAX functions of a pytree, written down a second time: see `parity_networks`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TABLES = ("wte", "wpe", "tok_embeddings")


def pytree(state):
    """Nest a torch state by the points of its names, with kernels as JAX has them.

    ``(outputs, inputs)`` becomes ``(inputs, outputs)``, ``OIHW`` becomes ``HWIO``; tables of
    embeddings and vectors stay.
    """
    tree = {}
    for name, value in state.items():
        *path, module, leaf = ["", *name.split(".")]
        if leaf == "weight" and module in TABLES:
            leaf = "embedding"
        elif leaf == "weight" and value.ndim > 1:
            leaf, value = "kernel", value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
        place = tree
        for part in [*path, module]:
            place = place.setdefault(part, {}) if part else place
        place[leaf] = np.array(value)  # a copy of its own, in C order
    return tree


# Operations


def dense(p, x):
    return x @ p["kernel"] + p["bias"] if "bias" in p else x @ p["kernel"]


def conv(p, x, stride=1, padding=0, groups=1):
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    return y + p["bias"] if "bias" in p else y


def max_pool(x, size):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, size, size, 1), "VALID")


def batch_norm(p, x):
    scale = p["weight"] / jnp.sqrt(p["running_var"] + 1e-5)
    return (x - p["running_mean"]) * scale + p["bias"]


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * p["weight"] + p["bias"]


def rms_norm(p, x):
    return p["weight"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def causal_attention(q, k, v):
    """Of arrays ``(batch, position, head, width)``."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    past = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(past, scores, -jnp.inf)), v)


# Networks


def mlp(p, x):
    return dense(p["4"], jax.nn.gelu(dense(p["2"], jnp.tanh(dense(p["0"], x))), approximate=False))


def cnn(p, x):
    x = jax.nn.relu(conv(p["0"], x.transpose(0, 2, 3, 1), stride=2, padding=1))
    x = max_pool(jax.nn.softplus(conv(p["2"], x, groups=2)), 2)
    return dense(p["6"], x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def gpt(p, tokens):
    """GPT-2 in small: one head, GELU, LayerNorm before each part, a head tied to the embedding."""
    table = p["wte"]["embedding"]
    x = table[tokens] + p["wpe"]["embedding"][jnp.arange(tokens.shape[1])]
    for block in p["h"].values():
        parts = jnp.split(dense(block["attn"]["c_attn"], layer_norm(block["ln_1"], x)), 3, axis=-1)
        mixed = causal_attention(*(part[:, :, None] for part in parts))[:, :, 0]
        x = x + dense(block["attn"]["c_proj"], mixed)
        hidden = dense(block["mlp"]["c_fc"], layer_norm(block["ln_2"], x))
        x = x + dense(block["mlp"]["c_proj"], jax.nn.gelu(hidden, approximate=False))
    return layer_norm(p["ln_f"], x) @ table.T


def resnet20(p, images):
    def norm_conv(block, index, x, stride=1):
        y = conv(block[f"conv{index}"], x, stride=stride, padding=1)
        return batch_norm(block[f"bn{index}"], y)

    x = jax.nn.relu(norm_conv(p, 1, images.transpose(0, 2, 3, 1)))
    for stage in (1, 2, 3):
        for index, block in p[f"layer{stage}"].items():
            stride = 2 if stage > 1 and index == "0" else 1
            y = jax.nn.relu(norm_conv(block, 1, x, stride))
            y = norm_conv(block, 2, y)
            if stride == 2:
                more = y.shape[-1] // 4
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
            x = jax.nn.relu(x + y)
    return dense(p["linear"], x.mean((1, 2)))


def llama(p, tokens, rotations, heads=8, groups=4):
    """Rotary positions, grouped-query attention, SwiGLU, RMSNorm, a tied embedding."""
    cos, sin = rotations

    def rotated(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = (even * cos - odd * sin, even * sin + odd * cos)
        return jnp.stack(turned, -1).reshape(x.shape)

    table = p["tok_embeddings"]["embedding"]
    x = table[tokens]
    batch, length, width = x.shape
    for layer in p["layers"].values():
        part, z = layer["attention"], rms_norm(layer["attention_norm"], x)
        q = dense(part["wq"], z).reshape(batch, length, heads, width // heads)
        k, v = (
            dense(part[name], z).reshape(batch, length, groups, width // heads)
            for name in ("wk", "wv")
        )
        k, v = (jnp.repeat(each, heads // groups, axis=2) for each in (rotated(k), v))
        x = x + dense(part["wo"], causal_attention(rotated(q), k, v).reshape(x.shape))
        part, z = layer["feed_forward"], rms_norm(layer["ffn_norm"], x)
        x = x + dense(part["w2"], jax.nn.silu(dense(part["w1"], z)) * dense(part["w3"], z))
    return rms_norm(p["norm"], x) @ table.T


# Losses


def cross_entropy(logits, targets):
    """Mean over the targets that are not negative."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)
    counted = targets >= 0
    return -jnp.sum(jnp.where(counted, picked[..., 0], 0.0)) / jnp.sum(counted)


def mean_cross_entropy(logits, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()


def squared_error(outputs, targets):
    return ((outputs - targets) ** 2).mean()
