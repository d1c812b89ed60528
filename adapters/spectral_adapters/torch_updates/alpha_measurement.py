"""α measured while a model of PyTorch trains."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectral_adapters.routing.alphas import measured_alphas
from spectral_adapters.torch_updates.replicas import Found, Replicas
from spectral_core import CurvatureProblem, InputError, SpectralError, measure
from spectral_core.matrices.names import match_layers

__all__ = ["AlphaMeasurement"]


@dataclass
class AlphaMeasurement:
    """Measures α of a model's layers while it trains, and leaves it as it is.

    Parameters
    ----------
    model : nn.Module
        The model. It is in eval mode during a measurement.
    problem : callable
        A function that returns a `CurvatureProblem` of the model on a small batch.
    every : int
        The number of steps from one measurement to the next. The first is before the first step.
    options : mapping
        The options of `spectral_core.measure`. The curvature is that of Gauss-Newton unless they
        say otherwise, as a Hessian far from a minimum has few positive curvatures to fit.
    """

    model: nn.Module
    problem: Callable[[], CurvatureProblem]
    every: int
    options: Mapping[str, Any]
    _replicas: Replicas = field(default_factory=Replicas, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.problem):
            raise InputError(
                "problem: alpha='auto' needs a function without arguments that returns a "
                "CurvatureProblem of the model on a small batch."
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"measure_every: {self.every!r} is not a number of steps; pass 500.")

    def run(self, parameters: Mapping[str, Tensor]) -> Found:
        """Return α of parameters by name, or None where it could not be measured.

        Ranks of a process group that train the same parameters get the same.
        """
        return self._replicas.agree(self._measured(list(parameters)), parameters)

    def _measured(self, names: list[str]) -> Found:
        with torch.enable_grad(), _evaluating(self.model):
            try:
                options: dict[str, Any] = {"progress": False, "curvature": "ggn", **self.options}
                problem = self.problem()
                layers = [layer.name for layer in problem.layers()]
                matches = match_layers(names, layers, [()] * len(names)).layers
                wanted = {match.name for own in matches for match in own}
                report = measure(problem, lambda layer: layer.name in wanted, **options)
            except SpectralError as error:
                text = f"α could not be measured and stays as it is: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=5)
                return dict.fromkeys(names, (None, "the measurement failed"))
        return measured_alphas(report, names)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
