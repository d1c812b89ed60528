"""Controlled ablations: which part of an architecture moves which term of α.

::

    SPECTRAL_DATA=path/to/data python docs/examples/ablations.py --output ablations.jsonl

Small networks are trained on real data, each architecture with several seeds, and every weight
matrix is measured with ``decompose=True``. One JSON line per network and layer; a run that was
interrupted goes on, and with everything measured the tables are printed.

- *Blocks*: four blocks ``x + down(gelu(up(norm(x))))`` on pairs of MNIST digits, with and without
  LayerNorm, with and without the residual, classified by the left digit (10 classes) or both (100).
- *Trunk*: a two-block transformer trained to predict the next character of a text; then the same
  trunk under a classifier of its mean, trained to say how many words a passage has (10 classes).
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from shared_data import DATA
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

WIDTH, BLOCKS, SEEDS, K = 64, 4, (0, 1, 2), 20
NEAR_ZERO = 0.2  # a slope this small moves α by a tenth of 2; fixed before anything was measured


class Blocks(nn.Module):
    """A stack of two-layer blocks on vectors."""

    def __init__(self, inputs: int, classes: int, norm: bool, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.embed = nn.Linear(inputs, WIDTH)
        self.norms = nn.ModuleList(
            nn.LayerNorm(WIDTH) if norm else nn.Identity() for _ in range(BLOCKS)
        )
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            new = down(F.gelu(up(norm(x))))
            x = x + new if self.residual else new
        return self.head(x)


class Trunk(nn.Module):
    """A causal transformer on bytes, without a head."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(length, WIDTH))
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features (B, T, width)."""
        x = self.token(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x."""
        z = self.norm1(x)
        q, k, v = (f(z).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Headed(nn.Module):
    """A trunk with a head on every position, or on their mean."""

    def __init__(self, trunk: nn.Module, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.trunk, self.head, self.pooled = trunk, nn.Linear(WIDTH, outputs), pooled

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, outputs), or (B, outputs, T) as `cross_entropy` takes them."""
        x = self.trunk(tokens)
        return self.head(x.mean(1)) if self.pooled else self.head(x).transpose(1, 2)


def digit_pairs(split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pairs of half-size digits (count, 14·28) and their two labels (count, 2)."""
    with np.load(DATA / "mnist.npz") as stored:
        images, labels = stored[f"x_{split}"], stored[f"y_{split}"].astype(np.int64)
    chosen = np.random.default_rng(seed).integers(len(images), size=(count, 2))
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / 255
    pairs = np.concatenate([small[chosen[:, 0]], small[chosen[:, 1]]], axis=2)
    x = torch.from_numpy(pairs.reshape(count, -1))
    return (x - x.mean()) / x.std(), torch.from_numpy(labels[chosen])


def passages(count: int, length: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Return passages of bytes (count, length + 1), and how many words each has, in 10 classes.

    Training passages are from the first nine tenths of the text, the others from the last.
    """
    raw = np.frombuffer((DATA / "tinyshakespeare.txt").read_bytes(), dtype=np.uint8)
    _, text = np.unique(raw, return_inverse=True)
    edge = len(text) * 9 // 10
    low, high = (0, edge - length - 1) if split == "train" else (edge, len(text) - length - 1)
    first = np.random.default_rng(seed).integers(low, high, size=count)
    where = first[:, None] + np.arange(length + 1)
    blanks = np.isin(raw[where[:, :-1]], [ord(" "), ord("\n")]).sum(1)
    words = torch.from_numpy(np.clip(blanks - 7, 0, 9))
    return torch.from_numpy(text[where].astype(np.int64)), words


def train(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int, rate: float = 2e-3
) -> None:
    """Train with AdamW and a cosine schedule."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def measured(model: nn.Module, x: Tensor, y: Tensor, size: int) -> tuple[float, list[dict]]:
    """Return the accuracy, and one flat record per layer."""
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    batches = list(zip(x.split(size), y.split(size), strict=True))
    problem = CurvatureProblem(model, F.cross_entropy, batches)
    # An embedding has one-hot inputs: none of the predictions is about it.
    layers = [layer.name for layer in problem.layers() if layer.kind != "embedding"]
    report = sc.measure(problem, layers, top_k=K, decompose=True, progress=False)
    records = []
    for row, spectrum in zip(report.rows(), report.values(), strict=True):
        alignment = spectrum.alignment
        row |= {
            "slope_u_c_u": sc.fit_power_law(spectrum.sigma, alignment.delta.quadratic).exponent,
            "slope_v_c_v": sc.fit_power_law(spectrum.sigma, alignment.a.quadratic).exponent,
            "condition_a": alignment.a.eigenvalues[0] / alignment.a.eigenvalues[-1],
            "dominating": sc.explain(spectrum).dominating,
            "chi_median": float(np.nanmedian(spectrum.decomposition.chi)),
            "chi_max": float(np.nanmax(spectrum.decomposition.chi)),
        }  # fmt: skip
        records.append(
            {k: float(v) if isinstance(v, (np.floating, np.ndarray)) else v for k, v in row.items()}
        )
    return accuracy, records


def run_blocks(norm: bool, residual: bool, classes: int, seed: int) -> tuple[float, list[dict]]:
    """Train and measure one network of blocks."""
    torch.manual_seed(seed)
    x, labels = digit_pairs("train", 20_000, seed)
    test_x, test_labels = digit_pairs("test", 1024, 1000 + seed)
    targets = [one[:, 0] if classes == 10 else 10 * one[:, 0] + one[:, 1]
               for one in (labels, test_labels)]  # fmt: skip
    model = Blocks(x.shape[1], classes, norm, residual)
    train(model, x, targets[0], 1200, seed)
    return measured(model, test_x, targets[1], 256)


def run_trunk(seed: int) -> Iterator[tuple[str, float, list[dict]]]:
    """Train a language model, then a classifier on its trunk; measure both."""
    torch.manual_seed(seed)
    length = 64
    tokens, words = passages(8000, length, seed, "train")
    test_tokens, test_words = passages(128, length, 1000 + seed, "test")
    trunk = Trunk(int(tokens.max()) + 1, length)
    model = Headed(trunk, int(tokens.max()) + 1, pooled=False)
    train(model, tokens[:, :-1], tokens[:, 1:], 800, seed)
    yield ("language", *measured(model, test_tokens[:, :-1], test_tokens[:, 1:], 32))
    classifier = Headed(trunk, 10, pooled=True)
    train(classifier, tokens[:, :-1], words, 300, seed, rate=1e-3)
    yield ("classes", *measured(classifier, test_tokens[:, :-1], test_words, 64))


def run(path: Path) -> list[dict]:
    """Measure what is not measured yet; return every record."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    keys = {tuple(record["key"]) for record in done}

    def keep(key: list[Any], accuracy: float, records: list[dict]) -> None:
        new = [record | {"key": key, "accuracy": accuracy} for record in records]
        with path.open("a") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in new)
        done.extend(new)
        print(*key, f"accuracy {accuracy:.3f}", flush=True)

    for seed in SEEDS:
        for norm, residual, classes in product((True, False), (True, False), (10, 100)):
            key = ["blocks", norm, residual, classes, seed]
            if tuple(key) not in keys:
                keep(key, *run_blocks(norm, residual, classes, seed))
        if ("trunk", "classes", seed) not in keys:
            for name, accuracy, records in run_trunk(seed):
                if ("trunk", name, seed) not in keys:
                    keep(["trunk", name, seed], accuracy, records)
    return done


def over_seeds(records: Iterable[dict], field: str) -> tuple[float, float]:
    """Return the mean over seeds, each the mean of its layers, and the 95 % half width."""
    by_seed: dict[int, list[float]] = {}
    for record in records:
        by_seed.setdefault(record["key"][-1], []).append(record[field])
    means = [float(np.mean(values)) for values in by_seed.values()]
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
    return float(np.mean(means)), float(half)


def near_zero(value: float, half: float) -> str:
    """Judge "about zero": within `NEAR_ZERO` with its whole interval, or without."""
    if abs(value) + half <= NEAR_ZERO:
        return "confirmed"
    return "refuted" if abs(value) - half > NEAR_ZERO else "undecided"


def sign(value: float, half: float, wanted: int) -> str:
    """Judge the sign of a value by its interval."""
    if abs(value) <= half:
        return "undecided"
    return "confirmed" if value * wanted > 0 else "refuted"


def tables(records: list[dict]) -> str:
    """Return the tables of the results page."""
    lines = ["| network | accuracy | layers | α | β − 2 | φ^δ | φ^A | κ | ν | uᵀC_δu | vᵀC_Av |"]
    lines.append("|" + " --- |" * 11)

    def line(name: str, part: str, chosen: list[dict]) -> None:
        cells = [name, f"{over_seeds(chosen, 'accuracy')[0]:.1%}", part]
        for field in ("alpha", "beta", "phi_delta", "phi_a", "kappa", "nu", "slope_u_c_u",
                      "slope_v_c_v"):  # fmt: skip
            value, half = over_seeds(chosen, field)
            cells.append(f"{value - 2 * (field == 'beta'):+.2f} ± {half:.2f}")
        lines.append("| " + " | ".join(cells) + " |")

    for norm, residual, classes in product((True, False), (True, False), (10, 100)):
        prefix = ["blocks", norm, residual, classes]
        for part in ("up", "down", "head"):
            line(_case(prefix), part, select(records, prefix, part))
    for name in ("language", "classes"):
        for part in (".q", ".k", ".v", ".o", ".up", ".down", "head"):
            line(_case(["trunk", name]), part, select(records, ["trunk", name], part))

    return "\n".join(lines) + "\n\n" + verdict_table(records)


def select(records: list[dict], prefix: list[Any], parts: str) -> list[dict]:
    """Return the records of one network, all seeds, of the layers that contain one of the parts."""
    return [
        record for record in records
        if record["key"][:-1] == prefix and any(part in record["layer"] for part in parts.split())
    ]  # fmt: skip


def verdict_table(records: list[dict]) -> str:
    """Return the predictions of Theory 6, each with its case, figure and verdict."""
    rows = ["| prediction | case | measured | verdict |", "| --- | --- | --- | --- |"]

    def add(
        statement: str, prefix: list[Any], parts: str, field: str, judge: Any, control: bool = False
    ) -> None:
        value, half = over_seeds(select(records, prefix, parts), field)
        found = "control" if control else judge(value, half)
        rows.append(
            f"| {statement} | {_case(prefix)}: {parts} | {value:+.2f} ± {half:.2f} | {found} |"
        )

    on_off = (True, False)
    for norm, residual, classes in product(on_off, on_off, (10, 100)):
        add("6.1 slope(log ρ^A) ≈ 0 behind LayerNorm", ["blocks", norm, residual, classes], "up",
            "phi_a", near_zero, control=not norm)  # fmt: skip
    for field, what in (("phi_delta", "log ρ^δ"), ("slope_u_c_u", "log uᵀC_δu")):
        for residual, norm, classes in product(on_off, on_off, (10, 100)):
            add(f"6.2 slope({what}) ≈ 0 beside a skip", ["blocks", norm, residual, classes], "down",
                field, near_zero, control=not residual)  # fmt: skip
    heads = [["blocks", True, True, 10], ["blocks", True, True, 100]]
    for prefix in [*heads, ["trunk", "language"], ["trunk", "classes"]]:
        add("6.3 slope(log Φ) > 0 at a softmax head", prefix, "head", "phi", _positive)
        add("6.3 α > 2 at a softmax head", prefix, "head", "alpha", _above_two)
    for norm, classes in product(on_off, (100, 10)):
        prefix = ["blocks", norm, True, classes]
        if norm and classes == 100:
            add("6.4 α < 2 with LayerNorm and many outputs", prefix, "up down", "alpha", _below_two)
        else:
            add("6.4 α ≥ 2 without both", prefix, "up down", "alpha", _above_two)
    inner = ".q .k .v .o .up .down"
    add("6.4 α < 2 under a vocabulary", ["trunk", "language"], inner, "alpha", _below_two)
    add("6.4 α ≥ 2 under few classes", ["trunk", "classes"], inner, "alpha", _above_two)
    return "\n".join(rows)


def _case(prefix: list[Any]) -> str:
    if prefix[0] == "trunk":
        return f"trunk, {prefix[1]}"
    _, norm, residual, classes = prefix
    return f"{'norm' if norm else 'no norm'}, {'skip' if residual else 'no skip'}, {classes}"


def _positive(value: float, half: float) -> str:
    return sign(value, half, 1)


def _above_two(value: float, half: float) -> str:
    return sign(value - 2, half, 1)


def _below_two(value: float, half: float) -> str:
    return sign(value - 2, half, -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("ablations.jsonl"))
    print(tables(run(parser.parse_args().output)))
