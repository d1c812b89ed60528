"""Kronecker factors of all layers: ours against curvlinops' KFAC, and what h^GGN costs beside them.

The same batch, float32 weights, every linear and convolutional layer, exact Gauss-Newton roots:

- ours: `CurvatureProblem.kronecker_factors`, in float64 sums
- ours with h^GGN along the top-k directions of every layer, from the same pass
- curvlinops: `KFACLinearOperator`, type-2, expand
- one by one: h^GGN of the same directions by `CurvatureProblem.curvatures`, layer after layer

Prints ratios of median times (above 1: the other is slower) and the largest relative difference.
"""

import curvlinops
import torch
from bench_curvature_torch import residual_cnn, transformer
from harness import arguments, interleaved, print_figure, ratio
from torch import Tensor, nn

from spectral_backends.torch import CurvatureProblem


def compare(name: str, model: nn.Module, x: Tensor, top_k: int, repeats: int) -> None:
    """Time the contenders on one network."""
    y, loss_fn = torch.randint(10, (len(x),)), nn.CrossEntropyLoss()
    problem = CurvatureProblem(model, loss_fn, [(x, y)])
    modules = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    names = [layer.name for layer in problem.layers() if layer.name in modules]
    weights = [model.get_parameter(f"{n}.weight") for n in names]
    directions = {}
    for layer, gradient in problem.gradients(names).items():
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        directions[layer] = (u[:, :top_k], vh.mT[:, :top_k])

    def peer() -> object:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            operator = curvlinops.KFACLinearOperator(
                model, loss_fn, weights, [(x, y)], fisher_type="type-2", kfac_approx="expand",
                check_deterministic=False, num_per_example_loss_terms=1, num_data=len(x),
            )  # fmt: skip
            operator.compute_kronecker_factors()
        return operator

    def one_by_one() -> dict[str, Tensor]:
        return {n: problem.curvatures(n, *directions[n], "ggn") for n in names}

    contenders = {
        "ours": lambda: problem.kronecker_factors(names),
        "ours with h^GGN": lambda: problem.kronecker_factors(names, directions=directions),
        "curvlinops": peer,
        "one by one": one_by_one,
    }
    times = interleaved(contenders, repeats)
    found = problem.kronecker_factors(names, directions=directions)
    theirs, ggn = peer(), one_by_one()

    def difference(pairs: list[tuple[Tensor, Tensor]]) -> float:
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    print_figure(
        "Kronecker factors of all layers", model=name, layers=len(names), batch=len(x),
        peer="curvlinops KFAC, type-2",
        peer_time_over_ours=round(ratio(times, "curvlinops", "ours"), 2),
        largest_relative_difference=difference(
            [(found[n].output_covariance, theirs._gradient_covariances[n]) for n in names]
            + [(found[n].input_covariance, theirs._input_covariances[n]) for n in names]
        ),
    )  # fmt: skip
    print_figure(
        "h^GGN of all layers beside the factors", model=name, layers=len(names), top_k=top_k,
        peer="Jacobian products, layer after layer",
        peer_time_over_ours=round(ratio(times, "one by one", "ours with h^GGN"), 2),
        time_over_factors_alone=round(ratio(times, "ours with h^GGN", "ours"), 2),
        largest_relative_difference=difference([(found[n].ggn, ggn[n]) for n in names]),
    )  # fmt: skip


def main() -> None:
    """Run every figure."""
    quick = arguments(__doc__).quick
    torch.manual_seed(0)
    batch, top_k, repeats = (32, 5, 2) if quick else (128, 20, 3)
    compare("residual CNN, ReLU", residual_cnn(), torch.randn(batch, 3, 16, 16), top_k, repeats)
    compare("transformer, GELU", transformer(), torch.randn(batch, 16, 64), top_k, repeats)


if __name__ == "__main__":
    main()
