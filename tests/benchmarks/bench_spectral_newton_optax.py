"""`precondition` and a step of `spectral_newton` beside Optax's Muon, jitted, float32.

On one matrix of the shapes of GPT-2-small and on square ones: `precondition` against Muon's
Newton-Schulz iteration, five steps; both return an update. Then a step of the optimizers on all
matrices of a block of GPT-2-small, and on four square matrices. Everything runs in turn in one
process; on a CPU on one thread, and times are those of the processor. Errors are ``‖T̂ − T‖₂ / ‖T‖₂`` against known singular vectors in float64; for
Muon T is the polar factor. Singular values fall off as k^−1/2; δ = 0.1.
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
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optax.contrib  # noqa: E402
from harness import Sections, arguments, interleaved, print_figure, ratio  # noqa: E402

import spectral_core as sc  # noqa: E402
from spectral_adapters.optax import spectral_newton  # noqa: E402

Shape = tuple[int, int]
SHAPES: list[Shape] = [(512, 512), (768, 768), (1024, 1024), (768, 3072)]
GPT2: list[Shape] = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
ALPHAS = (1.0, 1.5, 2.0)
DAMPING = 0.1
CLOCK = time.process_time if jax.default_backend() == "cpu" else time.perf_counter


class Known:
    """A float64 matrix with singular values k^−1/2 and known singular vectors."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        k = min(shape)
        self.u, self.v = (np.linalg.qr(rng.normal(size=(side, k)))[0] for side in shape)
        self.sigma = np.arange(1, k + 1) ** -0.5
        self.array = (self.u * self.sigma) @ self.v.T

    def error(self, found: Any, function: Callable[[Any], Any]) -> float:
        """Return that of a result, up to its scale, in the spectral norm."""
        values = function(self.sigma) / np.max(function(self.sigma))
        expected = (self.u * values) @ self.v.T
        difference = np.asarray(found, np.float64)
        difference = difference / (np.sum(difference * expected) / np.sum(values**2)) - expected
        wide = difference if len(difference) <= len(difference.T) else difference.T
        return float(np.sqrt(np.linalg.eigvalsh(wide @ wide.T)[-1]))


def muon_iteration(gradient: jax.Array) -> jax.Array:
    """Return Muon's update of one matrix."""
    transform = optax.contrib.scale_by_muon(nesterov=False, beta=0.0)
    return transform.update(gradient, transform.init(gradient))[0]


def on_matrix(shape: Shape, repeats: int) -> None:
    """Print times of one matrix over Muon's, and errors."""
    known = Known(shape)
    gradient = jnp.asarray(known.array, jnp.float32)
    runs = {"muon": jax.jit(muon_iteration)} | {
        f"alpha {alpha:g}": jax.jit(
            lambda g, alpha=alpha: sc.precondition(g, alpha, DAMPING, normalize="rms")
        )
        for alpha in ALPHAS
    }
    times = interleaved(
        {name: lambda run=run: run(gradient).block_until_ready() for name, run in runs.items()},
        repeats,
        CLOCK,
    )
    errors = {"muon": known.error(runs["muon"](gradient), np.ones_like)}
    for alpha in ALPHAS:
        name = f"alpha {alpha:g}"
        errors[name] = known.error(
            runs[name](gradient), lambda s, a=alpha: sc.transfer(s, a, DAMPING)
        )
    report("precondition_jax", "×".join(map(str, shape)), times, error=errors)


def on_tree(title: str, shapes: list[Shape], repeats: int) -> None:
    """Print times of one step on matrices of some shapes over Muon's."""
    known = {str(i): Known(shape, i) for i, shape in enumerate(shapes)}
    gradients = {key: jnp.asarray(own.array, jnp.float32) for key, own in known.items()}
    weights = {key: jnp.ones_like(gradient) for key, gradient in gradients.items()}
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
    times = interleaved(runs, repeats, CLOCK)
    # The first step is T of the gradient, up to a factor.
    errors = {"muon": known["0"].error(updates["muon"]["0"], np.ones_like)}
    for alpha in ALPHAS:
        name = f"alpha {alpha:g}"
        errors[name] = known["0"].error(
            updates[name]["0"], lambda s, a=alpha: sc.transfer(s, a, DAMPING)
        )
    report("step_optax", title, times, error=errors)


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
    options = arguments(__doc__, device=True)
    quick, sections = options.quick, Sections(options.figures, options.seconds)
    if options.device == "cuda" and jax.default_backend() == "cpu":
        raise SystemExit("--device cuda: JAX sees no GPU.")
    repeats = 2 if quick else 3
    for shape in [(128, 128), (128, 512)] if quick else SHAPES:
        sections.run(f"jax {shape}", partial(on_matrix, shape, repeats))
    title, block = "GPT-2-small, one block", [(128, 512)] if quick else GPT2
    sections.run(f"jax {title}", partial(on_tree, title, block, repeats))
    for size in (96,) if quick else (512, 1024):
        title = f"4 × {size}×{size}"
        sections.run(f"jax {title}", partial(on_tree, title, [(size, size)] * 4, repeats))
    sections.finish()


if __name__ == "__main__":
    main()
