"""A short race on a GPU: a GPT learns bytes with AdamW, Muon and Spectral Newton, at equal steps.

On tiny-shakespeare where the folder ``SPECTRAL_DATA`` has it, else on text that a random chain of
order two makes. Each contender has three learning rates, a factor of 2 apart around the one it
begins its own race with; the same model, data and order. Validation loss and time a step.
"""

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from harness import Sections, arguments, print_figure
from race.contenders import RECOMMENDED, Contender, contenders, schedule, set_learning_rate
from race.networks import GPT
from race.tasks import DATA

RATES = (1.0, 0.5, 2.0)
ENTRANTS = ("adamw", "muon", RECOMMENDED)


class Text:
    """Symbols in one row: most to learn from, the rest to score."""

    def __init__(self, device: str, quick: bool) -> None:
        path = DATA / "tinyshakespeare.txt"
        self.name = path.name if path.exists() else "random chain"
        symbols = np.frombuffer(path.read_bytes(), np.uint8) if path.exists() else chain(quick)
        _, codes = np.unique(symbols, return_inverse=True)
        self.vocabulary = int(codes.max()) + 1
        everything = torch.from_numpy(codes.astype(np.int64)).to(device)
        cut = int(0.9 * len(everything))
        self.train, self.valid = everything[:cut], everything[cut:]

    def batch(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random windows, and what follows each symbol."""
        starts = torch.randint(len(self.train) - length, (count, 1), generator=generator)
        places = starts + torch.arange(length + 1)
        windows = self.train[places.to(self.train.device)]
        return windows[:, :-1], windows[:, 1:]


def chain(quick: bool) -> np.ndarray:
    """Return symbols of a chain in which two symbols leave four for the next."""
    rng = np.random.default_rng(0)
    kinds, count = 32, 20_000 if quick else 400_000
    following = rng.integers(kinds, size=(kinds, kinds, 4))
    choices, symbols = rng.integers(4, size=count), np.zeros(count, np.uint8)
    for i in range(2, count):
        symbols[i] = following[symbols[i - 2], symbols[i - 1], choices[i]]
    return symbols


def train(contender: Contender, factor: float, device: str, quick: bool) -> None:
    """Train once and print what came of it."""
    text = Text(device, quick)
    steps, count, length = (6, 4, 16) if quick else (250, 32, 128)
    width, depth = (16, 1) if quick else (256, 4)
    torch.manual_seed(0)
    model = GPT(text.vocabulary, length, width, depth, 4).to(device)
    lr, decay = contender.lr * factor, contender.weight_decays[0]
    optimizer = contender.optimizer(model, lr, decay, lambda: None, 0)  # type: ignore[arg-type, return-value]
    generator, began = torch.Generator().manual_seed(0), time.perf_counter()
    for step in range(steps):
        if step == steps // 5:  # what comes once has come
            _wait(device)
            began = time.perf_counter()
        inputs, targets = text.batch(count, length, generator)
        set_learning_rate(optimizer.param_groups, schedule(step, steps))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    _wait(device)
    seconds = (time.perf_counter() - began) / (steps - steps // 5)
    print_figure(
        "train",
        contender=contender.name,
        lr=round(lr, 6),
        text=text.name,
        steps=steps,
        parameters=sum(p.numel() for p in model.parameters()),
        validation_loss=round(validation_loss(model, text, length), 4),
        milliseconds_a_step=round(1e3 * seconds, 3),
    )


@torch.no_grad()
def validation_loss(model: GPT, text: Text, length: int) -> float:
    """Return the mean loss on at most 64 thousand symbols that were not learned from."""
    windows = text.valid[:64_000].unfold(0, length + 1, length)
    losses = [
        F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten()) * len(w)
        for w in windows.split(64)
    ]
    return float(sum(losses)) / len(windows)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print a line for each run."""
    options = arguments(__doc__, device=True)
    sections = Sections(options.figures, options.seconds)
    entrants = {c.name: c for c in contenders() if c.name in ENTRANTS}
    for factor in RATES[: 1 if options.quick else 3]:
        for name in ENTRANTS:
            run = partial(train, entrants[name], factor, options.device, options.quick)
            sections.run(f"{name} at {factor:g}", run)
    sections.finish()


if __name__ == "__main__":
    main()
