"""Notes between the processes of a run, to detect that they measure one model on different data.

Nobody waits for a process that does not come: there are no collectives, only notes in a store that
every process can write to and read. A measurement on one rank alone is a sane use.
"""

import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from spectral_core.errors import first_line

__all__ = ["Board", "OtherData", "gather"]

LOSS_ROUNDING = 1e-5
"""Of a mean loss of the same data, relative, on devices of different kinds."""


@dataclass(frozen=True)
class Board:
    """A board on which the processes of a run leave notes for each other.

    Parameters
    ----------
    noun : str
        The word of a framework for a process: ``"rank"`` in PyTorch, ``"process"`` in JAX.
    rank, size : int
        The number of this process, and the number of processes.
    leave : callable
        A function: ``leave(key, note)`` writes a note, and raises `RuntimeError` if it cannot.
    read : callable
        A function: ``read(key)`` returns a note, or None as long as there is none.
    """

    noun: str
    rank: int
    size: int
    leave: Callable[[str, str], None]
    read: Callable[[str], str | None]


def gather(
    board: Board, key: str, note: str, patience: float = 0.0, but: Collection[int] = ()
) -> dict[int, str]:
    """Leave a note, and return by rank those left under the same key.

    Parameters
    ----------
    board : Board
        The board that holds the notes.
    key : str
        The key of the notes. Each process uses a key once.
    note : str
        The note of this process.
    patience : float
        The number of seconds to wait until all notes are there.
    but : collection of int
        The ranks that are not waited for.
    """
    board.leave(f"{key}/{board.rank}", note)
    deadline = time.monotonic() + patience
    while True:
        notes = _present(board, key)
        if len({*notes, *but}) == board.size or time.monotonic() >= deadline:
            return notes
        time.sleep(0.02)


class OtherData:
    """A check for other processes that measure the same model on other data as if it were all.

    Parameters
    ----------
    board : Board or None
        The board of the run, or None if there is one process only.
    model : callable
        A function that returns what identifies the parameters of the model, to the bit.
    loss : float
        The mean loss of this process's data.
    n_terms : float or None
        The number of terms of that loss, if it is known.
    """

    def __init__(
        self, board: Board | None, model: Callable[[], str], loss: float, n_terms: float | None
    ) -> None:
        self._board, self._own = board, (loss, n_terms)
        if board is None:
            return
        try:
            identity = model()
            # Processes that work side by side make their problems in the same order.
            self._key = f"problem/{identity}/{_made[identity]}"
            _made[identity] += 1
            gather(board, self._key, json.dumps(self._own))
        except RuntimeError as error:
            self._warn(f"it cannot be told whether others hold other data ({first_line(error)})")

    def look(self) -> None:
        """Warn, once, if another process has left a note of other data; notes may come later."""
        if self._board is None:
            return
        for rank, note in _present(self._board, self._key).items():
            loss, n_terms = json.loads(note)
            same = math.isclose(loss, self._own[0], rel_tol=LOSS_ROUNDING, abs_tol=1e-12)
            if not same or n_terms != self._own[1]:
                self._warn(
                    f"{self._board.noun} {rank} holds other data of the same model (loss "
                    f"{self._own[0]:.6g}{_of(self._own[1])} here, {loss:.6g}{_of(n_terms)} there)"
                )
                return

    def _warn(self, seen: str) -> None:
        board, self._board = self._board, None
        assert board is not None
        warnings.warn(
            f"batches: {board.noun} {board.rank} of {board.size} measures what it is given as if "
            f"it were the whole, and {seen}. Give every {board.noun} the same batches, or measure "
            f"on one {board.noun} with all of them. If each is to report its own part, filter this "
            "warning.",
            UserWarning,
            stacklevel=4,
        )


_made: Counter[str] = Counter()


def _present(board: Board, key: str) -> dict[int, str]:
    notes = {rank: board.read(f"{key}/{rank}") for rank in range(board.size)}
    return {rank: note for rank, note in notes.items() if note is not None}


def _of(n_terms: float | None) -> str:
    return "" if n_terms is None else f" of {n_terms:g} terms"
