"""Measurement on a GPU: exact curvature of all layers against what one would use today.

A ResNet-20 for CIFAR's shapes (ReLU, batch norms in eval mode) on noise and a GELU and LayerNorm
transformer, float32, random weights; the figures are those of `bench_engine_torch`, timed by events
of the device. Peers: the gradient's graph kept, double backward anew for each direction, the
Jacobian-vector product of the gradient, and the libraries that are installed.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_engine_torch import (
    QUICK,
    Case,
    Size,
    Transformer,
    by_forward_over_reverse,
    compare,
    compare_routes,
    print_missing_peers,
)
from harness import Sections, arguments, by_device_events
from race.networks import ResNet

MORE = {"jvp of the gradient": partial(by_forward_over_reverse, together=1)}


def resnet(size: Size, device: str) -> Case:
    """Return a ResNet-20, or one of 8 layers, on images of noise."""
    model = ResNet(1 if size.images < 100 else 3).to(device).eval()
    side = 8 if size.images < 100 else 32
    x = torch.randn(size.images, 3, side, side, device=device)
    y = torch.randint(10, (size.images,), device=device)
    return Case("ResNet-20, noise", model, x, y, size.top_k)


def transformer(size: Size, device: str) -> Case:
    """Return the transformer on noise."""
    model = Transformer(size.width, size.blocks).to(device)
    x = torch.randn(size.samples, 64, size.width, device=device)
    y = torch.randint(10, (size.samples,), device=device)
    return Case("transformer, GELU and LayerNorm", model, x, y, size.top_k)


def main() -> None:
    """Print every figure."""
    options = arguments(__doc__, device=True)
    size = replace(QUICK, blocks=1, top_k=3, directions_timed=1) if options.quick else Size()
    sections = Sections(options.figures, options.seconds)
    timer = by_device_events(options.device)

    def section(make: Callable[[Size, str], Case], figure: Callable[[Case], None]) -> None:
        torch.manual_seed(0)
        figure(make(size, options.device))

    everyone = partial(compare, size=size, timer=timer, more=MORE)
    sections.run("peers", print_missing_peers)
    sections.run("ResNet-20", partial(section, resnet, everyone))
    sections.run("transformer", partial(section, transformer, everyone))
    routes = partial(compare_routes, size=size, timer=timer)
    sections.run("routes, transformer", partial(section, transformer, routes))
    sections.finish()


if __name__ == "__main__":
    main()
