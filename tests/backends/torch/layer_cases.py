"""Small networks with every kind of layer, and a rule that reads each layer's matrix by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Matrix = Callable[[Tensor], Tensor]


@dataclass
class Case:
    """A function of a parameter dict, its data, and the matrix of each layer in its parameter."""

    model: Any
    inputs: tuple[Tensor, ...]
    target: Tensor
    matrices: dict[str, tuple[str, Matrix]]
    params: dict[str, Tensor] | None = None
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    forward: Callable[[Any, Any], Any] | None = None
    kinds: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Tensor]:
        named = self.params if self.params is not None else dict(self.model.named_parameters())
        return {name: p.detach() for name, p in named.items()}

    def outputs(self, name: str, weight: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            if self.params is not None:
                return self.model({**self.params, name: weight}, *self.inputs)
            return torch.func.functional_call(self.model, {name: weight}, self.inputs)


def flat_rows(w: Tensor) -> Tensor:
    return w.flatten(1)


def identity(w: Tensor) -> Tensor:
    return w


def transposed(w: Tensor) -> Tensor:
    return w.T


def conv_group(index: int, groups: int) -> Matrix:
    return lambda w: w.chunk(groups, 0)[index].flatten(1)


def conv_transpose_group(index: int, groups: int) -> Matrix:
    # kernels are (inputs, outputs / groups, *k): the outputs to the front
    return lambda w: w.chunk(groups, 0)[index].transpose(0, 1).flatten(1)


def third(index: int) -> Matrix:
    return lambda w: w.chunk(3, 0)[index]


def expert(index: int, transpose: bool = False) -> Matrix:
    return lambda w: w[index].T if transpose else w[index]


class Pool(nn.Module):
    """Averages everything but batch and the first axis after it, then classifies."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).flatten(2).mean(2))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) / shape[-1] ** 0.5


def classes(count: int, of: int = 3) -> Tensor:
    return torch.randint(of, (count,))


def linear() -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    layers = {name: (f"{name}.weight", identity) for name in ("0", "2", "4")}
    return Case(model.double(), (random(7, 5),), classes(7), layers, kinds={"0": "linear"})


def convolution(dims: int, groups: int, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        model = Pool(kind(4, 6, 2, groups=groups, **options), 6).double()
        labels = ["body"] if groups == 1 else [f"body.group{i}" for i in range(groups)]
        layers = {n: ("body.weight", conv_group(i, groups)) for i, n in enumerate(labels)}
        layers["head"] = ("head.weight", identity)
        shape = (4, 6) if dims == 1 else (4, 5, 4) if dims == 2 else (4, 3, 4, 3)
        kinds = {labels[0]: f"conv{dims}d"}
        return Case(model, (random(3, *shape),), classes(3), layers, kinds=kinds)

    return make


def transposed_convolution(dims: int, groups: int, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
        model = Pool(kind(4, 6, 3, groups=groups, **options), 6).double()
        labels = ["body"] if groups == 1 else [f"body.group{i}" for i in range(groups)]
        layers = {n: ("body.weight", conv_transpose_group(i, groups)) for i, n in enumerate(labels)}
        kinds = {labels[0]: f"conv_transpose{dims}d"}
        return Case(model, (random(3, 4, *[3] * dims),), classes(3), layers, kinds=kinds)

    return make


def embedding() -> Case:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)).double()
    tokens = torch.randint(5, (6, 3))
    kinds = {"0": "embedding"}
    return Case(model, (tokens,), classes(6), {"0": ("0.weight", transposed)}, kinds=kinds)


def lookup() -> Case:
    params = {"table": random(5, 4), "head": random(3, 12)}

    def model(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(p["table"][tokens]).flatten(1), p["head"])

    layers = {"table": ("table", transposed), "head": ("head", identity)}
    return Case(
        model, (torch.randint(5, (6, 3)),), classes(6), layers, params=params,
        kinds={"table": "embedding"},
    )  # fmt: skip


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tied() -> Case:
    layers = {"embed": ("embed.weight", identity), "mix": ("mix.weight", identity)}
    return Case(
        Tied().double(), (torch.randint(6, (4, 5)),), torch.randint(6, (4, 5)), layers,
        loss=token_loss, kinds={"embed": "embedding+linear"},
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)
        self.other = options.get("kdim")

    def forward(self, x: Tensor) -> Tensor:
        memory = x if self.other is None else x[..., : self.other]
        return self.head(self.attn(x, memory, memory, need_weights=False)[0].mean(1))


def attention() -> Case:
    layers = {f"attn.in_proj.{n}": ("attn.in_proj_weight", third(i)) for i, n in enumerate("qkv")}
    layers["attn.out_proj"] = ("attn.out_proj.weight", identity)
    kinds = {"attn.in_proj.q": "attention", "attn.out_proj": "attention"}
    return Case(Attention().double(), (random(3, 4, 8),), classes(3), layers, kinds=kinds)


def separate_attention() -> Case:
    layers = {f"attn.{n}_proj": (f"attn.{n}_proj_weight", identity) for n in "qkv"}
    return Case(Attention(kdim=5, vdim=5).double(), (random(3, 4, 8),), classes(3), layers)


def functions() -> Case:
    """Every way to write a product: Conv1D-style addmm, ``x @ W``, ``W @ x``, ``x @ W.T``, einsum."""
    params = {
        "addmm": random(5, 6), "bias": random(6), "right": random(6, 4), "left": random(4, 4),
        "flipped.weight": random(5, 4), "summed": random(3, 2, 5), "linear_weight": random(3, 3),
    }  # fmt: skip

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        x = torch.tanh(torch.addmm(p["bias"], x, p["addmm"]))
        x = torch.tanh(x @ p["right"])
        x = torch.tanh((p["left"] @ x.T).T)
        x = torch.tanh(x @ p["flipped.weight"].T.contiguous())
        x = torch.tanh(torch.einsum("oji,bi->boj", p["summed"], x)).sum(2)
        return F.linear(x, p["linear_weight"].to(torch.float64))

    layers: dict[str, tuple[str, Matrix]] = {
        "addmm": ("addmm", transposed), "right": ("right", transposed), "left": ("left", identity),
        "flipped": ("flipped.weight", identity),
        "summed": ("summed", lambda w: w.flatten(0, 1)), "linear": ("linear_weight", identity),
    }  # fmt: skip
    kinds = {"addmm": "linear", "summed": "einsum"}
    return Case(model, (random(7, 5),), classes(7), layers, params=params, kinds=kinds)


def experts() -> Case:
    params = {"up": random(2, 5, 4), "down": random(2, 3, 4)}

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.bmm(x.expand(2, -1, -1), p["up"]))
        return torch.einsum("ebi,eoi->ebo", hidden, p["down"]).sum(0)

    layers = {f"up.group{i}": ("up", expert(i, transpose=True)) for i in range(2)}
    layers |= {f"down.group{i}": ("down", expert(i)) for i in range(2)}
    return Case(model, (random(6, 5),), classes(6), layers, params=params)


def interleaved_experts() -> Case:
    """Groups along two axes that are not neighbours in the parameter."""
    params = {"up": random(2, 5, 3, 4), "down": random(3, 4, 2, 3)}

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        x = x[:, None, None, :].expand(-1, 2, 3, -1)
        hidden = torch.tanh(torch.einsum("bghi,giho->bgho", x, p["up"]))
        return (hidden[:, :, :, None] @ p["down"].permute(2, 0, 1, 3)).sum((1, 2, 3))

    def up(g: int, h: int) -> Matrix:
        return lambda w: w[g, :, h].T

    def down(g: int, h: int) -> Matrix:
        return lambda w: w[h, :, g].T

    layers = {f"{name}.group{3 * g + h}": (name, rule(g, h))
              for name, rule in (("up", up), ("down", down)) for g in (0, 1) for h in (0, 1, 2)}  # fmt: skip
    return Case(model, (random(6, 5),), classes(6), layers, params=params)


def spelled_out() -> Case:
    """Products by keyword, implicit and with ellipses, and of expanded weights."""
    params = {
        "matmul": random(5, 6), "addmm": random(6, 4), "ellipsis": random(4, 5),
        "implicit": random(5, 4), "expanded": random(4, 3),
    }  # fmt: skip

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        x = torch.tanh(torch.matmul(input=x, other=p["matmul"]))
        x = torch.tanh(torch.addmm(torch.zeros(4, dtype=x.dtype), mat1=x, mat2=p["addmm"]))
        x = torch.tanh(torch.einsum("...i, io -> ...o", x, p["ellipsis"]))
        x = torch.tanh(torch.einsum("bi,io", x, p["implicit"]))
        return torch.bmm(x.expand(2, -1, -1), p["expanded"].expand(2, -1, -1))[1]

    layers = {name: (name, transposed) for name in params}
    return Case(model, (random(7, 5),), classes(7), layers, params=params)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 3), nn.GRUCell(4, 3), nn.RNNCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(x[:, :3])
        return self.lstm(x, (state, state))[0] + self.gru(x, state) + self.rnn(x, state)


def cells() -> Case:
    names = [f"{c}.weight_{i}" for c in ("lstm", "gru", "rnn") for i in ("ih", "hh")]
    layers = {name: (name, identity) for name in names}
    return Case(Cells().double(), (random(5, 4),), classes(5), layers)


class Padded(nn.Module):
    """An encoder whose fused form, used without gradients, zeroes what is padded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padded).mean(1))


def padded_encoder() -> Case:
    padded = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    layers = {"head": ("head.weight", identity)}
    layers["encoder.layers.1.linear2"] = ("encoder.layers.1.linear2.weight", identity)
    return Case(Padded().double().eval(), (random(3, 5, 4), padded), classes(3), layers)


class Block(nn.Module):
    """A GELU and LayerNorm block with fused attention on packed weights, cut by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        q, k, v = (
            F.linear(z, w).unflatten(-1, (2, 3)).transpose(1, 2) for w in self.qkv.weight.chunk(3)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def block() -> Case:
    layers = {f"qkv.part{i}": ("qkv.weight", third(i)) for i in range(3)}
    layers |= {n: (f"{n}.weight", identity) for n in ("out", "up", "down", "head")}
    return Case(Block().double(), (random(3, 4, 6),), classes(3), layers)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def recurrent(kind: type[nn.RNNBase]) -> Callable[[], Case]:
    def make() -> Case:
        names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
        layers = {name: (name, identity) for name in names}
        return Case(Recurrent(kind).double(), (random(3, 4, 3),), classes(3), layers)

    return make


def bilinear() -> Case:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.head = nn.Bilinear(3, 4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(torch.tanh(self.pair(x, y)))

    layers = {"pair": ("pair.weight", flat_rows)}
    return Case(Two().double(), (random(6, 3), random(6, 4)), classes(6), layers)


def batch_norm() -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    model(random(8, 2, 6, 6))  # running statistics that are not trivial
    layers = {"0": ("0.weight", flat_rows), "5": ("5.weight", identity)}
    return Case(model.eval(), (random(4, 2, 6, 6),), classes(4), layers)


def channels_last() -> Case:
    model = Pool(nn.Conv2d(3, 4, 3), 4).double().to(memory_format=torch.channels_last)
    layers = {"body": ("body.weight", flat_rows)}
    return Case(model, (random(3, 3, 5, 5),), classes(3), layers)


def regression() -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2)).double()
    layers = {"0": ("0.weight", identity), "2": ("2.weight", identity)}
    return Case(model, (random(6, 4),), random(6, 2), layers, loss=F.mse_loss)


CASES: dict[str, Callable[[], Case]] = {
    "linear": linear,
    "conv1d": convolution(1, 1, stride=2, padding=1),
    "conv2d": convolution(2, 1, dilation=2, padding=1),
    "conv2d grouped": convolution(2, 2, stride=2),
    "conv3d": convolution(3, 1, padding=1),
    "conv1d grouped": convolution(1, 2, padding=1, dilation=2),
    "conv_transpose1d": transposed_convolution(1, 1, stride=2),
    "conv_transpose2d grouped": transposed_convolution(2, 2, stride=2, output_padding=1),
    "conv_transpose3d": transposed_convolution(3, 1, dilation=2),
    "embedding": embedding,
    "lookup": lookup,
    "tied": tied,
    "attention": attention,
    "separate attention": separate_attention,
    "functions": functions,
    "experts": experts,
    "interleaved experts": interleaved_experts,
    "spelled out": spelled_out,
    "cells": cells,
    "padded encoder": padded_encoder,
    "block": block,
    "lstm": recurrent(nn.LSTM),
    "gru": recurrent(nn.GRU),
    "bilinear": bilinear,
    "batch norm": batch_norm,
    "channels last": channels_last,
    "regression": regression,
}
