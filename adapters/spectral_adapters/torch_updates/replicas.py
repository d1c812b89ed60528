"""Ranks that train one model keep one α, whatever batches each measured it on."""

import json
import warnings
from collections.abc import Mapping
from itertools import count

from torch import Tensor

from spectral_backends.torch.distributed.ranks import bits_of, find_board
from spectral_core.curvature.processes import Board, gather

__all__ = ["Found", "Replicas"]

Found = dict[str, tuple[float | None, str]]
"""The α of each parameter, or None if it could not be measured, with the reason."""

PATIENCE = 300.0
"""The seconds to wait for the measurement of a slower rank."""

ROUNDING = 1e-3
"""The rounding of an α measured on the same batches, on devices that add in another order."""

_Note = dict[str, tuple[str, float | None, str]]
"""The state to the bit, α and the reason of each parameter."""

_exchanges = count()


class Replicas:
    """The ranks that hold the same matrices with the same gradients, and so must step alike.

    Under DistributedDataParallel all ranks hold all matrices. Ranks with experts or stages of their
    own share some, and ranks that train separate models share none. If each rank took an α of its
    own, equal matrices would drift apart.
    """

    def __init__(self) -> None:
        self._alone = self._told = False
        self._silent: set[int] = set()
        self._last = ""  # exchange

    def agree(self, found: Found, parameters: Mapping[str, Tensor]) -> Found:
        """Return for each parameter the finding of the lowest rank that holds the same.

        Parameters
        ----------
        found : dict of str to tuple
            The exponents that this rank found.
        parameters : mapping of str to Tensor
            The parameters of the same names. Their gradients are those of the step that follows.

        Warns
        -----
        UserWarning
            If ranks that hold the same parameters found another α, or if ranks do not answer. It is
            given once.
        """
        board = None if self._alone else find_board()
        if board is None:
            return found
        states = _states(parameters)
        notes = self._exchanged(board, {name: (states[name], *found[name]) for name in found})
        agreed, shared = {}, False
        for name, state in states.items():
            same = {
                rank: (alpha, reason)
                for rank, note in sorted(notes.items())
                for held, alpha, reason in [note.get(name, ("", None, ""))]
                if held == state
            }
            agreed[name] = next(iter(same.values()))
            shared |= len(same) > 1
            self._tell_of_others(name, {rank: alpha for rank, (alpha, _) in same.items()})
        self._alone = len(notes) == board.size and not shared
        return agreed

    def _exchanged(self, board: Board, own: _Note) -> dict[int, _Note]:
        """Return the notes of this rank and of all that answer."""
        key, last = f"alpha/{next(_exchanges)}", self._last
        self._last = key
        try:
            # Some are none that train; one that was only late has left its note since.
            self._silent = {r for r in self._silent if board.read(f"{last}/{r}") is None}
            notes = gather(board, key, json.dumps(own), PATIENCE, self._silent)
            if len(notes) == board.size and last:  # all have read the notes before these
                board.leave(f"{last}/{board.rank}", "")
            missing = sorted(set(range(board.size)) - notes.keys() - self._silent)
            self._silent |= set(missing)
            named = ", ".join(map(str, missing))
            why = f"no answer in {PATIENCE:g} s of: {named}" if missing else ""
        except RuntimeError as error:
            notes, why = {}, str(error).partition("\n")[0]
        if why:
            warnings.warn(
                f"alpha: α of rank {board.rank} of {board.size} could not be compared with that of "
                f"others ({why}). If they train the same model on other batches, parameters drift "
                "apart: measure on one rank, and pass the saved report on all as alpha=.",
                UserWarning,
                stacklevel=6,
            )
        return {rank: json.loads(note) for rank, note in notes.items()} | {board.rank: own}

    def _tell_of_others(self, name: str, alphas: Mapping[int, float | None]) -> None:
        first, *others = sorted(alphas)
        a = alphas[first]
        for rank in others:
            b = alphas[rank]
            if self._told or a == b or (a is not None and b is not None and abs(a - b) <= ROUNDING):
                continue
            self._told = True
            warnings.warn(
                f"alpha: {name!r} has α {_shown(a)} on rank {first} and {_shown(b)} on rank "
                f"{rank}, measured on other batches of the same model; all take that of rank "
                f"{first}, as parameters would drift apart. Have problem= return the same batches "
                "on every rank, or pass a saved report as alpha=.",
                UserWarning,
                stacklevel=6,
            )


def _states(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a key of each parameter with its gradient, to the bit."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    values = dict(zip(parameters, bits_of(parameters.values()), strict=True))
    slopes = dict(zip(gradients, bits_of(gradients.values()), strict=True))
    return {name: f"{value} {slopes.get(name, '')}" for name, value in values.items()}


def _shown(alpha: float | None) -> str:
    return "not measured" if alpha is None else f"{alpha:.4g}"
