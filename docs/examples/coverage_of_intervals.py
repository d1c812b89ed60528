"""Compare the intervals of a layer's numbers with what other data of that size give.

::

    SPECTRAL_DATA=path/to/data python docs/examples/coverage_of_intervals.py --output coverage.jsonl

The data of a trained network are divided at random into disjoint subsets of N samples. Each is
measured by itself with ``sampling=B``. An interval holds if the mean over the *other* subsets of
the same size lies in it. One JSON line per subset; a run that was interrupted goes on, and with
everything measured the tables are printed. ``--only`` names cases; ``--quick`` takes few subsets.

- *digits*: a small CNN on scikit-learn's digits, trained on 300 of them, subsets of the rest.
- *resnet20*: ResNet-20 on training images of CIFAR-10, batch norm in eval mode, one matrix per
  stage and the head.
- *llama*: the 260k-parameter Llama on the first 32 tokens of each text that it
  wrote, four matrices of the last two layers.

``--control`` compares the two errors that the standard error is the lesser of, on simulated
gradients.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats
from shared_data import DATA, MEAN, STD, reference_networks
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_core.sampling import balanced_halves, sampling_error

K, NUMBERS = 20, {"alpha": "α", "gamma": "γ", "s": "s"}
TRAINED_ON = 300  # digits
MAIN = {("digits", 64), ("resnet20", 1024), ("llama", 48)}  # shown matrix by matrix


@dataclass(frozen=True)
class Case:
    """Subsets of one size of one network's data, and how they are measured."""

    network: str
    size: int
    count: int
    groups: int = 8
    directions: str = "own"

    @property
    def key(self) -> str:
        """The name by which `--only` and the records know the case."""
        return f"{self.network}-{self.size}-{self.groups}-{self.directions}"


CASES = (
    Case("digits", 64, 23),
    Case("digits", 64, 23, directions="fixed"),
    Case("digits", 64, 23, groups=16),
    Case("digits", 16, 60),
    Case("digits", 374, 4),
    Case("resnet20", 1024, 20),
    Case("llama", 48, 20),
    Case("llama", 48, 20, directions="fixed"),
    Case("resnet20", 128, 20),
    Case("llama", 16, 20),
)


@dataclass(frozen=True)
class Network:
    """A trained network with the data from which subsets are drawn."""

    function: Callable[[dict[str, Tensor], Tensor], Tensor]
    params: dict[str, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    layers: tuple[str, ...]
    batch: int

    def problem(self, chosen: np.ndarray) -> CurvatureProblem:
        """Return the problem of a subset."""
        x, y = self.inputs[chosen], self.targets[chosen]
        batches = list(zip(x.split(self.batch), y.split(self.batch), strict=True))
        return CurvatureProblem(self.function, self.loss, batches, params=self.params)


def digits() -> Network:
    """Train the CNN on some digits; the others are the data."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor((images[order] - images.mean()) / images.std(), dtype=torch.float32)
    x, y = x.reshape(-1, 1, 8, 8), torch.tensor(labels[order])
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = torch.randint(TRAINED_ON, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    x, y = x[TRAINED_ON:], y[TRAINED_ON:]
    with torch.no_grad():
        print(f"digits: {(model(x).argmax(1) == y).float().mean():.1%} of the others right")
    params = {name: value.detach() for name, value in model.named_parameters()}

    def function(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x,))

    return Network(function, params, F.cross_entropy, x, y, ("*",), 256)


def resnet20() -> Network:
    """Return the stored ResNet-20 with the training images of CIFAR-10."""
    networks, parts = reference_networks(), []
    for path in sorted(DATA.glob("cifar10_train_part*.npz")):
        with np.load(path) as stored:
            parts.append((stored["images"], stored["labels"]))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    chosen = np.random.default_rng(0).permutation(len(images))[:21_504]  # 86 kB each as floats
    x = images[chosen].transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return Network(
        lambda params, x: networks.resnet_cifar(params)(x),
        load_file(DATA / "resnet20_cifar10.safetensors"),
        F.cross_entropy,
        torch.from_numpy((x - mean) / std),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        ("layer1.1.conv1*", "layer2.1.conv1*", "layer3.1.conv1*", "linear*"),
        128,
    )


def llama() -> Network:
    """Return the stored Llama with the first 32 tokens of each text, and their successors."""
    networks = reference_networks()
    with np.load(DATA / "stories260k_selfsampled_tokens.npz") as stored:
        tokens = torch.from_numpy(stored["tokens"][:, :33].astype(np.int64))
    return Network(
        lambda params, x: networks.llama_260k(params)(x),
        load_file(DATA / "stories260k_llama.safetensors"),
        lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        tokens[:, :-1],
        tokens[:, 1:],
        ("layers.3.attention.wo", "layers.4.attention.wq", "layers.4.feed_forward.w[12]"),
        64,
    )


@cache
def network(name: str) -> Network:
    """Return a network; it is trained once."""
    return {"digits": digits, "resnet20": resnet20, "llama": llama}[name]()


def subset(case: Case, number: int) -> np.ndarray:
    """Return the samples of one of the disjoint subsets."""
    order = np.random.default_rng(1).permutation(len(network(case.network).inputs))
    chosen = order[number * case.size : (number + 1) * case.size]
    assert len(chosen) == case.size
    return chosen


def measured(case: Case, number: int) -> dict[str, Any]:
    """Return the record of one subset."""
    of_case, start = network(case.network), time.perf_counter()
    report = sc.measure(
        of_case.problem(subset(case, number)), of_case.layers, top_k=K,
        sampling=case.groups, sampling_directions=case.directions, progress=False,
    )  # fmt: skip
    layers = {}
    for name, spectrum in report.items():
        sampling = spectrum.sampling
        if sampling is None:
            print(case.key, number, name, spectrum.notes)
            continue
        of_layer: dict[str, Any] = {
            "signal_share": sampling.signal_share,
            "negative": int(np.sum(spectrum.curvature <= 0)),
        }
        for key in NUMBERS:
            fit, sampled = getattr(spectrum, key), getattr(sampling, key)
            of_layer[key] = {
                "value": float(fit.exponent), "stderr": sampled.stderr,
                "half_width": sampled.half_width, "residual": [float(x) for x in fit.interval],
                "drift": sampled.drift, "is_moving": sampled.is_moving,
            }  # fmt: skip
        layers[name] = of_layer
    seconds = round(time.perf_counter() - start, 1)
    return {"key": case.key, "subset": number, "seconds": seconds, "layers": layers}


def run(path: Path, cases: Iterable[Case], quick: bool) -> list[dict[str, Any]]:
    """Measure what is not measured yet; return every record."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(record["key"], record["subset"]) for record in done}
    for case in cases:
        for number in range(min(case.count, 3) if quick else case.count):
            if (case.key, number) in known:
                continue
            record = measured(case, number)
            with path.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            done.append(record)
            print(case.key, number, f"{record['seconds']} s", flush=True)
    return done


def deviations(records: list[dict[str, Any]], layer: str, number: str) -> dict[str, np.ndarray]:
    """Return what each subset says of a number, and the mean over the other subsets."""
    found = [record["layers"][layer][number] for record in records if layer in record["layers"]]
    fields = {
        name: np.array([of_one[name] for of_one in found])
        for name in ("value", "stderr", "half_width", "residual", "drift", "is_moving")
    }
    value = fields["value"]
    return fields | {"others": (value.sum() - value) / (len(value) - 1)}


def summary(records: list[dict[str, Any]], number: str) -> dict[str, Any]:
    """Return the shares of intervals that hold, and how the errors compare with the spread."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for layer in dict.fromkeys(name for record in records for name in record["layers"]):
        of = deviations(records, layer, number)
        off, low_high = of["value"] - of["others"], of["residual"].T
        spread = np.std(of["value"], ddof=1)
        columns["layer"].append(layer)
        columns["sampling"].append(np.abs(off) <= of["half_width"])
        columns["residual"].append((low_high[0] <= of["others"]) & (of["others"] <= low_high[1]))
        columns["spread"].append(spread)
        columns["ratio"].append(np.sqrt(np.mean(of["stderr"] ** 2)) / spread)
        columns["drift"].append(of["drift"])
        columns["signal"].append(
            np.mean([record["layers"][layer]["signal_share"] for record in records])
        )
        columns["is_moving"].append(of["is_moving"])
        columns["value"].append(np.mean(of["value"]))
        columns["width"].append(np.median(of["half_width"]))
        columns["width_residual"].append(np.median(low_high[1] - low_high[0]) / 2)
    return dict(columns)


def share(holds: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Return a share over subsets and layers, its error by subsets, and an exact 95 % interval.

    The layers of a subset are not independent, so its error is the spread of the subsets' own
    shares. The interval (Clopper and Pearson) counts as many trials as that error amounts to, but
    no fewer than there are subsets.
    """
    every, subsets = np.concatenate(holds), len(holds[0])
    mean = float(every.mean())
    error = float(np.std(np.mean(holds, axis=0), ddof=1) / subsets**0.5)
    trials = float(np.clip(mean * (1 - mean) / error**2 if error else 0, subsets, len(every)))
    hits = mean * trials
    low = stats.beta.ppf(0.025, hits, trials - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    return mean, error, float(low), float(high)


def tables(records: list[dict[str, Any]]) -> str:
    """Return the tables of the results page."""
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_key[record["key"]].append(record)
    coverage = Table(
        "network", "N", "B", "directions", "subsets × matrices", "number", "sampling, %",
        "95 % range", "residual, %", "95 % range", "s.e. over spread",
    )  # fmt: skip
    drift = Table(
        "network", "N", "number", "drift over spread", "moving, %", "drift has its sign, %"
    )
    layers = Table(
        "network", "matrix", "number", "mean", "spread", "sampling ±", "residual ±",
        "sampling, %", "residual, %", "s.e. over spread", "drift", "moving, %", "signal share",
    )  # fmt: skip
    for case in CASES:
        of_case = by_key.get(case.key, [])
        if len(of_case) < 2:
            continue
        shares = f"{len(of_case)} × {len(of_case[0]['layers'])}"
        for number, symbol in NUMBERS.items():
            of = summary(of_case, number)
            coverage.add(
                case.network, case.size, case.groups, case.directions, shares, symbol,
                *_cells(of["sampling"]), *_cells(of["residual"]), f"{np.median(of['ratio']):.2f}",
            )  # fmt: skip
            if case.directions == "fixed" or case.groups != 8:
                continue
            flagged = np.concatenate(of["is_moving"])
            agree = np.concatenate([np.sign(x) == np.sign(np.mean(x)) for x in of["drift"]])
            size = np.median(
                [np.mean(x) / y for x, y in zip(of["drift"], of["spread"], strict=True)]
            )
            drift.add(
                case.network, case.size, symbol, f"{size:+.2f}", f"{flagged.mean():.0%}",
                f"{agree[flagged].mean():.0%}" if flagged.any() else "",
            )  # fmt: skip
            if (case.network, case.size) not in MAIN:
                continue
            for i, layer in enumerate(of["layer"]):
                layers.add(
                    case.network, layer, symbol,
                    *(f"{of[name][i]:.2f}" for name in
                      ("value", "spread", "width", "width_residual")),
                    *(f"{np.mean(of[name][i]):.0%}" for name in ("sampling", "residual")),
                    f"{of['ratio'][i]:.2f}", f"{np.mean(of['drift'][i]):+.2f}",
                    f"{np.mean(of['is_moving'][i]):.0%}", f"{of['signal'][i]:+.2f}",
                )  # fmt: skip
    found = (coverage, drift, layers)
    return "\n\n".join("\n".join(table.lines) for table in found)


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the shares of intervals that hold, and the errors over the spread, matrix by matrix."""
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
    styles = {"residual": ("C1", "s"), "sampling": ("C0", "o")}
    names = {"residual": "residual interval", "sampling": "sampling interval"}
    ticks = []
    for case in CASES:
        of_case = [record for record in records if record["key"] == case.key]
        main = (case.network, case.size) in MAIN and (case.groups, case.directions) == (8, "own")
        if len(of_case) < 2 or not main:
            continue
        for number, symbol in NUMBERS.items():
            at, of = len(ticks), summary(of_case, number)
            ticks.append(f"{case.network}\n{symbol}" if symbol == "γ" else f"\n{symbol}")
            for aside, (kind, (color, marker)) in zip((-0.12, 0.12), styles.items(), strict=True):
                mean, _, low, high = share(of[kind])
                axes[0].errorbar(
                    at + aside, 100 * mean, 100 * np.array([[mean - low], [high - mean]]),
                    color=color, marker=marker, capsize=3, label=None if at else names[kind],
                )  # fmt: skip
            width = np.array(of["width_residual"]) / np.array(of["spread"])
            axes[1].plot([at - 0.12] * len(width), width / 1.96, "s", color="C1", alpha=0.7)
            axes[1].plot([at + 0.12] * len(width), of["ratio"], "o", color="C0", alpha=0.7)
    axes[0].axhspan(90, 98, color="0.9", zorder=0, label="90–98 %")
    axes[0].set(ylabel="intervals that hold, %", ylim=(50, 101))
    axes[0].legend(loc="lower left")
    axes[1].axhline(1, color="0.5", linewidth=1)
    axes[1].set(ylabel="error by the interval\nover the spread of the subsets", ylim=(0, None))
    axes[1].set_xticks(range(len(ticks)), ticks)
    fig.savefig(path, dpi=120)


class Table:
    """A table in Markdown."""

    def __init__(self, *names: str) -> None:
        self.lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]

    def add(self, *cells: Any) -> None:
        """Add a row."""
        self.lines.append("| " + " | ".join(map(str, cells)) + " |")


def _cells(holds: list[np.ndarray]) -> tuple[str, str]:
    mean, error, low, high = share(holds)
    return f"{100 * mean:.1f} ± {100 * error:.1f}", f"{100 * low:.0f}–{100 * high:.0f}"


def simulated(groups: int, signal: float, draws: int) -> dict[str, np.ndarray]:
    """Return the control: numbers of Gaussian gradients, whose groups are independent.

    The curvature is that of Kronecker factors with eigenvalues 1/k, and so is the covariance of
    the noise (Theory 11.3). The arrays have the shape (draws, numbers).
    """
    rng, rows, columns = np.random.default_rng(0), 32, 128
    a, b = 1 / np.arange(1, rows + 1.0), 1 / np.arange(1, columns + 1.0)
    root = np.sqrt(a)[:, None] * np.sqrt(b)
    fixed = signal * root * rng.normal(size=(rows, columns))

    def numbers(gradient: np.ndarray) -> list[float]:
        u, sigma, v = np.linalg.svd(gradient, full_matrices=False)
        h = ((u[:, :K] ** 2).T @ a) * (v[:K] ** 2 @ b)
        triangle = sc.exponent_triangle(sigma[:K], h)
        return [float(getattr(triangle, key).exponent) for key in NUMBERS]

    found: dict[str, list[Any]] = {"value": [], "jackknife": [], "halves": [], "the lesser": []}
    for _ in range(draws):
        of_groups = fixed + groups**0.5 * root * rng.normal(size=(groups, rows, columns))
        total = of_groups.sum(0)
        found["value"].append(numbers(total))
        without = np.array([numbers(total - one) for one in of_groups])
        halves = [
            [numbers(of_groups[[*half]].sum(0)) for half in division]
            for division in balanced_halves(groups)
        ]
        error = sampling_error(without, np.array(halves))
        found["jackknife"].append(error.jackknife)
        found["halves"].append(error.half_samples)
        found["the lesser"].append(error.stderr)
    return {name: np.array(values) for name, values in found.items()}


def control(draws: int) -> Table:
    """Return the table of the control: noise alone, and noise beside a strong signal."""
    table = Table("gradient", "B", "error", "number", "holds, %", "s.e. over spread")
    for signal, what in ((0.0, "noise"), (30.0, "mostly signal")):
        for groups in (8, 16):
            found = simulated(groups, signal, draws)
            off = np.abs(found["value"] - np.mean(found["value"], axis=0))
            spread = np.std(found["value"], axis=0, ddof=1)
            quantile = stats.t.ppf(0.975, groups - 1)
            for name in ("jackknife", "halves", "the lesser"):
                holds = np.mean(off <= quantile * found[name], axis=0)
                ratio = np.sqrt(np.mean(found[name] ** 2, axis=0)) / spread
                for at, symbol in enumerate(NUMBERS.values()):
                    table.add(what, groups, name, symbol, f"{100 * holds[at]:.1f}",
                              f"{ratio[at]:.2f}")  # fmt: skip
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("coverage_of_intervals.jsonl"))
    parser.add_argument("--figure", type=Path, help="a picture to draw")
    parser.add_argument("--only", nargs="*", help="keys of cases, or the names of their networks")
    parser.add_argument("--control", action="store_true", help="print the simulated control only")
    parser.add_argument("--quick", action="store_true", help="three subsets of each case")
    options = parser.parse_args()
    chosen = [
        case for case in CASES
        if not options.only or {case.key, case.network} & set(options.only)
    ]  # fmt: skip
    if options.control:
        print("\n".join(control(20 if options.quick else 200).lines))
    else:
        records = run(options.output, chosen, options.quick)
        print(tables(records))
        if options.figure:
            figure(records, options.figure)
