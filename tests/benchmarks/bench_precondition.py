"""`precondition` against Muon's orthogonalization and a plain SVD: time, and error beside it.

For float32 gradients of the shapes of GPT-2 small, ResNet-18 and squares, in one process and in
turn:

- ours: `precondition` with ``method="auto"`` for seven α at δ = 0.1, and every method that serves
- ours bfloat16: the same with ``precision="bfloat16"``, its default tolerance of 5 %
- muon: the Newton-Schulz iteration of `torch.optim.Muon` as it is, in bfloat16
- muon_float32: the same iteration in float32, for CPUs that multiply bfloat16 much faster
- svd: `torch.linalg.svd` and T on its singular values

Singular values fall off as k^−1/2. Errors are ‖T̂ − T‖₂ / ‖T‖₂ against a float64 SVD; for Muon,
against the polar factor. Ratios are of median times: ours over the peer's, below 1 is faster.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from harness import arguments, interleaved, print_figure
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

import spectral_core as sc
from spectral_core.preconditioning.methods.table import METHODS

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
QUINTIC = (3.4445, -4.7750, 2.0315)
SHAPES = {
    "square": [(512, 512), (1024, 1024), (2048, 2048)],
    "gpt2-small": [(768, 768), (3072, 768), (2304, 768)],
    "resnet18": [(64, 147), (64, 576), (128, 1152), (256, 2304), (512, 4608)],
}
QUICK = {"square": [(96, 96), (192, 192)], "wide": [(64, 576)]}


def gradient(shape: tuple[int, int]) -> Tensor:
    """Return a matrix whose singular values fall off as k^−1/2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    u, sigma, vh = torch.linalg.svd(noise, full_matrices=False)
    decay = torch.arange(1, len(sigma) + 1, dtype=torch.float64) ** -0.5
    return ((u * decay) @ vh).float()


def muon(g: Tensor) -> Tensor:
    return _zeropower_via_newtonschulz(g, QUINTIC, 5, 1e-7)


def muon_float32(g: Tensor) -> Tensor:
    """Muon's iteration in the dtype of the gradient."""
    a, b, c = QUINTIC
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if g.shape[0] > g.shape[1] else x


def by_svd(g: Tensor, alpha: float) -> Tensor:
    u, sigma, vh = torch.linalg.svd(g, full_matrices=False)
    return (u * (sigma / (sigma**alpha + 0.1 * sigma[0] ** alpha))) @ vh


def contenders(g: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return ours by α, ours by method, and the peers."""
    runs: dict[str, Callable[[], Tensor]] = {
        "muon": partial(muon, g),
        "muon_float32": partial(muon_float32, g),
        "svd": partial(by_svd, g, 1.0),
        "ours polar": partial(sc.precondition, g, 1.0, 0.0, method="polar"),
    }
    for alpha in ALPHAS:
        for method in ("auto", *METHODS):
            run = partial(sc.precondition, g, alpha, 0.1, method=method)
            try:
                run()
            except sc.InputError:
                continue  # does not serve this α
            if method != "svd":
                runs[f"ours {method} {alpha:g}"] = run
    return runs | low_contenders(g)


def low_contenders(g: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return ours with products in bfloat16."""
    return {
        f"ours bfloat16 {alpha:g}": partial(sc.precondition, g, alpha, 0.1, precision="bfloat16")
        for alpha in ALPHAS
        if alpha > 0
    }


def expected(svd: tuple[Tensor, Tensor, Tensor], name: str) -> Tensor:
    """Return what a contender should give, from a float64 SVD of the gradient."""
    if "muon" in name or "polar" in name:
        alpha, damping = 1.0, 0.0
    else:
        alpha, damping = (1.0 if name == "svd" else float(name.split()[-1])), 0.1
    u, sigma, vh = svd
    return (u * (sigma / (sigma**alpha + damping * sigma[0] ** alpha))) @ vh


def main() -> None:
    options = arguments(__doc__)
    for family, shapes in (QUICK if options.quick else SHAPES).items():
        for shape in shapes:
            g = gradient(shape)
            runs, svd = contenders(g), torch.linalg.svd(g.double(), full_matrices=False)
            times = interleaved(runs, 3 if options.quick or max(shape) > 2000 else 7)
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, run in runs.items():
                found, exact = run().double(), expected(svd, name)
                error = torch.linalg.matrix_norm(found - exact, 2)
                print_figure(
                    "precondition",
                    family=family,
                    shape=list(shape),
                    contender=name,
                    milliseconds=round(1e3 * medians[name], 3),
                    over_muon=round(medians[name] / medians["muon"], 3),
                    over_muon_float32=round(medians[name] / medians["muon_float32"], 3),
                    over_svd=round(medians[name] / medians["svd"], 3),
                    error=float(f"{float(error / torch.linalg.matrix_norm(exact, 2)):.1e}"),
                    threads=torch.get_num_threads(),
                )


if __name__ == "__main__":
    main()
