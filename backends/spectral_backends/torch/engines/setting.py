"""What the engines of one problem share: its loss, its model's structure, and room to work in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from spectral_backends.torch.engines.structure import Structure
from spectral_backends.torch.objective.objective import Objective
from spectral_core.errors import InputError

__all__ = ["DataPass", "MemoryBudget", "Setting"]


class DataPass(Protocol):
    """What goes through all data once."""

    def run(self, tell: Callable[[int], None]) -> None:
        """Go through the data; `tell` hears the number of finished batches."""


PassT = TypeVar("PassT", bound=DataPass)


@dataclass
class MemoryBudget:
    """How many columns or directions go together.

    Parameters
    ----------
    chunk_size : int or None
        The number that the user set. None takes as many as fit.
    available : int
        Bytes that they may take beside the graph of one batch.
    """

    chunk_size: int | None
    available: int

    def together(self, bytes_of_one: int) -> int:
        """Return how many, of the bytes of one."""
        return self.chunk_size or max(1, self.available // max(bytes_of_one, 1))


@dataclass(frozen=True)
class Setting:
    """What an engine works with.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    structure : Structure
        The layers of the model, and what they cost.
    seed : int
        The seed of every pass.
    together : callable
        Returns how many columns or directions go together, of the bytes of one.
    precision : torch.dtype
        The narrowest type on the way from the parameters to the loss.
    """

    objective: Objective
    structure: Structure
    seed: int
    together: Callable[[int], int]
    precision: torch.dtype

    @property
    def tolerance(self) -> float:
        """Return what the second-order part of a piecewise linear layer may be: rounding."""
        return 100 * torch.finfo(self.precision).eps

    def in_forward_passes(self, work: float) -> float:
        """Return multiply-adds as a number of forward passes of the model."""
        return work / self.structure.work if self.structure.work else float("nan")

    def cast(self, values: Tensor) -> Tensor:
        """Return values in the model's dtype."""
        return values.to(self.objective.model.dtype)

    def run_pass(
        self, make: Callable[[bool], PassT], what: str, tell: Callable[[str], None]
    ) -> PassT:
        """Make a pass and run it: with the faster layout, unless the model does not allow for it.

        A model may ask for a view that only the usual layout has.

        Parameters
        ----------
        make : callable
            Makes the pass, told whether channels come last.
        what : str
            The quantity that is computed, in a few words.
        tell : callable
            Hears it with the number of the batch.
        """
        made = make(self.objective.model.device.type == "cpu")
        try:
            made.run(lambda n: tell(f"{what}, batch {n}"))
        except InputError:
            raise
        except Exception:
            made = make(False)
            made.run(lambda n: tell(f"{what}, batch {n}"))
        return made
