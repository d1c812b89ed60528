"""Who races: AdamW, SGD, Muon, and Spectral Newton with every α, δ and scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_adapters.routing.torch_parameters import route_parameters
from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem

ALPHAS: tuple[float | str, ...] = (0.75, 1.0, 1.25, 1.5, 2.0, "per-type", "auto")
DAMPINGS = (0.1, 0.03, 0.01, 0.001)
FIRST_DAMPING = 0.01
SMALLEST_DAMPING, SMALLEST_ALPHAS = 1e-4, (1.5, 2.0)  # whether less and less damping is better
SCALED_ALPHAS, SCALED_DAMPINGS = (1.0, 1.5, 2.0), (0.1, 0.01)  # with scale="spectral"
# What the proxies recommend for all tasks alike: ahead of Muon in both, and of the cheap ones.
RECOMMENDED = "spectral α=2.0 δ=0.001 rms"
# "spectral" steps of a matrix of side 64–256 are about a third of "rms" steps at one learning rate.
SPECTRAL_RATIO = 3.0


@dataclass(frozen=True)
class Contender:
    """An optimizer without its learning rate and weight decay.

    ``tier`` orders the race: 1 are the peers and one δ for each α, 2 the other δ, 3 the other
    scale. ``lr`` is the middle of the learning rates that are tried.
    """

    name: str
    rule: str
    tier: int
    lr: float
    weight_decays: tuple[float, ...] = (0.1, 0.0, 1.0)  # the first while the learning rate is found
    alpha: float | str | None = None
    damping: float | None = None
    scale: str = ""

    def optimizer(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float,
        problem: Callable[[], CurvatureProblem],
        measure_every: int,
    ) -> Any:
        """Return what has `param_groups`, `step` and `zero_grad`."""
        common = {"lr": lr, "weight_decay": weight_decay}
        if self.rule == "adamw":
            return torch.optim.AdamW(model.parameters(), **common)
        if self.rule == "sgd":
            return torch.optim.SGD(model.parameters(), momentum=0.9, **common)
        if self.rule == "muon":
            return MuonAndAdamW(model, **common)
        assert self.alpha is not None and self.damping is not None
        rest = {} if self.scale == "rms" else {"adamw": {"lr": lr / SPECTRAL_RATIO}}
        measured = {"problem": problem, "measure_every": measure_every}
        return SpectralNewton(
            model, alpha=self.alpha, damping=self.damping, scale=self.scale, **common, **rest,
            **(measured if self.alpha == "auto" else {}),
        )  # fmt: skip


class MuonAndAdamW:
    """`torch.optim.Muon` on the matrices that `SpectralNewton` would take, AdamW on the rest.

    Muon takes tensors with two axes only, so it gets views of the convolutions, (outputs, inputs ·
    kernel): the same matrices. Its steps have the size of AdamW's, so one learning rate serves.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        routes = route_parameters(model)
        self._matrices = [r.parameter for r in routes if r.rule == "spectral"]
        if odd := [r.name for r in routes if r.rule == "spectral" and r.matrices not in PLAIN]:
            raise ValueError(f"{odd}: Muon cannot be given these matrices as views.")
        self._views = [nn.Parameter(p.detach().flatten(1)) for p in self._matrices]
        common: dict[str, float] = {"lr": lr, "weight_decay": weight_decay}
        self._parts: list[Any] = [
            torch.optim.Muon(self._views, adjust_lr_fn="match_rms_adamw", **common),
            torch.optim.AdamW([r.parameter for r in routes if r.rule == "adamw"], **common),
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        for view, parameter in zip(self._views, self._matrices, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for parameter in self._matrices:
            parameter.grad = None
        self._parts[1].zero_grad()


PLAIN = ("matrix", "conv")


def contenders(alphas: tuple[float | str, ...] = ALPHAS) -> list[Contender]:
    """Return all, in the order in which they take turns."""
    peers = [
        Contender("adamw", "adamw", 1, 6e-3),
        Contender("sgd", "sgd", 1, 0.3, (5e-4, 0.0, 5e-3)),
        Contender("muon", "muon", 1, 6e-3),
    ]
    ours = [
        Contender(
            f"spectral α={alpha} δ={damping} {scale}", "spectral",
            3 if scale != "rms" else 1 if damping == FIRST_DAMPING else 2,
            6e-3 if scale == "rms" else 6e-3 * SPECTRAL_RATIO,
            alpha=alpha, damping=damping, scale=scale,
        )
        for scale in ("rms", "spectral")
        for damping in (*DAMPINGS, SMALLEST_DAMPING)
        for alpha in alphas
        if _takes_part(alpha, damping, scale)
    ]  # fmt: skip
    return sorted(peers + ours, key=lambda contender: contender.tier)


def _takes_part(alpha: float | str, damping: float, scale: str) -> bool:
    if scale != "rms":
        return alpha in SCALED_ALPHAS and damping in SCALED_DAMPINGS
    return damping in DAMPINGS or alpha in SMALLEST_ALPHAS


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: 5 % of the steps up, then half a cosine to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def set_learning_rate(groups: list[dict[str, Any]], factor: float) -> None:
    """Set each group's learning rate to a multiple of what it began with."""
    for group in groups:
        first: float | Tensor = group.setdefault("first_lr", group["lr"])
        group["lr"] = first * factor
