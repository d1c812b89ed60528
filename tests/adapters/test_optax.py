"""Spectral Newton for Optax: PyTorch's optimizer, the textbook, and what Optax and JAX expect of it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import muon_directions
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the extra optax: nox -s 'tests(jax)'")
optax = pytest.importorskip("optax", reason="needs the extra optax: nox -s 'tests(jax)'")
jnp = jax.numpy

import spectral_core as sc  # noqa: E402
from spectral_adapters.jax_updates.step_options import StepOptions  # noqa: E402
from spectral_adapters.optax import (  # noqa: E402
    SpectralDimensionNumbers,
    default_dimension_numbers,
    routing_table,
    scale_by_spectral_newton,
    spectral_newton,
)
from spectral_core.arrays.factorize import after  # noqa: E402
from spectral_core.newton import batched  # noqa: E402
from spectral_core.newton.step import newton_step  # noqa: E402

STATIC = ("alpha", "damping", "weight_dimension_numbers", "weight_decay_mask")


@pytest.fixture(autouse=True)
def double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def arrays(shapes, seed=0, dtype=np.float64):
    """A tree of random arrays for a tree of shapes."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


NETWORK = {
    "embed": {"embedding": (11, 6)},
    "blocks_0": {
        "attn": {"c_attn": {"kernel": (6, 18)}},
        "mlp": {"up_proj": {"kernel": (6, 10), "bias": (10,)},
                "down_proj": {"kernel": (10, 6), "bias": (6,)}},
    },
    "lm_head": {"kernel": (6, 11)},
}  # fmt: skip
PAIR = {"one": {"kernel": (4, 6)}, "two": {"kernel": (4, 6), "bias": (6,)}}


def first(optimizer, gradients, params=None):
    """Updates and state of the first step, jitted: op by op compiles five times as long."""

    @jax.jit
    def step(gradients, params):
        state = optimizer.init(gradients if params is None else params)
        return optimizer.update(gradients, state, params)

    return step(gradients, params)


def falling(start, steps):
    """A schedule in float64; those of Optax divide counts in float32."""
    return lambda count: start * (1 - jnp.asarray(count, float) / steps)


def largest_difference(one, two):
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b), initial=0.0)), one, two)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    return max(jax.tree.leaves(gaps))


def bits_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(a.dtype == b.dtype and bool(jnp.array_equal(a, b)) for a, b in pairs)


def textbook(gradient, momentum, alpha, damping=0.1, beta=0.95, scale=0.2):
    """The update of one matrix in NumPy, Nesterov and "rms", and the momentum."""
    gradient = np.asarray(gradient)
    momentum = beta * momentum + (1 - beta) * gradient
    u, s, vh = np.linalg.svd(beta * momentum + (1 - beta) * gradient, full_matrices=False)
    update = u @ np.diag(s / (s**alpha + damping * s[0] ** alpha)) @ vh
    return update * scale / np.sqrt(np.mean(update**2)), momentum


def loss_of(params, tokens):
    x = params["embed"]["embedding"][tokens[:, :-1]]
    block = params["blocks_0"]
    q, k, v = jnp.split(x @ block["attn"]["c_attn"]["kernel"], 3, axis=-1)
    x = x + jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v
    up, down = block["mlp"]["up_proj"], block["mlp"]["down_proj"]
    x = x + jnp.tanh(x @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]
    logits = x @ params["lm_head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


TOKENS = np.random.default_rng(1).integers(0, 11, (5, 7))


def trained(optimizer, params, steps, state=None):
    """Params, state and updates after some steps of the small network, each jitted."""
    state = optimizer.init(params) if state is None else state

    @jax.jit
    def step(params, state):
        gradients = jax.grad(loss_of)(params, TOKENS)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


# The same as PyTorch's


def network_of_torch(torch, params):
    """The network of `loss_of`, with its parameters and names such that the routes are the same."""
    nn = torch.nn

    def linear(tree):
        layer = nn.Linear(*tree["kernel"].shape, bias="bias" in tree, dtype=torch.float64)
        layer.weight.data = torch.tensor(np.asarray(tree["kernel"]).T)
        if "bias" in tree:
            layer.bias.data = torch.tensor(np.asarray(tree["bias"]))
        return layer

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            weights = torch.tensor(np.asarray(params["embed"]["embedding"]))
            self.embed = nn.Embedding.from_pretrained(weights, freeze=False)
            block = params["blocks_0"]
            attn = nn.ModuleDict({"c_attn": linear(block["attn"]["c_attn"])})
            mlp = nn.ModuleDict({name: linear(tree) for name, tree in block["mlp"].items()})
            self.blocks = nn.ModuleList([nn.ModuleDict({"attn": attn, "mlp": mlp})])
            self.lm_head = linear(params["lm_head"])

        def forward(self, tokens):
            x = self.embed(tokens)
            block = self.blocks[0]
            q, k, v = block["attn"]["c_attn"](x).chunk(3, dim=-1)
            x = x + torch.softmax(q @ k.transpose(1, 2), -1) @ v
            x = x + block["mlp"]["down_proj"](torch.tanh(block["mlp"]["up_proj"](x)))
            return self.lm_head(x)

    return Network()


def test_fifty_steps_of_the_torch_optimizer():
    torch = pytest.importorskip("torch", reason="needs torch beside jax: nox -s embedding")
    from spectral_adapters.torch_optim import SpectralNewton

    params = jax.tree.map(lambda a: 0.5 * a, arrays(NETWORK))
    network = network_of_torch(torch, params)
    tokens = torch.tensor(TOKENS)
    optimizer = SpectralNewton(
        network, lr=0.01, alpha="per-type", damping=0.1, weight_decay=0.1, momentum=0.9, method="eigh",
        adamw={"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.05},
    )  # fmt: skip
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    start = loss_of(params, TOKENS)
    for _ in range(50):
        optimizer.zero_grad()
        logits = network(tokens[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()
        decay.step()
    ours = spectral_newton(
        falling(0.01, 100), "per-type", 0.1, beta=0.9, weight_decay=0.1, method="eigh",
        adam_learning_rate=falling(0.02, 100),
        adam_b1=0.8, adam_b2=0.99, adam_weight_decay=0.05,
    )  # fmt: skip
    moved, _ = trained(ours, params, 50)
    assert loss_of(moved, TOKENS) < 0.6 * start
    found = {name: p.detach().numpy() for name, p in network.named_parameters()}
    table = {row["name"]: row for row in routing_table(params, alpha="per-type").rows()}
    rows = {row["name"]: row for row in optimizer.routing_table()}
    compared = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        known = name.replace("blocks_0", "blocks.0").replace("kernel", "weight")
        known = known.replace("embedding", "weight")
        other = found[known].T if "kernel" in name else found[known]
        assert np.max(np.abs(np.asarray(leaf) - other)) <= 1e-10, name
        assert (table[name]["rule"], table[name]["alpha"], table[name]["type"]) == (
            rows[known]["rule"], rows[known]["alpha"], rows[known]["type"],
        )  # fmt: skip
        compared += 1
    assert compared == len(found) == 7


def test_it_imports_no_torch():
    code = "import sys, spectral_adapters.optax; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["optax", "routing.jax_trees", "jax_updates.explicit_sharding"])
def test_every_public_name_resolves(module):
    found = importlib.import_module(f"spectral_adapters.{module}")
    assert sorted(found.__all__) == found.__all__
    assert all(getattr(found, name).__doc__ for name in found.__all__ if name != "Tree")


# The same as the textbook


def test_steps_of_the_textbook():
    optimizer = scale_by_spectral_newton(1.4, 0.05, 0.9, method="eigh")
    params = arrays({"w": (4, 6)})
    state, held, step = optimizer.init(params), 0.0, jax.jit(optimizer.update)
    for seed in range(3):
        gradients = arrays({"w": (4, 6)}, seed)
        updates, state = step(gradients, state)
        expected, held = textbook(gradients["w"], held, 1.4, 0.05, 0.9)
        assert np.allclose(updates["w"], expected, rtol=0, atol=1e-13)
        assert np.allclose(state.mu["w"], held, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("shape", "axes", "to_matrices"),
    [
        ((3, 2, 4, 5), SpectralDimensionNumbers((0, 1, 2), 3), lambda a: a.reshape(1, 24, 5)),
        ((5, 4, 3), SpectralDimensionNumbers((-2, 2), 0), lambda a: a.reshape(1, 5, 12)),
        ((3, 4, 5), SpectralDimensionNumbers(1, 2), lambda a: a),
        ((4, 2, 5), SpectralDimensionNumbers(0, 2), lambda a: a.transpose(1, 0, 2)),
        ((4, 2, 5), SpectralDimensionNumbers(0, (1, 2)), lambda a: a.reshape(1, 4, 10)),
        ((4, 9), "matrix columns=3", lambda a: np.stack(np.split(a, 3, axis=1))),
        ((2, 3, 4), sc.MatrixSpec(stack=1), lambda a: a),
    ],
)  # fmt: skip
def test_axes_make_matrices(shape, axes, to_matrices):
    gradient = arrays({"w": shape}, 3)
    optimizer = scale_by_spectral_newton(1.3, 0.1, weight_dimension_numbers={"w": axes})
    updates, _ = first(optimizer, gradient)
    found = to_matrices(np.asarray(updates["w"]))
    for update, matrix in zip(found, to_matrices(np.asarray(gradient["w"])), strict=True):
        assert np.allclose(update, textbook(matrix, 0.0, 1.3)[0], rtol=0, atol=1e-12)


def test_dimension_numbers_of_muon_serve():
    class MuonDimensionNumbers(NamedTuple):  # as `optax.contrib` has them from 0.2.6 on
        reduction_axis: int = 0
        output_axis: int = 1

    gradient = arrays({"w": (2, 3, 4)})
    ours, theirs = (
        scale_by_spectral_newton(1.0, 0.1, weight_dimension_numbers=kind(1, 2))
        for kind in (SpectralDimensionNumbers, MuonDimensionNumbers)
    )
    assert bits_equal(first(ours, gradient)[0], first(theirs, gradient)[0])


def test_leaves_of_one_shape_are_one_call(monkeypatch):
    seen = []

    def spy(weight, gradient, momentum, alpha, *args):
        seen.append((tuple(weight.shape), alpha))
        return newton_step(weight, gradient, momentum, alpha, *args)

    monkeypatch.setattr(batched, "newton_step", spy)
    shapes = {"a": (4, 6), "b": (3, 4, 6), "c": (4, 6), "d": (6, 4)}
    alpha = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 1.0}
    axes = dict.fromkeys(shapes, "stack")
    optimizer = scale_by_spectral_newton(alpha, 0.1, weight_dimension_numbers=axes)
    gradients = arrays(shapes)
    first(optimizer, gradients)
    assert sorted(seen) == [((1, 4, 6), 2.0), ((1, 6, 4), 1.0), ((4, 4, 6), 1.0)]


def test_what_is_not_finite_is_skipped_with_its_state():
    optimizer = spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1)
    params, shapes = arrays(PAIR), PAIR
    _, state = first(optimizer, arrays(shapes, 1), params)
    bad = arrays(shapes, 2)
    bad["one"]["kernel"] = bad["one"]["kernel"].at[1, 2].set(jnp.nan)
    updates, after = jax.jit(optimizer.update)(bad, state, params)
    assert not jnp.any(updates["one"]["kernel"])
    momentum = [optax.tree.get(s.inner_states["spectral"], "mu") for s in (state, after)]
    assert bits_equal(momentum[0]["one"], momentum[1]["one"])
    assert not bits_equal(momentum[0]["two"], momentum[1]["two"])
    assert jnp.all(jnp.isfinite(updates["two"]["kernel"])) and jnp.any(updates["two"]["kernel"])


def test_zero_gradients_give_zero_updates():
    optimizer = scale_by_spectral_newton()
    zeros = jax.tree.map(jnp.zeros_like, arrays({"w": (4, 6)}))
    updates, _ = first(optimizer, zeros)
    assert not jnp.any(updates["w"])


def test_branches_that_are_not_taken_stop():
    """`lax.cond` gives zeros for what only the other branch uses."""
    params = arrays({"used": {"kernel": (4, 6)}, "other": {"kernel": (4, 6)}})
    optimizer = spectral_newton(0.01, weight_decay=0.1)

    def loss(params, x, used):
        kernels = [params[name]["kernel"] for name in ("used", "other")]
        return jnp.sum(jax.lax.cond(used, lambda: x @ kernels[0], lambda: x @ kernels[1]) ** 2)

    @jax.jit
    def step(params, state, used):
        gradients = jax.grad(loss)(
            params, jnp.ones((3, 4)) + params["used"]["kernel"][:3, :4], used
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), updates, state

    params, _, state = step(params, optimizer.init(params), False)
    held = optax.tree.get(state.inner_states["spectral"], "mu")["other"]["kernel"]
    assert jnp.any(held)
    for _ in range(3):
        start = params["other"]["kernel"]
        params, updates, state = step(params, state, True)
        expected = -0.01 * 0.1 * start
        assert np.allclose(updates["other"]["kernel"], expected, rtol=1e-5, atol=0)
        assert jnp.all(updates["used"]["kernel"] != 0)
    momentum = optax.tree.get(state.inner_states["spectral"], "mu")["other"]["kernel"]
    assert np.allclose(momentum, 0.95**3 * held, rtol=1e-5, atol=0)


@pytest.mark.parametrize("axes", ["stack", SpectralDimensionNumbers(1, 2)])
def test_experts_that_nothing_is_routed_to_stop(axes):
    params = arrays({"experts": (3, 4, 6)})
    optimizer = scale_by_spectral_newton(2.0, weight_dimension_numbers=axes)
    update = jax.jit(optimizer.update)
    _, state = update(arrays({"experts": (3, 4, 6)}, 1), optimizer.init(params))
    gradient = arrays({"experts": (3, 4, 6)}, 2)["experts"].at[1].set(0.0)
    updates, _ = update({"experts": gradient}, state)
    moved = updates["experts"]
    assert not jnp.any(moved[1]) and jnp.all(moved[jnp.asarray([0, 2])] != 0)


def test_half_precision_keeps_momentum_in_float32():
    params = arrays({"w": (4, 6)}, dtype=jnp.bfloat16)
    gradients = arrays({"w": (4, 6)}, 1, jnp.bfloat16)
    optimizer = scale_by_spectral_newton(1.0, 0.1)
    updates, state = first(optimizer, gradients, params)
    assert state.mu["w"].dtype == jnp.float32 and updates["w"].dtype == jnp.bfloat16
    low = scale_by_spectral_newton(1.0, 0.1, mu_dtype=jnp.bfloat16)
    rounded, kept = first(low, gradients, params)
    assert kept.mu["w"].dtype == jnp.bfloat16
    assert jnp.array_equal(kept.mu["w"], state.mu["w"].astype(jnp.bfloat16))
    assert bits_equal(rounded, updates)  # the first step does not see what the state rounds
    mixed = scale_by_spectral_newton(1.0, 0.1)
    wide = arrays({"w": (4, 6)})
    assert first(mixed, gradients, wide)[0]["w"].dtype == jnp.float64


@pytest.mark.parametrize("shape", muon_directions.SHAPES)
def test_alpha_one_goes_where_muon_goes(shape):
    gradients = muon_directions.gradients(shape)

    def updates(optimizer):
        state, found = optimizer.init(jnp.zeros(shape)), []
        for gradient in gradients:
            update, state = optimizer.update(jnp.asarray(gradient), state, jnp.zeros(shape))
            found.append(update)
        return found

    # Optax corrects the momentum for its start: without Nesterov that changes no direction.
    ours = updates(scale_by_spectral_newton(1.0, 1e-8, nesterov=False))

    def cosines(*coefficients):
        theirs = updates(optax.contrib.scale_by_muon(*coefficients, nesterov=False))
        return np.array([muon_directions.cosine(*pair) for pair in zip(ours, theirs, strict=True)])

    assert (cosines(muon_directions.CONVERGENT, 30) > 1 - 1e-6).all()
    expected = muon_directions.by_definition(gradients, nesterov=False)
    assert np.abs(cosines() - expected).max() < 1e-6 and (expected > 0.96).all()


# What Optax expects


def test_it_is_composed_of_its_parts():
    params, gradients = arrays({"w": (4, 6)}), arrays({"w": (4, 6)}, 1)
    schedule = falling(0.1, 10)
    whole = spectral_newton(schedule, 1.5, 0.1, weight_decay=0.1)
    parts = optax.chain(
        scale_by_spectral_newton(1.5, 0.1, weight_decay=0.1), optax.scale_by_learning_rate(schedule)
    )
    plain = optax.chain(
        scale_by_spectral_newton(1.5, 0.1), optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(schedule),
    )  # fmt: skip
    states = [optimizer.init(params) for optimizer in (whole, parts, plain)]
    updates_of = [jax.jit(optimizer.update) for optimizer in (whole, parts, plain)]
    for step in range(3):
        found = []
        for i, update in enumerate(updates_of):
            updates, states[i] = update(gradients, states[i], params)
            found.append(updates)
        assert largest_difference(found[0], found[1]) < 1e-15
        assert largest_difference(found[0], found[2]) < 1e-15
        rms = jnp.sqrt(jnp.mean((found[0]["w"] / (0.1 - 0.01 * step) + 0.1 * params["w"]) ** 2))
        assert rms == pytest.approx(0.2, rel=1e-12)


def test_injected_hyperparameters_and_their_schedules():
    params, gradients = arrays(PAIR), arrays(PAIR, 1)
    schedule = falling(0.1, 10)
    injected = optax.inject_hyperparams(spectral_newton, static_args=STATIC)(schedule, alpha=2.0)
    dynamic = optax.inject_hyperparams(spectral_newton)(
        0.1, alpha=falling(2.0, 20), damping=0.1, weight_decay=0.1
    )
    plain = spectral_newton(schedule, alpha=2.0)
    states = [optimizer.init(params) for optimizer in (injected, plain, dynamic)]
    step_injected, step_plain, step_dynamic = (
        jax.jit(optimizer.update) for optimizer in (injected, plain, dynamic)
    )
    for step in range(3):
        ours, states[0] = step_injected(gradients, states[0], params)
        expected, states[1] = step_plain(gradients, states[1], params)
        assert largest_difference(ours, expected) < 1e-14
        assert states[0].hyperparams["learning_rate"] == pytest.approx(0.1 - 0.01 * step)
        assert "alpha" not in states[0].hyperparams
        updates, states[2] = step_dynamic(gradients, states[2], params)
        alpha = 2.0 - 0.1 * step
        assert states[2].hyperparams["alpha"] == pytest.approx(alpha)
        held = (1 - 0.95**step) * np.asarray(gradients["one"]["kernel"])  # the momentum so far
        step_by_hand, _ = textbook(gradients["one"]["kernel"], held, alpha)
        decayed = step_by_hand + 0.1 * np.asarray(params["one"]["kernel"])
        assert np.allclose(updates["one"]["kernel"], -0.1 * decayed, rtol=0, atol=1e-12)
    states[2].hyperparams["learning_rate"] = jnp.asarray(0.0)
    assert not jnp.any(step_dynamic(gradients, states[2], params)[0]["one"]["kernel"])


def test_partition_and_masked():
    params, gradients = arrays(PAIR), arrays(PAIR, 1)
    labels = jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "other", params)
    rate = optax.scale_by_learning_rate(0.1)
    mixed = optax.partition(
        {"matrix": optax.chain(scale_by_spectral_newton(1.5, 0.1), rate), "other": optax.sgd(0.5)},
        labels,
    )
    masked = optax.masked(
        optax.chain(scale_by_spectral_newton(1.5, 0.1), rate),
        jax.tree.map(lambda p: p.ndim == 2, params),
    )
    whole = spectral_newton(0.1, 1.5, 0.1)
    ours, _ = first(mixed, gradients, params)
    part, _ = first(masked, gradients, params)
    expected, _ = first(whole, gradients, params)
    assert largest_difference(ours["two"]["bias"], -0.5 * gradients["two"]["bias"]) == 0
    assert bits_equal(part["two"]["bias"], gradients["two"]["bias"])
    for name in params:
        assert bits_equal(ours[name]["kernel"], expected[name]["kernel"])
        assert bits_equal(part[name]["kernel"], expected[name]["kernel"])


def test_weight_decay_can_be_masked():
    params, gradients = arrays(PAIR), arrays(PAIR, 1)
    plain, decayed = (
        spectral_newton(0.1, 1.5, 0.1),
        spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1),
    )
    masks = {"one": False, "two": {"kernel": True, "bias": False}}
    rows = [plain, decayed, spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1, weight_decay_mask=masks),
            spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1, weight_decay_mask=lambda p: masks)]  # fmt: skip
    none, all_, *some = (first(o, gradients, params)[0] for o in rows)
    for updates in some:
        assert largest_difference(updates["one"], none["one"]) < 1e-15
        assert largest_difference(updates["two"]["kernel"], all_["two"]["kernel"]) < 1e-15
        assert largest_difference(updates["two"]["bias"], none["two"]["bias"]) < 1e-15
    assert largest_difference(none, all_) > 1e-3


def test_accumulation_and_rejection_of_steps():
    params, gradients = arrays(PAIR), arrays(PAIR, 1)
    plain = spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1)
    expected, _ = first(plain, gradients, params)
    every = optax.MultiSteps(plain, 2)
    state = every.init(params)
    update = jax.jit(every.update)
    nothing, state = update(gradients, state, params)
    whole, state = update(gradients, state, params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nothing))
    assert largest_difference(whole, expected) < 1e-6  # gradients are averaged in float32
    finite = optax.apply_if_finite(plain, 3)
    state = finite.init(params)
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.inf), gradients)
    update = jax.jit(finite.update)
    rejected, after = update(bad, state, params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(rejected))
    assert bits_equal(state.inner_state, after.inner_state)
    accepted, _ = update(gradients, after, params)
    assert largest_difference(accepted, expected) < 1e-14


def test_states_can_be_mapped_and_found():
    params = arrays(PAIR)
    optimizer = spectral_newton(0.1)
    state = optimizer.init(params)
    marked = optax.tree.map_params(
        optimizer.init, lambda leaf: leaf + 1, state, transform_non_params=lambda leaf: leaf
    )
    assert jnp.all(optax.tree.get(marked.inner_states["spectral"], "mu")["one"]["kernel"] == 1)


def test_a_checkpoint_of_orbax_continues_to_the_bit(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="needs orbax-checkpoint")
    params = jax.tree.map(lambda a: a.astype(jnp.float32), arrays(NETWORK))
    optimizer = spectral_newton(optax.linear_schedule(0.02, 0.0, 20), weight_decay=0.1)
    params, state = trained(optimizer, params, 2)
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", (params, state))
        saver.wait_until_finished()
        abstract = jax.tree.map(jax.typeof, (params, optimizer.init(params)))
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), abstract)
        restored = saver.restore(tmp_path / "state", like)
    assert bits_equal(restored, (params, state))
    onward = trained(optimizer, params, 2, state)
    assert bits_equal(onward, trained(optimizer, restored[0], 2, restored[1]))


# What JAX expects


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0])
def test_jitted_and_traced(alpha):
    params, gradients = arrays(PAIR), arrays(PAIR, 1)
    optimizer = spectral_newton(0.1, alpha, 0.1, weight_decay=0.1)
    state = optimizer.init(params)
    eager = optimizer.update(gradients, state, params)
    jitted = jax.jit(optimizer.update)(gradients, state, params)
    assert largest_difference(eager, jitted) < 1e-13

    @jax.jit
    def traced(alpha, damping, weight_decay, beta):
        optimizer = spectral_newton(0.1, alpha, damping, beta, weight_decay)
        return optimizer.update(gradients, state, params)

    assert largest_difference(eager, traced(alpha, 0.1, 0.1, 0.95)) < 1e-12


def test_traced_exponents_of_leaves():
    params = arrays(PAIR)
    kernels = {name: {"kernel": leaf["kernel"]} for name, leaf in params.items()}

    @jax.jit
    def traced(one, two):
        optimizer = scale_by_spectral_newton({"one": one, "two": {"kernel": two}}, 0.1)
        return first(optimizer, kernels)[0]

    found = traced(0.5, 1.7)
    for name, alpha in (("one", 0.5), ("two", 1.7)):
        expected = textbook(kernels[name]["kernel"], 0.0, alpha)[0]
        assert np.allclose(found[name]["kernel"], expected, rtol=0, atol=1e-12)


def test_absolute_damping_can_be_traced():
    gradient = arrays({"w": (4, 6)})

    def step(alpha):
        options = {"damping_mode": "absolute", "scale": "none"}
        return first(scale_by_spectral_newton(alpha, 0.3, **options), gradient)[0]

    assert largest_difference(jax.jit(step)(1.5), step(1.5)) < 1e-12


def test_an_ensemble_is_its_members():
    many = arrays({"one": {"kernel": (3, 4, 6)}, "two": {"kernel": (3, 4, 6), "bias": (3, 6)}})
    gradients = jax.tree.map(lambda a: a[::-1] + 0.5, many)
    optimizer = spectral_newton(0.1, 1.5, 0.1, weight_decay=0.1)
    step = jax.jit(jax.vmap(optimizer.update))
    states = jax.vmap(optimizer.init)(many)
    updates, after = step(gradients, states, many)
    for i in range(3):
        member, gradient = (jax.tree.map(lambda a: a[i], tree) for tree in (many, gradients))  # noqa: B023
        alone = first(optimizer, gradient, member)
        assert largest_difference(jax.tree.map(lambda a: a[i], (updates, after)), alone) < 1e-13  # noqa: B023


def test_an_ensemble_of_exponents():
    gradient = arrays({"w": (4, 6)})

    def step(alpha, decay):
        optimizer = scale_by_spectral_newton(alpha, 0.1, weight_decay=decay)
        return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]

    found = jax.vmap(step)(jnp.asarray([1.0, 2.0]), jnp.asarray([0.1, 0.0]))  # op by op
    for update, alpha, decay in zip(found["w"], (1.0, 2.0), (0.1, 0.0), strict=True):
        expected = textbook(gradient["w"], 0.0, alpha)[0] + decay * np.asarray(gradient["w"])
        assert np.allclose(update, expected, rtol=0, atol=1e-12)


def test_a_traced_exponent_of_float64_leaves_float32():
    values, exponent = jnp.asarray([[2.0, 1.0]], dtype="float32"), jnp.asarray(1.5)
    for function in (sc.transfer, sc.precondition):
        assert jax.jit(function)(values, exponent).dtype == "float32"


def test_eight_devices_are_one():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("optax_on_eight_devices.py")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pmap, automatic and explicit mesh" in done.stdout


def test_calls_of_lapack_take_turns(monkeypatch):
    """Two at once on a machine of two cores can wait for each other for ever, inside jaxlib."""
    one, two = jnp.asarray([[1.0, -2.0]]), jnp.asarray([[jnp.nan, jnp.inf]])
    ordered = jax.jit(lambda array, earlier: after(jnp, array, earlier))
    for earlier in (one, two, -two, two[:, ::-1], -two[:, ::-1]):  # the first entry may be ±∞
        assert bits_equal(ordered(one, earlier), one)
        assert ordered(one.astype("float32"), earlier).dtype == "float32"
    compiled = ordered.lower(one, two).compile().as_text()
    assert "compare" in compiled  # the compiler has not seen through it
    seen = []
    monkeypatch.setattr(
        batched, "after", lambda xp, array, earlier: seen.append((array, earlier)) or array
    )
    first(scale_by_spectral_newton(1.5), arrays({"a": (4, 6), "b": (5, 7), "c": (6, 4)}))
    shapes = [(array.shape, earlier.shape) for array, earlier in seen]
    assert shapes == [((1, 5, 7), (1, 4, 6)), ((1, 6, 4), (1, 5, 7))]


# Routing


def test_the_routing_table():
    shapes = NETWORK | {
        "Conv_0": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "conv1": {"weight": (5, 2, 3, 3)},
        "attention": {"query": {"kernel": (6, 2, 3), "bias": (2, 3)}, "out": {"kernel": (2, 3, 6)}},
        "patch_embed": {"kernel": (12, 6)},
        "norm": {"scale": (4, 6)},
        "gate": {"kernel": (6, 1)},
        "experts": {"w1": (3, 6, 8)},
        "wpe": (7, 6),
        "temperature": (),
    }
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=is_shape)
    table = routing_table(params, alpha="per-type")
    rows = {row["name"]: row for row in table.rows()}
    found = {name: (row["alpha"], row["matrices"]) for name, row in rows.items() if row["alpha"]}
    assert found == {
        "Conv_0.kernel": (2.0, "0,1,2 → 3"),
        "attention.out.kernel": (1.2, "0,1 → 2"),
        "attention.query.kernel": (1.2, "0 → 1,2"),
        "blocks_0.attn.c_attn.kernel": (1.2, "matrix columns=3"),
        "blocks_0.mlp.down_proj.kernel": (1.15, "0 → 1"),
        "blocks_0.mlp.up_proj.kernel": (0.8, "0 → 1"),
        "conv1.weight": (2.0, "1,2,3 → 0"),
        "patch_embed.kernel": (1.0, "0 → 1"),
    }
    reasons = {name: row["reason"] for name, row in rows.items() if row["rule"] == "adamw"}
    assert reasons == {
        "Conv_0.bias": "named 'bias'",
        "attention.query.bias": "named 'bias'",
        "blocks_0.mlp.down_proj.bias": "named 'bias'",
        "blocks_0.mlp.up_proj.bias": "named 'bias'",
        "embed.embedding": "embedding: its name",
        "experts.w1": "3 axes of unknown meaning; name them in weight_dimension_numbers",
        "gate.kernel": "its matrices are 6×1",
        "lm_head.kernel": "output head: named 'lm_head'",
        "norm.scale": "named 'scale'",
        "temperature": "a number",
        "wpe": "embedding: its name",
    }
    text = str(table)
    assert "0,1,2 → 3" in text and len(text.splitlines()) == 2 + len(rows)


def is_shape(node):
    return isinstance(node, tuple)


def test_dimension_numbers_and_exponents_by_tree_or_function():
    params, gradients = (
        arrays(PAIR | {"experts": (3, 4, 6)}),
        arrays(PAIR | {"experts": (3, 4, 6)}, 1),
    )

    def axes(tree):
        return default_dimension_numbers(tree) | {"experts": "stack", "one": None}

    def exponents(tree):
        by_path = lambda path, leaf: 2.0 if "experts" in str(path) else 0.5  # noqa: E731
        return jax.tree_util.tree_map_with_path(by_path, tree)

    given = spectral_newton(0.1, exponents, 0.1, weight_dimension_numbers=axes)
    same = spectral_newton(
        0.1, {"one": 1.0, "two": 0.5, "experts": 2.0}, 0.1, weight_dimension_numbers=axes(params)
    )
    updates, _ = first(given, gradients, params)
    assert bits_equal(updates, first(same, gradients, params)[0])
    for matrix, update in zip(gradients["experts"], updates["experts"], strict=True):
        assert np.allclose(update, -0.1 * textbook(matrix, 0.0, 2.0)[0], rtol=0, atol=1e-13)
    two = textbook(gradients["two"]["kernel"], 0.0, 0.5)[0]
    assert np.allclose(updates["two"]["kernel"], -0.1 * two, rtol=0, atol=1e-13)
    adamw = optax.adamw(0.1, weight_decay=0.0)
    expected, _ = first(adamw, gradients["one"], params["one"])
    assert largest_difference(updates["one"], expected) < 1e-15
    rows = routing_table(params, alpha=exponents, weight_dimension_numbers=axes).rows()
    assert [row["alpha"] for row in rows] == [2.0, None, None, 0.5]


def test_a_single_array_and_empty_nodes():
    gradient = arrays({"w": (4, 6)})["w"]
    optimizer = spectral_newton(0.1, 1.5, 0.1)
    update, _ = first(optimizer, gradient, gradient)
    assert np.allclose(update, -0.1 * textbook(gradient, 0.0, 1.5)[0], rtol=0, atol=1e-13)
    tree = {"w": gradient, "frozen": None, "rest": ()}
    updates, _ = first(optimizer, tree, tree)
    assert bits_equal(updates, {"w": update, "frozen": None, "rest": ()})


# What is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 5.0}, "alpha: 5.0 is outside"),
        ({"alpha": "typical"}, "'typical' is unknown"),
        ({"alpha": {"w": 4.5}}, "4.5 of 'w' is not a number in"),
        ({"alpha": {"w": True, "v": 1.0}}, "alpha: its structure is no prefix"),
        ({"alpha": {"w": np.ones(3)}}, "is not a number in"),
        ({"damping": -1.0}, "damping: -1.0"),
        ({"beta": 1.0}, "beta: 1.0 is outside"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1"),
        ({"scale": "largest", "adam_learning_rate": 0.1}, "scale: 'largest' is none of"),
        ({"scale": "spectral"}, "adam_learning_rate: with scale='spectral'"),
        ({"method": "newton"}, "method: 'newton' is none of"),
        ({"alpha": 1.0, "method": "closed"}, "is for alpha = 0, 2 or 4"),
        ({"tolerance": np.asarray(0.1)}, "name it in static_args"),
        ({"weight_dimension_numbers": {"w": 3}}, "weight_dimension_numbers: 3 of 'w'"),
        ({"weight_dimension_numbers": {"v": None}}, "weight_dimension_numbers: its structure"),
        ({"weight_dimension_numbers": SpectralDimensionNumbers(0, 2)}, "names no axes of a parameter"),
        ({"weight_dimension_numbers": SpectralDimensionNumbers(1, -1)}, "share an axis"),
        ({"weight_dimension_numbers": SpectralDimensionNumbers((), 1)}, "names no axes"),
        ({"weight_dimension_numbers": "matrix rows=3"}, "'w': shape .* which are not cut so"),
        ({"weight_decay": 0.1, "weight_decay_mask": {"x": True}}, "weight_decay_mask: its structure"),
    ],
)  # fmt: skip
def test_options_that_are_refused(options, said):
    params = arrays({"w": (4, 6)})
    with pytest.raises(sc.InputError, match=said):
        optimizer = spectral_newton(0.1, **options)
        first(optimizer, params, params)


def test_trees_that_are_refused():
    optimizer = scale_by_spectral_newton()
    with pytest.raises(sc.InputError, match="'n' has dtype int32.*optax.partition"):
        optimizer.init({"n": jnp.ones((2, 3), jnp.int32)})
    with pytest.raises(sc.InputError, match="'n' has dtype int32"):
        spectral_newton(0.1).init({"n": jnp.ones(3, jnp.int32)})
    with pytest.raises(sc.InputError, match="'z' has dtype complex128"):
        spectral_newton(0.1).init({"z": jnp.ones((2, 3), complex)})
    with pytest.raises(sc.InputError, match="'b'.*names no axes"):
        optimizer.init({"b": jnp.ones(3)})
    with pytest.raises(
        sc.InputError, match="None for 'b'; scale_by_spectral_newton is for matrices"
    ):
        scale_by_spectral_newton(weight_dimension_numbers={"b": None}).init({"b": jnp.ones(3)})
    for shape in ((3, 3, 4, 8), (5, 4, 8)):
        with pytest.raises(
            sc.InputError, match=r"'k' has shape \(.*, 4, 8\), of which any two axes"
        ):
            optimizer.init({"k": jnp.ones(shape)})
        told = scale_by_spectral_newton(weight_dimension_numbers="conv-last")
        told.init({"k": jnp.ones(shape)})
    with pytest.raises(sc.InputError, match="empty axis"):
        optimizer.init({"w": jnp.ones((0, 3))})
    params = arrays({"w": (4, 6)})
    decaying = scale_by_spectral_newton(weight_decay=0.1)
    with pytest.raises(sc.InputError, match="params: weight decay needs the parameters"):
        first(decaying, params)
    with pytest.raises(sc.InputError, match="'polynomial' needs alpha and damping as numbers"):
        jax.jit(lambda a: scale_by_spectral_newton(a, method="polynomial").update(
            params, optimizer.init(params)))(1.5)  # fmt: skip


def test_without_optax_the_extra_is_named(tmp_path):
    (tmp_path / "optax.py").write_text("raise ModuleNotFoundError('no', name='optax')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "import spectral_adapters.optax"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert "pip install 'spectral-core[optax]'" in done.stderr


def test_options_are_a_tree_of_their_numbers_and_steps_are_traced_once():
    options = StepOptions(jnp.asarray(0.1), damping=jnp.asarray(0.2), method="eigh")
    assert len(jax.tree.leaves(options)) == 4
    doubled = jax.tree.map(lambda leaf: 2 * leaf, options)
    assert (float(doubled.damping), doubled.beta, doubled.method) == (
        pytest.approx(0.4),
        1.9,
        "eigh",
    )

    traced = []
    schedule = optax.inject_hyperparams(
        spectral_newton, static_args=("alpha", "weight_dimension_numbers", "weight_decay_mask")
    )
    optimizer = schedule(
        optax.linear_schedule(0.1, 0.01, 5), 2.0, damping=optax.linear_schedule(0.1, 0.2, 5)
    )
    params = arrays(PAIR)

    @jax.jit
    def step(gradients, state, params):
        traced.append(1)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for seed in range(4):
        params, state = step(arrays(PAIR, seed), state, params)
    # The first state of inject_hyperparams has weak types, so that it is traced once more.
    assert len(traced) <= 2
