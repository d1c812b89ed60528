"""What is learned: CIFAR-10 by a residual network, tiny-shakespeare by a GPT, and cheap proxies.

Tuning looks at a validation part of the training data only; the test data are for the final runs.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

from .networks import GPT, ResNet

DATA = Path(os.environ.get("SPECTRAL_DATA", "../shared/data"))
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Text:
    """Next-byte prediction in one pass: no position of the training text is predicted twice."""

    name: str
    width: int
    depth: int
    heads: int
    length: int
    batch: int
    steps: int
    parts: int  # points of the curve
    scored: int  # bytes of unseen text
    retune: tuple[float, ...] = (1.0,)  # multiples of the proxy's learning rate to try first
    measure_every: int = 200  # of alpha="auto"
    proxy: str = ""

    score = "loss"
    entrants = 4  # of Spectral Newton: the settings that the proxy found best, one for each α

    def config(self) -> dict[str, Any]:
        return asdict(self)

    def model(self) -> nn.Module:
        vocabulary = len(_text()[1])
        return GPT(vocabulary, self.length, self.width, self.depth, self.heads)

    def epochs(self, generator: torch.Generator) -> Iterator[Iterator[Batch]]:
        """Yield `parts` equal shares of the steps."""
        windows = _windows("train", self.length)
        needed = self.steps * self.batch
        if len(windows) < needed:
            raise ValueError(f"{self.name}: {needed} windows of {self.length} exceed one pass.")
        order = torch.randperm(len(windows), generator=generator)[:needed]
        batches = order.view(self.steps, self.batch)
        for share in batches.tensor_split(self.parts):
            yield (_pair(windows[rows]) for rows in share)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        windows = _windows(split, self.length)[: self.scored // self.length]
        losses = [self.loss(model, _pair(rows)) * len(rows) for rows in windows.split(64)]
        return {"loss": float(sum(losses)) / len(windows)}

    def problem(self, model: nn.Module) -> CurvatureProblem:
        """Return a small one on training data, for the measurement of α."""

        def forward(model: nn.Module, windows: Tensor) -> Batch:
            inputs, targets = _pair(windows)
            return model(inputs).flatten(0, 1), targets.flatten()

        few = _windows("train", self.length)[:4]
        return CurvatureProblem(model, F.cross_entropy, [few], forward=forward)


@dataclass(frozen=True)
class Images:
    """CIFAR-10, averaged down to `side` pixels; random flips and shifts; bfloat16 convolutions.

    Of Spectral Newton the `entrants` settings that the proxy found best take part.
    """

    name: str
    side: int
    blocks: int
    count: int
    epochs_: int
    batch: int
    scored: int
    retune: tuple[float, ...] = (1.0,)
    measure_every: int = 200
    proxy: str = ""

    score = "error"
    entrants = 1

    def config(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def steps(self) -> int:
        return self.epochs_ * (self.count // self.batch)

    def model(self) -> nn.Module:
        return ResNet(self.blocks)

    def epochs(self, generator: torch.Generator) -> Iterator[Iterator[Batch]]:
        images, labels = _images("train", self.side, self.count)
        for _ in range(self.epochs_):
            order = torch.randperm(self.count, generator=generator)
            batches = order[: self.count // self.batch * self.batch].split(self.batch)
            yield ((_augmented(images[rows], generator), labels[rows]) for rows in batches)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # twice as many runs in the same hours
            return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        images, labels = _images(split, self.side, self.scored)
        logits = torch.cat([model(part) for part in images.split(500)])
        wrong = (logits.argmax(1) != labels).double().mean()
        return {"loss": float(F.cross_entropy(logits, labels)), "error": float(wrong)}

    def problem(self, model: nn.Module) -> CurvatureProblem:
        images, labels = _images("train", self.side, self.count)
        return CurvatureProblem(model, F.cross_entropy, [(images[:32], labels[:32])])


Task = Text | Images

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Text("text-proxy", 64, 2, 4, 64, 16, 400, 4, 32_768, measure_every=100),
        Text("text", 128, 4, 4, 128, 8, 960, 8, 55_000, (1.0, 0.5, 2.0), proxy="text-proxy"),
        Images("images-proxy", 16, 1, 6_000, 6, 100, 5_000, measure_every=100),
        Images(
            "images", 32, 3, 20_000, 10, 100, 10_000,
            proxy="images-proxy", measure_every=500,
        ),
        Text("text-quick", 16, 1, 2, 16, 4, 8, 2, 512, measure_every=4),
        Images("images-quick", 8, 1, 100, 1, 20, 100, measure_every=4),
    )
}  # fmt: skip


@cache
def _text() -> tuple[Tensor, bytes]:
    stored = (DATA / "tinyshakespeare.txt").read_bytes()
    vocabulary = bytes(sorted(set(stored)))
    codes = np.zeros(256, np.int64)
    codes[list(vocabulary)] = np.arange(len(vocabulary))
    return torch.from_numpy(codes[np.frombuffer(stored, np.uint8)]), vocabulary


@cache
def _windows(split: str, length: int) -> Tensor:
    """Return (count, length + 1): the first 90 % of the text, the next 5 %, the last 5 %."""
    text = _text()[0]
    low, high = {"train": (0, 0.9), "valid": (0.9, 0.95), "test": (0.95, 1)}[split]
    return text[int(low * len(text)) : int(high * len(text))].unfold(0, length + 1, length)


def _pair(windows: Tensor) -> Batch:
    return windows[:, :-1], windows[:, 1:]


@cache
def _images(split: str, side: int, count: int) -> Batch:
    """Return normalised images and labels; the third training file is for validation."""
    files = {"train": ["train_part1", "train_part2"], "valid": ["train_part3"], "test": ["test"]}
    parts = []
    for name in files[split]:
        with np.load(DATA / f"cifar10_{name}.npz") as stored:
            parts.append((stored["images"], stored["labels"].astype(np.int64)))
    raw, labels = (np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True))
    if len(raw) < count:
        raise ValueError(f"CIFAR-10 {split}: {count} images are asked for, there are {len(raw)}.")
    images = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    images = (F.adaptive_avg_pool2d(images, side) - 0.45) / 0.25
    return images.contiguous(), torch.from_numpy(labels)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip and shift by up to an eighth of the side, each image on its own."""
    count, _, _, side = images.shape
    reach = side // 8
    rows, columns = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    ahead = torch.arange(side)
    across = torch.where(flipped, side - 1 - ahead, ahead) + columns
    padded = F.pad(images, (reach,) * 4)
    index = torch.arange(count)[:, None, None]
    taken = padded[index, :, (rows + ahead)[:, :, None], across[:, None, :]]
    return taken.permute(0, 3, 1, 2).contiguous()
