"""A step of `SpectralNewton` beside forward and backward, AdamW, and the price of ``alpha="auto"``.

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
from harness import arguments, interleaved, print_figure
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "adapters"))
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


def main() -> None:
    """Print one line for each network."""
    quick = arguments(__doc__).quick
    for name, case in (("gpt", gpt), ("convolutions", convolutions)):
        torch.manual_seed(0)
        model, loss, problem = case(quick)

        def forward_backward(model: nn.Module = model, loss: Callable[[], Tensor] = loss) -> None:
            model.zero_grad()
            loss().backward()

        by_type, two = SpectralNewton(model, lr=1e-5), SpectralNewton(model, lr=1e-5, alpha=2.0)
        measuring = SpectralNewton(model, lr=1e-5, alpha="auto", problem=problem, measure_every=1)
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
