"""Training that is stopped at any steps, saved, and continued by fresh optimizers is the same to the bit.

Gradients depend on the parameters, so that what differs once differs for ever; now and then one is
missing, or is not finite.
"""

import io
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_adapters import array_optim

STEPS = 12
SHAPES = {"0.weight": (6, 4), "1.weight": (6, 6), "2.weight": (6, 6), "1.bias": (6,),
          "conv.weight": (4, 2, 3, 3), "head.weight": (3, 6)}  # fmt: skip
stops = st.sets(st.integers(0, STEPS - 1), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


def start(seed: int, dtype: Any) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {n: generator.standard_normal(shape).astype(dtype) for n, shape in SHAPES.items()}


def gradient_at(name: str, array: Any, seed: int, step: int) -> Any:
    """Return a gradient that depends on the parameter, or None."""
    generator = np.random.default_rng([seed, step, *name.encode()])
    if generator.random() < 0.2:
        return None
    found = np.sin(3 * array) + generator.standard_normal(array.shape).astype(array.dtype)
    if generator.random() < 0.1:
        found.flat[0] = np.nan
    return found


def equal(one: Any, two: Any) -> bool:
    """Return whether two dicts of arrays are the same to the bit, NaN and all."""
    return one.keys() == two.keys() and all(
        one[n].dtype == two[n].dtype and one[n].tobytes() == two[n].tobytes() for n in one
    )


# Arrays: the state as `numpy.savez` and `numpy.load` hand it over


def saved_and_loaded(params: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
    file = io.BytesIO()
    parts = {"params": params, **state._asdict()}
    count = parts.pop("count")
    flat = {f"{part}/{name}": array for part, own in parts.items() for name, array in own.items()}
    np.savez(file, count=count, **flat)
    file.seek(0)
    with np.load(file) as found:
        loaded: dict[str, Any] = {
            part: {name: found[f"{part}/{name}"] for name in own} for part, own in parts.items()
        }
        return loaded.pop("params"), array_optim.SpectralNewtonState(found["count"], **loaded)


ARRAY_OPTIONS: list[dict[str, Any]] = [
    {},
    {"alpha": 1.5, "weight_decay": 0.1, "adamw": {"lr": 0.02, "betas": (0.8, 0.95)}},
    {"alpha": "per-type", "damping": 0.1, "method": "eigh", "nesterov": False},
]


@settings(max_examples=15, deadline=None)
@given(
    stops=stops, seed=seeds, dtype=st.sampled_from([np.float32, np.float64]),
    options=st.sampled_from(ARRAY_OPTIONS),
)  # fmt: skip
def test_arrays(stops, seed, dtype, options):
    def train(stops: set[int]) -> tuple[dict[str, Any], Any]:
        optimizer = array_optim.SpectralNewton(**options)
        params = start(seed, dtype)
        state = optimizer.init(params)
        for step in range(STEPS):
            if step in stops:
                params, state = saved_and_loaded(params, state)
                optimizer = array_optim.SpectralNewton(**options)
            gradients = {n: gradient_at(n, p, seed, step) for n, p in params.items()}
            params, state = optimizer.update(params, gradients, state, lr=0.01 / (1 + step))
        return params, state

    (params, state), (resumed, again) = train(set()), train(stops)
    assert equal(params, resumed)
    for part in ("momentum", "mean", "square"):
        assert equal(getattr(state, part), getattr(again, part))
    assert int(state.count) == int(again.count) == STEPS


# PyTorch: model, optimizer and schedule through a file


TORCH_OPTIONS: list[dict[str, Any]] = [
    {},
    {"alpha": 1.5, "weight_decay": 0.1, "adamw": {"lr": 0.02, "betas": (0.8, 0.95)}},
    {"alpha": "per-type", "damping": 0.1, "method": "eigh", "maximize": True},
    {"lr": "tensor"},
]


def torch_schedule(name: str, optimizer: Any) -> Any:
    import torch

    kinds = torch.optim.lr_scheduler
    if name == "one cycle":
        return kinds.OneCycleLR(optimizer, 0.05, total_steps=STEPS, cycle_momentum=False)
    if name == "warm restarts":
        return kinds.CosineAnnealingWarmRestarts(optimizer, 5)
    parts = [kinds.LinearLR(optimizer, total_iters=4), kinds.ExponentialLR(optimizer, 0.9)]
    return kinds.SequentialLR(optimizer, parts, [4])


@settings(max_examples=15, deadline=None)
@given(
    stops=stops, seed=seeds, dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
    options=st.sampled_from(TORCH_OPTIONS),
    schedule=st.sampled_from(["one cycle", "warm restarts", "sequence"]),
)  # fmt: skip
def test_torch(stops, seed, dtype, options, schedule):
    torch = pytest.importorskip("torch")
    from spectral_adapters.torch_optim import SpectralNewton

    def fresh(**changed: Any) -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        own = {name: torch.as_tensor(array) for name, array in start(seed, np.float32).items()}
        given = {n: torch.nn.Parameter(p.to(getattr(torch, dtype))) for n, p in own.items()}
        groups = [
            {"params": [(n, p) for n, p in given.items() if n.startswith("0") is first]}
            for first in (True, False)
        ]
        groups[0]["damping"] = 0.01
        keywords = {"lr": 0.01} | options | changed
        if keywords["lr"] == "tensor":
            keywords["lr"] = torch.tensor(0.01)
        optimizer = SpectralNewton(groups, **keywords)
        return given, optimizer, torch_schedule(schedule, optimizer)

    def train(stops: set[int]) -> tuple[dict[str, Any], Any]:
        params, optimizer, schedule = fresh()
        for step in range(STEPS):
            if step in stops:
                file = io.BytesIO()
                torch.save((params, optimizer.state_dict(), schedule.state_dict()), file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                # What the state holds wins over what a fresh optimizer is told.
                other = torch.tensor(0.5) if options.get("lr") == "tensor" else 0.5
                params, optimizer, schedule = fresh(lr=other)
                with torch.no_grad():
                    for name, parameter in params.items():
                        parameter.copy_(saved[0][name])
                optimizer.load_state_dict(saved[1])
                schedule.load_state_dict(saved[2])
            for name, parameter in params.items():
                wide = parameter.detach().double().numpy()
                found = gradient_at(name, wide, seed, step)
                parameter.grad = None if found is None else torch.as_tensor(found).to(parameter)
            optimizer.step()
            schedule.step()
        return params, optimizer

    (params, optimizer), (resumed, again) = train(set()), train(stops)
    for name, parameter in params.items():
        assert same_tensor(parameter, resumed[name]), name
        state, other = optimizer.state[parameter], again.state[resumed[name]]
        assert state.keys() == other.keys()
        assert all(same_tensor(state[key], other[key]) for key in state), name


def same_tensor(one: Any, two: Any) -> bool:
    """Return whether two tensors are of one dtype and have the same bits, NaN and all."""
    import torch

    def bits(tensor: Any) -> Any:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    return one.dtype == two.dtype and torch.equal(bits(one), bits(two))


# Optax: parameters and state as a pickled pytree of NumPy's arrays


OPTAX_OPTIONS = ("one rule", "injected", "accumulated")


def optax_optimizer(name: str) -> Any:
    import optax

    from spectral_adapters.optax import spectral_newton

    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, 4, STEPS)
    if name == "injected":
        injected = optax.inject_hyperparams(spectral_newton, static_args=("alpha", "damping"))
        return injected(schedule, alpha=1.5, damping=0.1, weight_decay=0.1)
    plain = spectral_newton(schedule, alpha=1.0, damping=0.1, weight_decay=0.1)
    return optax.MultiSteps(plain, 3) if name == "accumulated" else plain


@cache
def optax_step(name: str, which: int) -> tuple[Any, Callable[..., Any]]:
    """Return an optimizer and its jitted step; each `which` has its own."""
    import jax
    import optax

    optimizer = optax_optimizer(name)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


@pytest.mark.parametrize("name", OPTAX_OPTIONS)
@settings(max_examples=8, deadline=None)
@given(stops=stops, seed=seeds)
def test_optax(name, stops, seed):
    jax = pytest.importorskip("jax")
    pytest.importorskip("optax")

    def train(stops: set[int]) -> Any:
        optimizer, step = optax_step(name, 0)
        params = jax.tree.map(jax.numpy.asarray, start(seed, np.float32))
        state = optimizer.init(params)
        for index in range(STEPS):
            if index in stops:
                host = jax.tree.map(np.asarray, (params, state))
                params, state = pickle.loads(pickle.dumps(host))
                _, step = optax_step(name, 1)
            gradients = {
                name: gradient_at(name, np.asarray(parameter), seed, index)
                for name, parameter in params.items()
            }
            zeros = {name: np.zeros(SHAPES[name], np.float32) for name in params}
            known = {name: g for name, g in gradients.items() if g is not None}
            params, state = step(params, state, zeros | known)
        return params, state

    whole, resumed = train(set()), train(stops)
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()
