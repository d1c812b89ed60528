"""`precondition` and a step of `spectral_newton` beside Optax's Muon, jitted, float32.

On one matrix of the shapes of GPT-2-small and on square ones: `precondition` against Muon's
Newton-Schulz iteration, five steps; both return an update. Then a step of the optimizers on all
matrices of two blocks of GPT-2-small, and on four square matrices. Everything runs in turn in one
process, on one thread. Errors are ``‖T̂ − T‖₂ / ‖T‖₂`` against an SVD in float64; for Muon T is the
polar factor. Singular values fall off as k^−1/2; δ = 0.1.
"""

import os

# Before JAX starts. Its products and LAPACK's own threads both count.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    " intra_op_parallelism_threads=1"
)
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import statistics  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optax.contrib  # noqa: E402
from harness import arguments, interleaved, print_figure, ratio  # noqa: E402

import spectral_core as sc  # noqa: E402
from spectral_adapters.optax import spectral_newton  # noqa: E402

Shape = tuple[int, int]
SHAPES: list[Shape] = [
    (512, 512), (768, 768), (1024, 1024), (768, 2304), (768, 3072), (3072, 768),
]  # fmt: skip
GPT2: list[Shape] = [(768, 2304), (768, 768), (768, 3072), (3072, 768)] * 2
ALPHAS = (1.0, 1.5, 2.0)
DAMPING = 0.1


def matrix(shape: Shape, seed: int = 0) -> np.ndarray:
    """Return a float64 matrix with singular values k^−1/2."""
    rng = np.random.default_rng(seed)
    u, _, vh = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return (u * np.arange(1, min(shape) + 1) ** -0.5) @ vh


def error(found: Any, gradient: np.ndarray, function: Callable[[Any], Any]) -> float:
    """Return the relative error in the spectral norm, up to the scale of the result."""
    u, sigma, vh = np.linalg.svd(gradient, full_matrices=False)
    expected = (u * function(sigma)) @ vh
    expected /= np.linalg.norm(expected, 2)
    difference = np.asarray(found, np.float64)
    scale = np.sum(difference * expected) / np.sum(expected * expected)
    return float(np.linalg.norm(difference / scale - expected, 2))


def muon_iteration(gradient: jax.Array) -> jax.Array:
    """Return Muon's update of one matrix."""
    transform = optax.contrib.scale_by_muon(nesterov=False, beta=0.0)
    return transform.update(gradient, transform.init(gradient))[0]


def on_matrix(shape: Shape, repeats: int) -> None:
    """Print times of one matrix over Muon's, and errors."""
    exact = matrix(shape)
    gradient = jnp.asarray(exact, jnp.float32)
    runs = {"muon": jax.jit(muon_iteration)} | {
        f"alpha {alpha:g}": jax.jit(
            lambda g, alpha=alpha: sc.precondition(g, alpha, DAMPING, normalize="rms")
        )
        for alpha in ALPHAS
    }
    times = interleaved(
        {name: lambda run=run: run(gradient).block_until_ready() for name, run in runs.items()},
        repeats,
    )
    errors = {"muon": error(runs["muon"](gradient), exact, np.ones_like)}
    for alpha in ALPHAS:
        name = f"alpha {alpha:g}"
        errors[name] = error(
            runs[name](gradient), exact, lambda s, a=alpha: sc.transfer(s, a, DAMPING)
        )
    report("precondition_jax", "×".join(map(str, shape)), times, error=errors)


def on_tree(name: str, shapes: list[Shape], repeats: int) -> None:
    """Print times of one step on matrices of some shapes over Muon's."""
    weights = {str(i): jnp.asarray(matrix(s, i), jnp.float32) for i, s in enumerate(shapes)}
    gradients = {key: w[::-1, ::-1] for key, w in weights.items()}
    optimizers = {"muon": optax.contrib.muon(1e-3), "adamw": optax.adamw(1e-3)} | {
        f"alpha {alpha:g}": spectral_newton(1e-3, alpha, DAMPING) for alpha in ALPHAS
    }
    runs, updates = {}, {}
    for key, optimizer in optimizers.items():
        state, step = optimizer.init(weights), jax.jit(optimizer.update)
        updates[key] = step(gradients, state, weights)[0]
        runs[key] = lambda step=step, state=state: jax.block_until_ready(
            step(gradients, state, weights)
        )
    times = interleaved(runs, repeats)
    # The first step is T of the gradient, up to a factor.
    exact = np.asarray(gradients["0"], np.float64)
    errors = {"muon": error(updates["muon"]["0"], exact, np.ones_like)}
    for alpha in ALPHAS:
        errors[f"alpha {alpha:g}"] = error(
            updates[f"alpha {alpha:g}"]["0"], exact, lambda s, a=alpha: sc.transfer(s, a, DAMPING)
        )
    report("step_optax", name, times, error=errors)


def report(figure: str, name: str, times: dict[str, list[float]], error: dict[str, float]) -> None:
    """Print one line."""
    print_figure(
        figure,
        shapes=name,
        muon_milliseconds=round(1e3 * statistics.median(times["muon"]), 1),
        time_over_muon={key: round(ratio(times, key, "muon"), 3) for key in times if key != "muon"},
        error={key: float(f"{value:.1e}") for key, value in error.items()},
        device=jax.devices()[0].platform,
    )


def main() -> None:
    """Print one line for each shape, and for each tree."""
    quick = arguments(__doc__).quick
    repeats = 2 if quick else 5
    for shape in [(128, 128), (128, 512)] if quick else SHAPES:
        on_matrix(shape, repeats)
    on_tree("GPT-2-small, two blocks", [(128, 512)] if quick else GPT2, repeats)
    for size in (96,) if quick else (512, 768, 1024):
        on_tree(f"4 × {size}×{size}", [(size, size)] * 4, repeats)


if __name__ == "__main__":
    main()
