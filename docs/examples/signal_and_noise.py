"""How much of a trained network's gradient is signal, and what α is where it is not.

::

    SPECTRAL_DATA=path/to/data python docs/examples/signal_and_noise.py --output signal.jsonl

For ResNet-20 on CIFAR-10 test images and the MLP on MNIST, at growing sample sizes N: the signal
shares (theory 11.1, 11.2), α with its sampling error, α of h^Kron beside that of noise (11.3), and
along directions that another sample of N chose: how large the derivative is against σ, and h
against that in sample (11.9). One JSON line for each network, size and layer; a run goes on where
it was stopped. ``--quick`` takes the smallest size of each network.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shared_data
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

LAYERS = {
    "resnet20": ["layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1", "linear"],
    "mlp": "*",
}
SIZES = {"resnet20": (256, 1024, 4096), "mlp": (256, 1024, 5000)}


def batches(images: Tensor, labels: Tensor, first: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return some samples in batches of 256."""
    part = slice(first, first + count)
    return list(zip(images[part].split(256), labels[part].split(256), strict=True))


def problems(network: str, count: int) -> tuple[CurvatureProblem, CurvatureProblem]:
    """Return the problem of the first `count` test samples, and that of the next."""
    weights = load_file(shared_data.DATA / f"{NAMES[network]}.safetensors")
    forwards = shared_data.reference_networks()
    if network == "resnet20":
        images, labels = map(torch.from_numpy, shared_data.cifar10_test(2 * count))
        model = forwards.resnet_cifar
    else:
        held = np.load(shared_data.DATA / "mnist.npz")
        images = torch.from_numpy(held["x_test"].reshape(-1, 784).astype(np.float32) / 255)
        labels = torch.from_numpy(held["y_test"].astype(np.int64))
        model = forwards.sequential
    found = [
        CurvatureProblem(
            lambda params, x: model(params)(x), F.cross_entropy,
            batches(images, labels, first, count), params=weights,
        )
        for first in (0, count)
    ]  # fmt: skip
    return found[0], found[1]


NAMES = {"resnet20": "resnet20_cifar10", "mlp": "mlp9x200_mnist"}


def measured(network: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield what is found of each layer at one size."""
    own, other = problems(network, count)
    options = {"layers": LAYERS[network], "decompose": True, "progress": None}
    inside = sc.measure(own, sampling=8, noise_draws=200, **options)
    outside = sc.measure(own, directions_from=other, **options)
    for name, layer in inside.items():
        if layer.sampling is None or name not in outside:
            continue
        crossed, noise = outside[name], layer.noise
        k = min(len(layer.sigma), len(crossed.sigma))
        yield {
            "network": network, "n": count, "layer": name, "directions": len(layer.sigma),
            "signal_share": layer.sampling.signal_share,
            "shares": layer.sampling.signal_shares.tolist(),
            "sigma": layer.sigma.tolist(),
            "alpha": layer.alpha.exponent, "half_width": layer.sampling.alpha.half_width,
            "drift": layer.sampling.alpha.drift, "gamma": layer.gamma.exponent,
            "transfer_error": layer.triangle.relative_error, "flags": list(layer.flags),
            "noise": None if noise is None else {
                key: [getattr(noise, key).value, *getattr(noise, key).interval,
                      getattr(noise, key).p_value] for key in ("alpha", "gamma", "s")
            },
            "derivative_over_sigma": (crossed.derivative[:k] / crossed.sigma[:k]).tolist(),
            "h_over_in_sample": float(np.median(crossed.curvature[:k] / layer.curvature[:k])),
            "cross_fitted": crossed.cross_fitted.exponent, "cross_n": crossed.cross_fitted.n,
            "outside_alpha": crossed.alpha.exponent,
        }  # fmt: skip


def main() -> None:
    """Measure what has not been measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="signal.jsonl")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each network")
    options = parser.parse_args()
    path = Path(options.output)
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    done = {(found["network"], found["n"]) for found in map(json.loads, lines)}
    for network, sizes in SIZES.items():
        for count in sizes[:1] if options.quick else sizes:
            if (network, count) in done:
                continue
            found = [json.dumps(each) for each in measured(network, count)]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in found)


if __name__ == "__main__":
    main()
