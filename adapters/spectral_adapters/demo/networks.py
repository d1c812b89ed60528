"""The demo's data and networks: scikit-learn's 8×8 digits, a small CNN, a small transformer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn import datasets, model_selection
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.instruments.threads import threads_for

__all__ = ["Digits", "Transformer", "accuracy", "cnn", "load_digits", "problem", "trained"]


@dataclass(frozen=True)
class Digits:
    """Images, shape ``(N, 1, 8, 8)`` in [0, 1], and labels, shape ``(N,)``, of each part."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits(seed: int) -> Digits:
    """Return four fifths of the digits for training and one for testing."""
    images, labels = datasets.load_digits(return_X_y=True)
    split = model_selection.train_test_split(
        images / 16, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    x_train, x_test = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) for x in split[:2])
    y_train, y_test = (torch.tensor(y) for y in split[2:])
    return Digits((x_train, y_train), (x_test, y_test))


def cnn() -> nn.Module:
    """Return three convolutions and two linear layers with ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """A pre-norm encoder of two blocks that reads a digit as eight rows of eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.position = nn.Parameter(0.1 * torch.randn(8, 48))
        block = nn.TransformerEncoderLayer(
            48, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(N, 10)``."""
        rows = self.embed(images.flatten(1, 2)) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(rows)).mean(1))
        return logits


def trained(
    build: Callable[[], nn.Module], data: tuple[Tensor, Tensor], epochs: int, seed: int
) -> nn.Module:
    """Build a network and train it with AdamW, the same for the same seed; in eval mode."""
    # The operations are too small to be shared by threads: see `threads_for`.
    with torch.random.fork_rng(devices=[]), threads_for(0):
        torch.manual_seed(seed)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        for _ in range(epochs * len(data[1]) // 64):
            index = torch.randint(len(data[1]), (64,))
            loss = F.cross_entropy(model(data[0][index]), data[1][index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of digits that the model gets right."""
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def problem(model: nn.Module, data: tuple[Tensor, Tensor], samples: int) -> CurvatureProblem:
    """Return the problem of the first `samples` digits, in float64."""
    batches = [(data[0][i : i + 128], data[1][i : i + 128]) for i in range(0, samples, 128)]
    return CurvatureProblem(model, F.cross_entropy, batches, dtype=torch.float64)
