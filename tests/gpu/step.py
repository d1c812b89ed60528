"""Preconditioning and whole optimizer steps on a GPU: time by device events, error beside it.

- One matrix, singular values k^−1/2, δ = 0.1: `precondition` in float32, with products in TF32 and
  with ``precision="bfloat16"``; Muon's Newton-Schulz iteration as `torch.optim.Muon` has it (in
  bfloat16), compiled, in float32 and in TF32; a plain SVD. Some again as a CUDA graph, which leaves
  out what the host takes to launch kernels; their number stands beside.
- A step on the weight matrices of ResNet-18, of two blocks of GPT-2-small and of squares: ours,
  `torch.optim.Muon`, AdamW, and T by one SVD a matrix.
- The kernels behind the seam: solves by Cholesky factors, three ways.

Medians of runs in turn, after a warm-up. Errors are ``‖T̂ − T‖₂ / ‖T‖₂`` against known factors (of a
step: up to its scale); for Muon T is the polar factor. Ratios over Muon, below 1 is faster.
"""

import importlib
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_precondition import by_svd, expected, muon, muon_float32
from bench_spectral_newton import GPT2, RESNET18
from bench_spectral_newton import by_svd as step_by_svd
from harness import Sections, arguments, by_device_events, interleaved, print_figure

import spectral_core as sc
from spectral_adapters.torch_optim import SpectralNewton

Shape = tuple[int, int]
Run = Callable[[], Any]
ALPHAS = (1.0, 1.5, 2.0)
SHAPES: list[Shape] = [
    (512, 512),
    (1024, 1024),
    (2048, 2048),
    (768, 3072),
    (256, 2304),
    (4096, 4096),
]
STEPS = {
    "ResNet-18": RESNET18,
    "GPT-2-small, two blocks": GPT2,
    "4 × 2048×2048": [(2048, 2048)] * 4,
}
MOST_SVD_ROWS = 4000  # of all matrices: a GPU takes seconds for more


class Known:
    """A float32 matrix whose float64 factors are known, σ_k = k^−1/2."""

    def __init__(self, shape: Shape, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        k = min(shape)
        noise = [torch.randn(n, k, dtype=torch.float64, generator=generator) for n in shape]
        u, v = (torch.linalg.qr(own.to(device))[0] for own in noise)
        sigma = torch.arange(1, k + 1, dtype=torch.float64, device=device) ** -0.5
        self.svd = u, sigma, v.mT
        self.matrix = ((u * sigma) @ v.mT).float()

    def error(self, name: str, found: Tensor, scaled: bool = False) -> float:
        """Return the relative error of a contender's result, or of its direction."""
        exact, found = expected(self.svd, name), found.double()
        if scaled:
            found = found * ((found * exact).sum() / (found * found).sum())
        return spectral_norm(found - exact) / spectral_norm(exact)


def spectral_norm(matrix: Tensor) -> float:
    """Return it by power steps, from below and to some per cent."""
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(matrix.shape[1], 1, dtype=torch.float64, generator=generator)
    vector = vector.to(matrix.device)
    for _ in range(60):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm().clamp(min=1e-300)
    return float((matrix @ vector).norm())


# Ways to run


def in_tf32(run: Run) -> Run:
    """Return what runs with products of float32 in TF32."""

    def reduced() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision(before)

    return reduced


def as_graph(run: Run) -> Run:
    """Return what replays a run that was captured in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay(held: Run = run) -> Any:  # what the graph reads and writes lives as long as it
        graph.replay()
        return result

    return replay


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return a compiled function; without a GPU it is traced and not compiled."""
    backend = "inductor" if device == "cuda" else "eager"
    return torch.compile(function, backend=backend, dynamic=False)


def kernels_of(run: Run, device: str) -> int | None:
    """Return how many kernels a run launches."""
    if device != "cuda":
        return None
    profiler = importlib.import_module("torch.profiler")
    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
    with profiler.profile(activities=activities) as seen:
        run()
        torch.cuda.synchronize()
    on_device = [event for event in seen.events() if "CUDA" in str(event.device_type)]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def able(figure: str, case: str, makers: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    """Return contenders that ran once; say why the others cannot."""
    runs: dict[str, Run] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
            print_figure(figure, case=case, contender=name, fails=reason)
            continue
        runs[name] = run
    return runs


# Figures


def print_times(
    figure: str,
    case: str,
    runs: Mapping[str, Run],
    device: str,
    quick: bool,
    error_of: Callable[[str], float | None],
) -> None:
    """Time the contenders in turn and print a line for each."""
    timer = by_device_events(device)
    times = interleaved(runs, 2 if quick else 7, timer=timer, warm_up=1 if quick else 2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, run in runs.items():
        error = error_of(name)
        print_figure(
            figure,
            case=case,
            contender=name,
            milliseconds=round(1e3 * medians[name], 4),
            over_muon=round(medians[name] / medians["muon"], 3),
            error=None if error is None else float(f"{error:.2e}"),
            kernels=kernels_of(run, device) if "graph" not in name else 1,
        )


def on_matrix(shape: Shape, device: str, quick: bool, last: bool) -> None:
    """Print a line for each contender on one matrix; those that may harm what follows only last."""
    known = Known(shape, device)
    g = known.matrix
    plain: dict[str, Run] = {
        "muon": partial(muon, g),
        "muon float32": partial(muon_float32, g),
        "muon tf32": in_tf32(partial(muon_float32, g)),
    }
    for alpha in ALPHAS:
        own = partial(sc.precondition, g, alpha, 0.1)
        plain[f"ours float32 {alpha:g}"] = own
        plain[f"ours tf32 {alpha:g}"] = in_tf32(own)
        plain[f"ours bfloat16 {alpha:g}"] = partial(own, precision="bfloat16")
    if min(shape) <= MOST_SVD_ROWS / 3:
        plain["svd"] = partial(by_svd, g, 1.0)
    makers: dict[str, Callable[[], Run]] = {
        n: partial(lambda run: run, r) for n, r in plain.items()
    }
    makers["muon compiled"] = lambda: partial(compiled(muon, device), g)
    if last:
        for precision in ("working", "bfloat16"):
            own = partial(sc.precondition, alpha=2.0, damping=0.1, precision=precision)
            makers[f"ours compiled {precision} 2"] = partial(
                lambda own: partial(compiled(own, device), g), own
            )
    if device == "cuda":
        makers["muon graph"] = partial(as_graph, plain["muon"])
        for precision in ("bfloat16", *(["float32"] if last else [])):
            makers[f"ours {precision} graph 2"] = partial(as_graph, plain[f"ours {precision} 2"])
    case = "×".join(map(str, shape))
    runs = able("precondition", case, makers)
    print_times("precondition", case, runs, device, quick, lambda n: known.error(n, runs[n]()))


def on_model(title: str, shapes: list[Shape], device: str, quick: bool) -> None:
    """Print a line for each optimizer on matrices of some shapes."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    momenta = [torch.zeros_like(weight) for weight in weights]
    own = partial(SpectralNewton, lr=1e-5, damping=0.1)
    optimizers: dict[str, Callable[..., Any]] = {
        "muon": partial(torch.optim.Muon, lr=1e-5),
        "adamw": partial(torch.optim.AdamW, lr=1e-5),
        **{f"ours float32 {alpha:g}": partial(own, alpha=alpha) for alpha in ALPHAS},
        **{
            f"ours bfloat16 {alpha:g}": partial(own, alpha=alpha, precision="bfloat16")
            for alpha in ALPHAS
        },
    }
    makers: dict[str, Callable[[], Run]] = {
        name: partial(lambda make: make(weights).step, make) for name, make in optimizers.items()
    }
    if sum(map(min, shapes)) <= MOST_SVD_ROWS:
        makers["svd"] = lambda: partial(step_by_svd, weights, momenta)
    if device == "cuda":
        makers["muon graph"] = lambda: as_graph(torch.optim.Muon(weights, lr=1e-5).step)
        for alpha in ALPHAS:
            for name, precision in (("bfloat16", "bfloat16"), ("float32", "working")):
                recorded = partial(own, alpha=alpha, precision=precision, cuda_graph=True)
                makers[f"ours {name} recorded {alpha:g}"] = partial(
                    lambda make: make(weights).step, recorded
                )
    runs = able("step", title, makers)
    known = Known(min(shapes, key=min), device)
    print_times(
        "step", title, runs, device, quick, lambda n: _step_error(known, n, optimizers.get(n))
    )


def _step_error(known: Known, name: str, make: Callable[..., Any] | None) -> float | None:
    """Return the error of the first step's direction from a zero weight, without AdamW's."""
    if make is None or name == "adamw":
        return None
    weight = nn.Parameter(torch.zeros_like(known.matrix))
    weight.grad = known.matrix.clone()
    make([weight]).step()
    return known.error(name, -weight.detach(), scaled=True)


def on_solves(rows: int, batch: int, device: str, quick: bool) -> None:
    """Print the time of ``(A + I)⁻¹ X`` by each way that PyTorch, and CuPy, has."""
    torch.manual_seed(0)
    x = torch.randn(batch, rows, 2 * rows, device=device)
    matrix = x @ x.mT / rows + torch.eye(rows, device=device)
    right = torch.randn(batch, rows, 2 * rows, device=device)

    def by_cholesky_solve() -> Tensor:
        return torch.cholesky_solve(right, torch.linalg.cholesky_ex(matrix)[0])

    def by_triangular_solves() -> Tensor:
        factor = torch.linalg.cholesky_ex(matrix)[0]
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)

    def by_cholesky_inverse() -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0]) @ right

    def by_eigenvalues() -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors / values[..., None, :]) @ (vectors.mT @ right)

    makers: dict[str, Callable[[], Run]] = {
        "cholesky_solve": lambda: by_cholesky_solve,
        "two triangular solves": lambda: by_triangular_solves,
        "cholesky_inverse": lambda: by_cholesky_inverse,
        "solve": lambda: partial(torch.linalg.solve, matrix, right),
        "eigh": lambda: by_eigenvalues,
    }
    if device == "cuda":
        makers["cupy, behind the seam"] = lambda: _cupy_solve(matrix, right)
    case = f"{batch} × {rows}, {2 * rows} columns"
    runs = able("solve", case, makers)
    times = interleaved(runs, 2 if quick else 7, timer=by_device_events(device))
    for name, run in runs.items():
        residual = matrix.double() @ run().double() - right.double()
        milliseconds = 1e3 * statistics.median(times[name])
        print_figure(
            "solve",
            case=case,
            contender=name,
            milliseconds=round(milliseconds, 4),
            residual=float(f"{float(residual.norm() / right.norm()):.1e}"),
            kernels=kernels_of(run, device),
        )


def _cupy_solve(matrix: Tensor, right: Tensor) -> Run:
    compat = importlib.import_module("array_api_compat")
    cupy = importlib.import_module("cupy")
    solve = importlib.import_module("spectral_core.arrays.factorize").solve
    arrays = [cupy.from_dlpack(tensor) for tensor in (matrix, right)]
    xp = compat.array_namespace(*arrays)
    return lambda: torch.from_dlpack(solve(xp, *arrays)[0])


def main() -> None:
    """Print every figure."""
    options = arguments(__doc__, device=True)
    device, quick = options.device, options.quick
    sections = Sections(options.figures, options.seconds)
    shapes = [(48, 48), (64, 200)] if quick else SHAPES
    steps = {"quick": [(40, 40), (48, 170)]} if quick else STEPS
    for shape in shapes[:2]:
        sections.run(f"precondition {shape}", partial(on_matrix, shape, device, quick, False))
    for title, own in steps.items():
        sections.run(f"step {title}", partial(on_model, title, own, device, quick))
    for shape in shapes[2:]:
        sections.run(f"precondition {shape}", partial(on_matrix, shape, device, quick, False))
    for rows, batch in [(40, 3)] if quick else [(768, 1), (768, 12), (2048, 1)]:
        sections.run(f"solve {rows} {batch}", partial(on_solves, rows, batch, device, quick))
    shape = (40, 44) if quick else (1024, 1024)
    sections.run(f"compiled {shape}", partial(on_matrix, shape, device, quick, True))
    sections.finish()


if __name__ == "__main__":
    main()
