"""The state that the engines of one problem share: loss, structure of the model, memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from spectral_backends.torch.engines.structure import Structure
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.objective import Objective
from spectral_core.errors import InputError

__all__ = ["DataPass", "MemoryBudget", "Setting"]


class DataPass(Protocol):
    """A computation that goes through all data once."""

    def run(self, progress_callback: Callable[[int], None]) -> None:
        """Go through the data; `progress_callback` hears the number of finished batches."""


PassT = TypeVar("PassT", bound=DataPass)


@dataclass
class MemoryBudget:
    """The number of columns or directions that go together.

    Parameters
    ----------
    chunk_size : int or None
        The number that the user set. None takes as many as fit.
    available : int
        The bytes that they may take beside the graph of one batch.
    """

    chunk_size: int | None
    available: int

    def together(self, bytes_of_one: int) -> int:
        """Return the number that go together, given the bytes of one."""
        return self.chunk_size or max(1, self.available // max(bytes_of_one, 1))


@dataclass(frozen=True)
class Setting:
    """The state that an engine works with.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    structure : Structure
        The layers of the model, and what they cost.
    seed : int
        The seed of every pass.
    together : callable
        ``together(bytes_of_one)`` returns the number of columns or directions that go together.
    precision : torch.dtype
        The narrowest type on the way from the parameters to the loss.
    second_order : callable
        ``second_order(layers)`` returns the second-order part of each layer on random directions,
        see `probe_second_order`.
    """

    objective: Objective
    structure: Structure
    seed: int
    together: Callable[[int], int]
    precision: torch.dtype
    second_order: Callable[[Sequence[Layer]], dict[str, float]]

    @property
    def tolerance(self) -> float:
        """Return the largest second-order part of a piecewise linear layer, which is rounding."""
        return 100 * torch.finfo(self.precision).eps

    def in_forward_passes(self, work: float) -> float:
        """Return multiply-adds as a number of forward passes of the model."""
        return work / self.structure.work if self.structure.work else float("nan")

    def cast(self, values: Tensor) -> Tensor:
        """Return values in the model's dtype."""
        return values.to(self.objective.model.dtype)

    def run_pass(
        self, make: Callable[[bool], PassT], what: str, progress_callback: Callable[[str], None]
    ) -> PassT:
        """Make a pass and run it, with the faster layout if the model allows for it.

        A model may ask for a view that only the usual layout has.

        Parameters
        ----------
        make : callable
            ``make(channels_last)`` returns the pass.
        what : str
            The quantity that is computed, in a few words.
        progress_callback : callable
            A function that receives `what` with the number of the batch.
        """
        made = make(self.objective.model.device.type == "cpu")
        try:
            made.run(lambda n: progress_callback(f"{what}, batch {n}"))
        except InputError:
            raise
        except Exception:
            made = make(False)
            made.run(lambda n: progress_callback(f"{what}, batch {n}"))
        return made
