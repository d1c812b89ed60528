"""How much of a trained network's gradient is signal, and what α is where it is not.

::

    SPECTRAL_DATA=path/to/data python docs/examples/signal_and_noise.py --output signal.jsonl

For ResNet-20 on CIFAR-10, the MLP on MNIST and the Llama on texts that it wrote, at growing sample
sizes N: the signal shares (theory 11.1, 11.2), α with its sampling error, α of h^Kron beside that
of noise (11.3), and along directions that another sample of N chose: how large the derivative is
against σ, and h against that in sample (11.9). Samples are in a random order. Whole sets have no
other sample beside them; subsamples of them are measured along fixed directions, which takes half
the time. One JSON line for each network, split, size and layer; a run goes on where it was stopped.
``--quick`` takes the smallest size of each case.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

Samples = tuple[Tensor, Tensor]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One network on one set of samples, of which parts of several sizes are measured."""

    network: str
    split: str
    sizes: tuple[int, ...]
    samples: Callable[[], Samples]
    layers: tuple[str, ...] = ("*",)


def cifar10(split: str) -> Samples:
    """Return the images of one split, normalised, and their labels."""
    if split == "test":
        images, labels = shared_data.cifar10_test(10_000)
        return torch.from_numpy(images), torch.from_numpy(labels)
    paths = sorted(shared_data.DATA.glob("cifar10_train_part*.npz"))
    raw, labels = (
        np.concatenate([np.load(path)[name] for path in paths]) for name in ("images", "labels")
    )
    images = shared_data.normalised(raw)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def mnist(split: str) -> Samples:
    """Return the images of one split and their labels."""
    held = np.load(shared_data.DATA / "mnist.npz")
    images = held[f"x_{split}"].reshape(-1, 784).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(held[f"y_{split}"].astype(np.int64))


def own_texts() -> Samples:
    """Return the first 32 tokens of texts that the Llama wrote, and the tokens after each."""
    with np.load(shared_data.DATA / "stories260k_selfsampled_tokens.npz") as stored:
        tokens = torch.from_numpy(stored["tokens"][:, :33].astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


MLP = ("1", "5", "9", "13", "17")
RESNET = ("layer1.1.conv1*", "layer2.1.conv1*", "layer3.1.conv1*", "linear*")
LLAMA = ("layers.3.attention.wo", "layers.4.attention.wq", "layers.4.feed_forward.w[12]")
CASES = (
    Case("MLP", "test", (256, 1024, 5000, 10_000), lambda: mnist("test"), MLP),
    Case("MLP", "training", (256, 1024, 5000, 60_000), lambda: mnist("train"), MLP),
    Case("ResNet-20", "test", (256, 1024, 4096, 10_000), lambda: cifar10("test"), RESNET),
    Case("Llama", "its own", (64, 256, 1024), own_texts, LLAMA),
    Case("ResNet-20", "training", (256, 1024, 4096, 50_000), lambda: cifar10("train"), RESNET),
)


def parts_of(network: str) -> tuple[dict[str, Tensor], Function, Function]:
    """Return the weights of a network, its function of weights and inputs, and its loss."""
    forwards = shared_data.reference_networks()
    names = {
        "MLP": ("mlp9x200_mnist", forwards.sequential),
        "ResNet-20": ("resnet20_cifar10", forwards.resnet_cifar),
        "Llama": ("stories260k_llama", forwards.llama_260k),
    }
    name, forward = names[network]
    weights = load_file(shared_data.DATA / f"{name}.safetensors")
    of_tokens = network == "Llama"

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if of_tokens:
            return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        return F.cross_entropy(outputs, targets)

    return weights, lambda params, x: forward(params)(x), loss


def problems(case: Case, count: int) -> tuple[CurvatureProblem, CurvatureProblem | None]:
    """Return the problem of some samples, and that of as many others if there are."""
    weights, function, loss = parts_of(case.network)
    inputs, targets = case.samples()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs)))

    def of(chosen: Tensor) -> CurvatureProblem:
        batches = list(zip(inputs[chosen].split(256), targets[chosen].split(256), strict=True))
        return CurvatureProblem(function, loss, batches, params=weights)

    other = of(order[count : 2 * count]) if 2 * count <= len(order) else None
    return of(order[:count]), other


def measured(case: Case, count: int) -> Iterator[dict[str, Any]]:
    """Yield what is found of each layer at one size."""
    own, other = problems(case, count)
    options: dict[str, Any] = {"layers": case.layers, "decompose": True, "progress": None}
    along: Any = "fixed" if other is None else "own"
    inside = sc.measure(own, sampling=8, sampling_directions=along, noise_draws=200, **options)
    outside = {} if other is None else sc.measure(own, directions_from=other, **options)
    for name, layer in inside.items():
        if layer.sampling is None:
            print(case.network, case.split, count, name, layer.notes, flush=True)
            continue
        noise = layer.noise
        yield {
            "network": case.network, "split": case.split, "n": count, "layer": name,
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
        } | (crossed(layer, outside[name]) if name in outside else {})  # fmt: skip


def crossed(inside: sc.LayerSpectrum, outside: sc.LayerSpectrum) -> dict[str, Any]:
    """Return what is found along directions of other samples, against those in sample."""
    k = min(len(inside.sigma), len(outside.sigma))
    return {
        "derivative_over_sigma": (outside.derivative[:k] / outside.sigma[:k]).tolist(),
        "h_over_in_sample": float(np.median(outside.curvature[:k] / inside.curvature[:k])),
        "cross_fitted": outside.cross_fitted.exponent, "cross_n": outside.cross_fitted.n,
        "outside_alpha": outside.alpha.exponent,
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Return the table of the results page, in Markdown."""
    names = (
        "network", "split", "N", "matrix", "signal of ‖G‖²", "of σ_1", "of σ_2–5", "of the rest",
        "γ", "α ± sample", "drift", "α of h^Kron and noise alone", "derivative over σ_1",
        "over the rest", "h out over in sample", "cross-fitted α (points)",
    )  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for of in records:
        shares, noise = np.array(of["shares"]), of["noise"]
        signals = of["signal_share"], shares[0], np.median(shares[1:5]), np.median(shares[5:])
        cells = [of["network"], of["split"], f"{of['n']:,}", of["layer"].removesuffix(".weight")]
        cells += [f"{share:.2f}" for share in signals]
        cells += [f"{of['gamma']:.2f}", f"{of['alpha']:.2f} ± {of['half_width']:.2f}"]
        cells += ["" if np.isnan(of["drift"]) else f"{of['drift']:+.2f}"]
        if noise is None:
            cells.append("")
        else:
            value, low, high, _ = noise["alpha"]
            place = "in" if low <= value <= high else "out of"
            cells.append(f"{value:.2f} {place} {low:.2f}–{high:.2f}")
        if "cross_fitted" in of:
            ratios = np.array(of["derivative_over_sigma"])
            cells += [f"{ratios[0]:+.2f}", f"{np.median(ratios[1:]):+.2f}"]
            cells += [
                f"{of['h_over_in_sample']:.2f}",
                f"{of['cross_fitted']:.2f} ({of['cross_n']})",
            ]
        else:
            cells += [""] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what has not been measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="signal.jsonl")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each case")
    options = parser.parse_args()
    path = Path(options.output)
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    done = {(of["network"], of["split"], of["n"]) for of in records}
    for case in CASES:
        for count in case.sizes[:1] if options.quick else case.sizes:
            if (case.network, case.split, count) in done:
                continue
            found = list(measured(case, count))
            records += found
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(each)}\n" for each in found)
            print(case.network, case.split, count, flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
