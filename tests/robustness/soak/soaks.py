"""Optimizer steps and measurements by the thousand in one process, and what it holds afterwards.

One soak, or all of them, each in a process of its own; prints one JSON line for each:

    python tests/robustness/soak/soaks.py ["torch steps"]... [--steps 10000] [--measurements 200]
"""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from growth import Growth, growth

import spectral_core as sc

Run = Callable[[int], None]
ENGINES = ("auto", "columns", "tangents", "double-backward", "monte-carlo")


# Steps. Now and then a gradient is missing, one is not finite, and the state is saved and loaded.


def torch_steps() -> Run:
    import torch

    from spectral_adapters.torch_optim import SpectralNewton

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(16, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.Tanh(),
        torch.nn.Linear(8, 3),
    )  # fmt: skip
    x, y = torch.randn(16, 1, 4, 4), torch.randint(3, (16,))
    optimizer = SpectralNewton(model, lr=0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 100)
    rules = {row["rule"] for row in optimizer.routing_table()}
    assert rules == {"spectral", "adamw"}

    def run(index: int) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        if index % 7 == 0:
            model[4].weight.grad = model[5].bias.grad = None
        if index % 101 == 0:
            model[6].weight.grad[0, 0] = torch.nan
        optimizer.step()
        schedule.step()
        if index % 50 == 0:
            file = io.BytesIO()
            torch.save([optimizer.state_dict(), schedule.state_dict()], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])

    return run


def array_steps() -> Run:
    from spectral_adapters.array_optim import SpectralNewton, SpectralNewtonState
    from spectral_backends.numpy import DenseNetwork

    network = DenseNetwork((6, 8, 8, 5), "tanh")
    generator = np.random.default_rng(0)
    batch = (generator.standard_normal((32, 6)), generator.integers(0, 5, 32))
    optimizer = SpectralNewton(weight_decay=0.01)
    params = network.init(0)
    assert {row["rule"] for row in optimizer.routing(params).rows()} == {"spectral", "adamw"}
    held = [params, optimizer.init(params)]

    def run(index: int) -> None:
        params, state = held
        gradients: dict[str, Any] = network.gradient(params, batch)
        if index % 7 == 0:
            gradients["0.weight"] = gradients["1.bias"] = None
        if index % 101 == 0:
            gradients["1.weight"][0, 0] = np.nan
        rate = 0.005 * (1 + np.cos(np.pi * (index % 100) / 100))
        held[:] = optimizer.update(params, gradients, state, lr=rate)
        if index % 50 == 0:
            file = io.BytesIO()
            count, *parts = held[1]
            flat = {f"{i} {n}": a for i, part in enumerate(parts) for n, a in part.items()}
            np.savez(file, count=count, **flat)
            file.seek(0)
            with np.load(file) as saved:
                loaded = [{n: saved[f"{i} {n}"] for n in part} for i, part in enumerate(parts)]
                held[1] = SpectralNewtonState(saved["count"], *loaded)

    return run


def optax_steps() -> Run:
    import jax
    import optax

    from spectral_adapters.optax import spectral_newton

    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((32, 6)), generator.integers(0, 5, 32)
    params = {
        "Dense_0": {"kernel": generator.standard_normal((6, 8)) / 3, "bias": np.zeros(8)},
        "Dense_1": {"kernel": generator.standard_normal((8, 8)) / 3, "bias": np.zeros(8)},
        "head": {"kernel": generator.standard_normal((8, 5)) / 3},
    }

    def loss(params: Any) -> Any:
        hidden = x
        for name in ("Dense_0", "Dense_1"):
            hidden = jax.numpy.tanh(hidden @ params[name]["kernel"] + params[name]["bias"])
        logits = hidden @ params["head"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    optimizer = spectral_newton(optax.cosine_decay_schedule(0.01, 20_000), weight_decay=0.01)

    @jax.jit
    def step(params: Any, state: Any, bad: Any) -> Any:
        gradients = jax.grad(loss)(params)
        weight = gradients["Dense_1"]["kernel"]
        gradients["Dense_1"]["kernel"] = jax.numpy.where(bad, jax.numpy.nan, weight)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jax.numpy.asarray, params)
    held = [params, optimizer.init(params)]

    def run(index: int) -> None:
        held[:] = step(*held, index % 101 == 0)
        if index % 50 == 0:
            held[:] = pickle.loads(pickle.dumps(held))

    return run


# Measurements, engine by engine, of both curvatures, with and without factors.


def torch_measurements() -> Run:
    import torch

    from spectral_backends.arrays import through_dlpack
    from spectral_backends.torch import CurvatureProblem

    torch.manual_seed(0)
    perceptron = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.GELU(),
        torch.nn.Linear(6, 4),
    )  # fmt: skip
    convolutions = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(16, 4),
    ).eval()  # fmt: skip
    cases = [
        (model, [(torch.randn(8, *shape), torch.randint(4, (8,))) for _ in range(2)])
        for model, shape in ((perceptron, (6,)), (convolutions, (1, 4, 4)))
    ]

    def run(index: int) -> None:
        model, batches = cases[index % 2]
        kind = ("hessian", "ggn")[index // 2 % 2]
        engine = ENGINES[index % len(ENGINES)]
        # Columns and draws have no Hessian of a network that bends.
        if engine in ("columns", "monte-carlo") and model is perceptron:
            kind = "ggn"
        problem = CurvatureProblem(model, torch.nn.functional.cross_entropy, batches)
        if index % 6 == 0:
            problem = through_dlpack(problem, np.empty(0))
        delta = ("ggn", "fisher-mc", "empirical")[index % 3]
        sc.measure(
            problem, top_k=3, curvature=kind, engine=engine, mc_samples=8, decompose=index % 4 == 0,
            fisher_type=delta, progress=False,
        )  # fmt: skip

    return run


def jax_measurements() -> Run:
    import jax

    from spectral_backends.jax import CurvatureProblem

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "0": jax.random.normal(keys[0], (6, 8)) / 3, "1": jax.random.normal(keys[1], (8, 4)) / 3,
    }  # fmt: skip
    batches = [(jax.random.normal(keys[2], (16, 6)), jax.random.randint(keys[3], (16,), 0, 4))]

    def forward(params: Any, x: Any) -> Any:
        return jax.nn.gelu(x @ params["0"]) @ params["1"]

    def loss(outputs: Any, targets: Any) -> Any:
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1).mean()

    problem = CurvatureProblem((forward, loss), params, batches)

    def run(index: int) -> None:
        engine = ("auto", "tangents", "double-backward")[index % 3]
        kind = ("hessian", "ggn")[index // 3 % 2]
        sc.measure(
            problem, top_k=3, curvature=kind, engine=engine, decompose=index % 4 == 0,
            progress=False,
        )  # fmt: skip

    return run


def array_measurements() -> Run:
    from spectral_backends.numpy import CurvatureProblem, DenseNetwork

    network = DenseNetwork((6, 8, 6, 4), "tanh")
    params, generator = network.init(0), np.random.default_rng(0)
    batches = [(generator.standard_normal((8, 6)), generator.integers(0, 4, 8)) for _ in range(2)]

    def run(index: int) -> None:
        if index % 3 == 0:
            problem = network.problem(params, batches)
            sc.measure(problem, top_k=3, decompose=index % 2 == 0, progress=False)
            return
        method: Any = ("complex-step", "differences")[index % 2]
        problem = CurvatureProblem(
            network.gradient, params, batches, weight=lambda batch: len(batch[1]), method=method
        )
        sc.measure(problem, top_k=3, progress=False)

    return run


STEPS = {"torch steps": torch_steps, "optax steps": optax_steps, "array steps": array_steps}
MEASUREMENTS = {
    "torch measurements": torch_measurements,
    "jax measurements": jax_measurements,
    "array measurements": array_measurements,
}
SOAKS = STEPS | MEASUREMENTS


def count_compilations() -> list[str]:
    """Return a list to which JAX's compilations are added; of a process without JAX it is empty."""
    found: list[str] = []
    if jax := sys.modules.get("jax"):

        def listen(event: str, duration: float, **details: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                found.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def soak(name: str, steps: int, measurements: int) -> tuple[Growth, dict[str, Any]]:
    """Return what a soak left behind, and its figures."""
    runs, warm_up = (steps, 205) if name in STEPS else (measurements, 61)
    started = time.perf_counter()
    run = SOAKS[name]()
    compiled = count_compilations()
    at_start: list[int] = []

    def counted(index: int) -> None:
        if index == warm_up:
            at_start.append(len(compiled))
        run(index)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits to three points
        found = growth(counted, runs, warm_up)
    more = {"compilations": len(compiled) - at_start[0]} if "jax" in sys.modules else {}
    seconds = round(time.perf_counter() - started, 1)
    return found, found.figures() | more | {"leaks": found.leaks(), "seconds": seconds}


def in_own_process(name: str, steps: int, measurements: int) -> dict[str, Any]:
    """Return the figures of a soak that runs in a process of its own."""
    command = [sys.executable, __file__, name, "--steps", str(steps), "--here"]
    done = subprocess.run(
        [*command, "--measurements", str(measurements)],
        capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SOAKS])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--measurements", type=int, default=200)
    parser.add_argument("--here", action="store_true", help="in this process")
    asked = parser.parse_args()
    leaks = []
    for name in asked.names or SOAKS:
        if asked.here:
            figures = soak(name, asked.steps, asked.measurements)[1]
        else:
            figures = in_own_process(name, asked.steps, asked.measurements)
        print(json.dumps({"figure": name, **figures}), flush=True)
        leaks += figures["leaks"]
    raise SystemExit(1 if leaks and not asked.here else 0)


if __name__ == "__main__":
    main()
