"""Kronecker factors of all layers: ours against curvlinops' KFAC.

The same batch, float32 weights, every linear and convolutional layer, exact Gauss-Newton roots:

- ours: `CurvatureProblem.kronecker_factors`, in float64 sums
- curvlinops: `KFACLinearOperator`, type-2, expand

Prints ratios of median times (above 1: the other is slower) and the largest relative difference.
"""

import curvlinops
import torch
from bench_curvature_torch import residual_cnn, transformer
from harness import arguments, interleaved, print_figure, ratio
from torch import Tensor, nn

from spectral_backends.torch import CurvatureProblem


def compare(name: str, model: nn.Module, x: Tensor, repeats: int) -> None:
    """Time the contenders on one network."""
    y, loss_fn = torch.randint(10, (len(x),)), nn.CrossEntropyLoss()
    problem = CurvatureProblem(model, loss_fn, [(x, y)])
    modules = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    names = [layer.name for layer in problem.layers() if layer.name in modules]
    weights = [model.get_parameter(f"{n}.weight") for n in names]

    def peer() -> object:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            operator = curvlinops.KFACLinearOperator(
                model, loss_fn, weights, [(x, y)], fisher_type="type-2", kfac_approx="expand",
                check_deterministic=False, num_per_example_loss_terms=1, num_data=len(x),
            )  # fmt: skip
            operator.compute_kronecker_factors()
        return operator

    contenders = {
        "ours": lambda: problem.kronecker_factors(names),
        "curvlinops": peer,
    }
    times = interleaved(contenders, repeats)
    found, theirs = problem.kronecker_factors(names), peer()

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


def main() -> None:
    """Run every figure."""
    quick = arguments(__doc__).quick
    torch.manual_seed(0)
    batch, repeats = (32, 2) if quick else (128, 3)
    compare("residual CNN, ReLU", residual_cnn(), torch.randn(batch, 3, 16, 16), repeats)
    compare("transformer, GELU", transformer(), torch.randn(batch, 16, 64), repeats)


if __name__ == "__main__":
    main()
