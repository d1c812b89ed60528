"""A step of `SpectralNewton` beside other optimizers, and the price of ``alpha="auto"``.

First the steps alone, on the weight matrices of ResNet-18 and of two blocks of GPT-2-small with random
gradients: α by the layers' usual 1 and 2, `torch.optim.Muon` (which orthogonalises in bfloat16),
AdamW, and T by a plain SVD of each matrix.

For a small GPT and a small convolutional network, in one process and in turn: forward and backward
of one batch, a step with α by layer type and with α = 2, a step of AdamW on all parameters, and one
measurement of α on a small batch as `SpectralNewton` makes it, as a share of the time of the 500
steps between two of them.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import arguments, interleaved, print_figure, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "networks"))
from trained_networks import GPT, ResNet

Case = tuple[nn.Module, Callable[[], Tensor], Callable[[], CurvatureProblem]]
EVERY = 500


def gpt(quick: bool) -> Case:
    """Return a GPT of 3 million parameters, its loss on 32 × 128 tokens, a problem on 4 × 64."""
    width, depth, batch, length = (32, 2, 4, 32) if quick else (256, 4, 32, 128)
    model = GPT(width, 65, depth, tied=False)
    model.wpe = nn.Embedding(length, width)
    tokens = torch.randint(65, (batch, length))
    few = tokens[:4, : length // 2]

    def split(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()

    return (
        model,
        lambda: F.cross_entropy(*split(model, tokens)),
        lambda: CurvatureProblem(model, F.cross_entropy, [few], forward=split),
    )


def convolutions(quick: bool) -> Case:
    """Return a convolutional network, its loss on 128 images, a problem on 32 of them."""
    side, batch = (6, 32) if quick else (32, 128)
    model = ResNet(classes=10)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    few = (images[:32], labels[:32])
    return (
        model,
        lambda: F.cross_entropy(model(images), labels),
        lambda: CurvatureProblem(model, F.cross_entropy, [few]),
    )


RESNET18 = [(64, 147), *[(64, 576)] * 4, (128, 576), *[(128, 1152)] * 3, (256, 1152),
            *[(256, 2304)] * 3, (512, 2304), *[(512, 4608)] * 3]  # fmt: skip
GPT2 = [(768, 768)] * 8 + [(3072, 768)] * 2 + [(768, 3072)] * 2


@torch.no_grad()
def by_svd(weights: list[Tensor], momenta: list[Tensor], lr: float = 1e-5) -> None:
    """Step as Spectral Newton with α = 2 does, by one SVD a matrix."""
    for weight, momentum in zip(weights, momenta, strict=True):
        momentum.lerp_(weight.grad, 0.05)
        u, sigma, vh = torch.linalg.svd(
            torch.lerp(momentum, weight.grad, 0.05), full_matrices=False
        )
        update = (u * (sigma / (sigma**2 + 0.1 * sigma[0] ** 2))) @ vh
        weight.sub_(update * (0.2 * lr / update.square().mean().sqrt()))


def on_shapes(name: str, shapes: list[tuple[int, int]], repeats: int) -> None:
    """Print the times of one step on matrices of some shapes, over that of Muon."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    momenta = [torch.zeros_like(weight) for weight in weights]
    contenders: dict[str, Callable[[], object]] = {
        "muon": torch.optim.Muon(weights, lr=1e-5).step,
        "adamw": torch.optim.AdamW(weights, lr=1e-5).step,
        "svd": lambda: by_svd(weights, momenta),
    }
    for alpha in (1.0, 1.5, 2.0):
        contenders[f"alpha {alpha:g}"] = SpectralNewton(
            weights, lr=1e-5, alpha=alpha, damping=0.1
        ).step
    times = interleaved(contenders, repeats)
    print_figure(
        "step",
        shapes=name,
        muon_milliseconds=round(1e3 * statistics.median(times["muon"]), 1),
        time_over_muon={c: round(ratio(times, c, "muon"), 2) for c in contenders if c != "muon"},
        threads=torch.get_num_threads(),
    )


def main() -> None:
    """Print one line for each network."""
    quick = arguments(__doc__).quick
    on_shapes("ResNet-18", RESNET18[:4] if quick else RESNET18, 2 if quick else 5)
    on_shapes("GPT-2-small, two blocks", GPT2[:1] if quick else GPT2, 2 if quick else 5)
    for name, case in (("gpt", gpt), ("convolutions", convolutions)):
        torch.manual_seed(0)
        model, loss, problem = case(quick)

        def forward_backward(model: nn.Module = model, loss: Callable[[], Tensor] = loss) -> None:
            model.zero_grad()
            loss().backward()

        by_type = SpectralNewton(model, lr=1e-5, alpha="per-type", damping=0.1)
        two = SpectralNewton(model, lr=1e-5)
        measuring = SpectralNewton(
            model, lr=1e-5, alpha="auto", damping=0.1, problem=problem, measure_every=1
        )
        forward_backward()
        times = interleaved(
            {
                "forward_backward": forward_backward,
                "per_type": by_type.step,
                "alpha_2": two.step,
                "adamw": torch.optim.AdamW(model.parameters(), lr=1e-5).step,
                "measuring": measuring.step,
            },
            2 if quick else 5,
        )
        seconds = {contender: statistics.median(values) for contender, values in times.items()}
        step = seconds["forward_backward"] + seconds["per_type"]
        measurement = max(seconds.pop("measuring") - seconds["per_type"], 0.0)
        print_figure(
            "spectral_newton",
            network=name,
            milliseconds={contender: round(1e3 * s, 2) for contender, s in seconds.items()},
            measurement_seconds=round(measurement, 3),
            measurement_share=round(measurement / (EVERY * step), 5),
            threads=torch.get_num_threads(),
        )


if __name__ == "__main__":
    main()
