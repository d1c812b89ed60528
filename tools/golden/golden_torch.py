"""Small problems and optimizers in PyTorch, whose results `record` writes down."""

from collections.abc import Callable
from typing import Any

import numpy as np


def _models() -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """Return by name: a model, its loss and its batches."""
    import torch
    from torch import nn

    def labelled(shape: tuple[int, ...], classes: int) -> list[Any]:
        return [(torch.randn(n, *shape), torch.randint(classes, (n,))) for n in (9, 7)]

    def built(make: Callable[[], Any], shape: tuple[int, ...], classes: int) -> Any:
        torch.manual_seed(0)
        return make().eval(), nn.CrossEntropyLoss(), labelled(shape, classes)

    def mlp(activation: Any) -> Callable[[], Any]:
        return lambda: built(
            lambda: nn.Sequential(nn.Linear(8, 12), activation, nn.Linear(12, 10), activation, nn.Linear(10, 6)),
            (8,), 6,
        )  # fmt: skip

    def convolutions() -> Any:
        return built(
            lambda: nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                nn.Flatten(), nn.Linear(8, 5),
            ), (3, 8, 8), 5,
        )  # fmt: skip

    def transformer() -> Any:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
        model = nn.Sequential(nn.Embedding(13, 8), block, nn.Linear(8, 13)).eval()
        batches = [
            (
                torch.randint(13, (n, 5)),
                torch.randint(13, (n, 5)).masked_fill(torch.rand(n, 5) < 0.2, -100),
            )
            for n in (4, 3)
        ]
        return (
            model,
            lambda z, t: nn.functional.cross_entropy(z.flatten(0, 1), t.flatten()),
            batches,
        )

    def recurrent() -> Any:
        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

            def forward(self, x: Any) -> Any:
                return self.head(self.lstm(x)[0][:, -1])

        return built(Last, (5, 4), 3)

    def tied() -> Any:
        torch.manual_seed(0)

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.mid = nn.Embedding(9, 6), nn.Linear(6, 6)

            def forward(self, x: Any) -> Any:
                return torch.tanh(self.mid(self.embed(x))) @ self.embed.weight.T

        return (
            Tied(),
            nn.CrossEntropyLoss(),
            [(torch.randint(9, (n,)), torch.randint(9, (n,))) for n in (9, 8)],
        )

    def regression() -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), nn.Sigmoid(), nn.Linear(9, 7))
        return model, nn.MSELoss(), [(torch.randn(n, 6), torch.randn(n, 7)) for n in (8, 5)]

    return {
        "relu": mlp(nn.ReLU()), "gelu": mlp(nn.GELU()), "convolutions": convolutions,
        "transformer": transformer, "recurrent": recurrent, "tied": tied, "regression": regression,
    }  # fmt: skip


def reports() -> dict[str, Callable[[], Any]]:
    """Return measurements by name."""
    import spectral_core as sc
    from spectral_backends.torch import CurvatureProblem

    models = _models()

    def measured(name: str, **options: Any) -> Callable[[], Any]:
        def run() -> Any:
            model, loss, batches = models[name]()
            problem = CurvatureProblem(model, loss, batches)
            return sc.measure(problem, top_k=4, **options)

        return run

    return {
        **{name: measured(name) for name in models},
        **{f"{name}-decomposed": measured(name, decompose=True) for name in ("relu", "convolutions", "transformer")},
        **{f"gelu-{engine}": measured("gelu", engine=engine) for engine in ("columns", "tangents", "double-backward")},
        "gelu-ggn": measured("gelu", curvature="ggn"),
        "transformer-ggn": measured("transformer", curvature="ggn"),
        "gelu-monte-carlo": measured("gelu", curvature="ggn", engine="monte-carlo", draws=32),
        "relu-monte-carlo": measured("relu", engine="monte-carlo", draws=32),
        "relu-reduce": measured("relu", decompose=True, sharing="reduce", delta="empirical"),
    }  # fmt: skip


def states() -> dict[str, Callable[[], Any]]:
    """Return runs of the optimizer by name."""
    return {
        "default": lambda: _run("convolutions"),
        "transformer": lambda: _run("transformer", alpha="per-type", damping=0.1, weight_decay=0.01),
        "globs": lambda: _run("gelu", alpha={"0*": 1.0, "linear": 1.7}, method="svd", scale="spectral"),
        "absolute": lambda: _run("gelu", alpha=1.5, damping=0.1, damping_mode="absolute"),
        "report": lambda: _run("gelu", alpha="a report"),
        "polar": lambda: _run("gelu", alpha=1.0, damping=0.01, nesterov=False),
        "auto": lambda: _run("gelu", alpha="auto"),
    }  # fmt: skip


def _run(name: str, **options: Any) -> Any:
    import golden_numpy
    import torch

    import spectral_core as sc
    from spectral_adapters.torch_optim import SpectralNewton
    from spectral_backends.torch import CurvatureProblem

    model, loss, batches = _models()[name]()
    if options.get("alpha") == "a report":
        options["alpha"] = sc.measure(CurvatureProblem(model, loss, batches), top_k=4)
    if options.get("alpha") == "auto":
        options["problem"] = lambda: CurvatureProblem(model, loss, batches)
        options["measure_every"] = 8
    optimizer = SpectralNewton(model, lr=1e-2, **options)
    for step in range(20):
        inputs, targets = batches[step % 2]
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    kept = {f"parameter {key}": value.detach().numpy() for key, value in model.named_parameters()}
    for index, held in optimizer.state_dict()["state"].items():
        kept |= {
            f"state {index} {key}": np.asarray(torch.as_tensor(value))
            for key, value in held.items()
        }
    table = str(optimizer.routing).encode()
    return [("routing", "text", (), table), *golden_numpy.bits(kept)]
