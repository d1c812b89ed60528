"""The same network, weights and data in every framework, in float64.

Each network is written down twice: as a torch module (or the reference forward pass of stored
weights), and in `parity_jax` as a pure function of a pytree.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trained_networks import GPT

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BACKENDS = ("torch", "jax")


@dataclass(frozen=True)
class Network:
    """One function of the same parameters in each framework, and its data.

    `model` is a torch function of a parameter dict, or a module. `shapes` are those of the weight
    matrices, `kinds` of some of them.
    """

    model: Any
    state: dict[str, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    jax_forward: str
    jax_loss: str
    inputs: Tensor
    targets: Tensor
    shapes: dict[str, tuple[int, int]]
    kinds: dict[str, str] = field(default_factory=dict)
    constants: tuple[Any, ...] = ()

    def outputs(self, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs, by torch, in a form that can be differentiated twice."""
        if isinstance(self.model, nn.Module):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return torch.func.functional_call(self.model, state, (inputs,), tie_weights=True)
        return self.model(state, inputs)

    def place(self, layer: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Return the parameter that holds a layer's matrix, and how to read it."""
        base, _, group = layer.partition(".group")
        m, n = self.shapes[layer]
        first = m * int(group or 0)

        def read(weight: Tensor) -> Tensor:
            rows = weight.flatten(1)
            return rows.T if rows.shape == (n, m) != (m, n) else rows[first : first + m]

        return f"{base}.weight", read

    def batches(self, sizes: Sequence[int] | None = None) -> list[tuple[Tensor, Tensor]]:
        sizes = [len(self.inputs)] if sizes is None else list(sizes)
        cut = zip(self.inputs.split(sizes), self.targets.split(sizes), strict=True)
        return [(x.clone(), y.clone()) for x, y in cut]

    def in_torch(self, batches: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what a problem is made of."""
        module = isinstance(self.model, nn.Module)
        state = {} if module else {"params": {k: v.clone() for k, v in self.state.items()}}
        return (self.model, self.loss, batches), state

    def in_jax(self, batches: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what a problem is made of."""
        written = importlib.import_module("parity_jax")
        function, loss = getattr(written, self.jax_forward), getattr(written, self.jax_loss)
        state = written.pytree({name: value.numpy() for name, value in self.state.items()})
        if isinstance(batches, list):
            batches = [tuple(t.numpy() for t in batch) for batch in batches]

        def forward(params: Any, inputs: Any) -> Any:
            return function(params, inputs, *self.constants)

        return ((forward, loss), state, batches), {}


def parts_of(
    backend: str, network: Network, batches: Any = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a backend's `CurvatureProblem`; batches of tensors become its own."""
    batches = network.batches() if batches is None else batches
    return network.in_torch(batches) if backend == "torch" else network.in_jax(batches)


def problem_of(backend: str, network: Network, batches: Any = None, **options: Any) -> Any:
    """Return the network as a `CurvatureProblem` of a backend."""
    problem = importlib.import_module(f"spectral_backends.{backend}").CurvatureProblem
    arguments, keywords = parts_of(backend, network, batches)
    return problem(*arguments, **keywords, **options)


# Small networks, trained a little


def _trained(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    jax_names: tuple[str, str],
    shapes: dict[str, tuple[int, int]],
    kinds: dict[str, str] | None = None,
    steps: int = 30,
) -> Network:
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    state = {n: p.detach() for n, p in model.named_parameters()}  # a tied weight once
    return Network(
        model.eval(), state, loss, *jax_names, inputs, targets, shapes, kinds or {}
    )  # fmt: skip


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _labels(seed: int, count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def _perceptron(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, outputs)
    )


_PERCEPTRON = {"0": (8, 6), "2": (7, 8), "4": (5, 7)}


def mlp() -> Network:
    return _trained(
        _perceptron(5), F.cross_entropy, _random(1, 23, 6), _labels(2, 5, 23),
        ("mlp", "mean_cross_entropy"), _PERCEPTRON, dict.fromkeys(_PERCEPTRON, "linear"),
    )  # fmt: skip


def regression() -> Network:
    return _trained(
        _perceptron(5), F.mse_loss, _random(1, 23, 6), _random(2, 23, 5), ("mlp", "squared_error"),
        _PERCEPTRON,
    )  # fmt: skip


def cnn() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, groups=2),
        nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(40, 5),
    )  # fmt: skip
    shapes = {"0": (8, 27), "2.group0": (5, 36), "2.group1": (5, 36), "6": (5, 40)}
    kinds = {"0": "conv2d", "2.group0": "conv2d", "6": "linear"}
    return _trained(
        model, F.cross_entropy, _random(1, 12, 3, 12, 12), _labels(2, 5, 12),
        ("cnn", "mean_cross_entropy"), shapes, kinds, steps=5,
    )  # fmt: skip


def _token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.mT, targets)  # not flattened: samples stay apart


def transformer() -> Network:
    """Six positions and 20 classes: few enough root vectors for exact factors."""
    torch.manual_seed(0)
    tokens = _labels(3, 20, 7, 7)
    shapes = {"wte": (20, 16), "wpe": (16, 8)}
    for index in range(2):
        block = f"h.{index}."
        shapes[block + "attn.c_attn"], shapes[block + "attn.c_proj"] = (48, 16), (16, 16)
        shapes[block + "mlp.c_fc"], shapes[block + "mlp.c_proj"] = (64, 16), (16, 64)
    kinds = {"wte": "embedding+linear", "wpe": "embedding", "h.0.attn.c_attn": "linear"}
    return _trained(
        GPT(), _token_loss, tokens[:, :-1], tokens[:, 1:], ("gpt", "mean_cross_entropy"), shapes,
        kinds,
    )  # fmt: skip


def masked_transformer() -> Network:
    """Samples have different numbers of tokens that count, and one has none."""
    whole = transformer()
    ignored = torch.arange(6)[None, :] >= torch.tensor([6, 1, 4, 0, 5, 2, 3])[:, None]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.mT, targets, ignore_index=-1)

    return Network(
        whole.model, whole.state, loss, "gpt", "cross_entropy", whole.inputs,
        whole.targets.masked_fill(ignored, -1), whole.shapes, whole.kinds,
    )  # fmt: skip


# Networks with stored weights


def _stored(name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the reference forward passes and a state in float64."""
    path = SHARED / "reference_networks.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    load = importlib.import_module("safetensors.torch").load_file
    return networks, {k: v.double() for k, v in load(SHARED / f"{name}.safetensors").items()}


def resnet20() -> Network:
    networks, state = _stored("resnet20_cifar10")
    state = {k: v for k, v in state.items() if "num_batches" not in k}
    with np.load(SHARED / "cifar10_test.npz") as stored:
        images = torch.from_numpy(stored["images"][HARD]).permute(0, 3, 1, 2).double() / 255
        labels = torch.from_numpy(stored["labels"][HARD].astype(np.int64))
    mean, std = (torch.tensor(x).double().view(3, 1, 1) for x in (MEAN, STD))
    shapes = {
        name.removesuffix(".weight"): (len(value), value[0].numel())
        for name, value in state.items()
        if value.ndim > 1
    }
    return Network(
        lambda p, x: networks.resnet_cifar(p)(x), state, F.cross_entropy, "resnet20",
        "mean_cross_entropy", (images - mean) / std, labels, shapes, {"layer1.0.conv1": "conv2d"},
    )  # fmt: skip


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the network's training
HARD = [129, 52, 112, 35, 61, 95, 68, 49]
"""Test images with losses of 0.2 to 2.6: those of most are so small that the rest of σ is rounding."""


def llama(samples: int = 3, length: int = 9) -> Network:
    networks, state = _stored("stories260k_llama")
    with np.load(SHARED / "stories260k_selfsampled_tokens.npz") as stored:
        tokens = torch.from_numpy(stored["tokens"][:samples, 60 : 60 + length].astype(np.int64))
    state = {k: v for k, v in state.items() if not k.startswith("freqs")}
    shapes = {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in state.items()
        if value.ndim > 1
    }
    # The reference makes its rotations in float32, and the last bit of a cosine is its library's.
    width = 64 // 8
    angles = torch.outer(
        torch.arange(length - 1).float(), 1 / 10000 ** (torch.arange(0, width, 2).float() / width)
    )
    rotations = tuple(f(angles)[:, None].double().numpy() for f in (torch.cos, torch.sin))
    return Network(
        lambda p, x: networks.llama_260k(p)(x), state, _token_loss, "llama",
        "mean_cross_entropy", tokens[:, :-1], tokens[:, 1:], shapes,
        {"tok_embeddings": "embedding+linear"}, (rotations,),
    )  # fmt: skip


SMALL: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "regression": regression,
    "cnn": cnn,
    "transformer": transformer,
    "masked transformer": masked_transformer,
}
STORED: dict[str, Callable[[], Network]] = {"resnet20": resnet20, "llama": llama}


@cache
def network(name: str) -> Network:
    return (SMALL | STORED)[name]()
