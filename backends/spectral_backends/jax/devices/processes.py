"""The processes of `jax.distributed`: what each can see, and the notes that they leave."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from spectral_core.curvature.processes import Board
from spectral_core.errors import InputError

__all__ = ["check_in_sight", "find_board", "identity_of"]


def find_board() -> Board | None:
    """Return the board on which processes can leave notes, or None if there is only one."""
    if jax.process_count() == 1:
        return None
    # The store by which the processes found each other. It has no public name. Unlike a collective
    # it makes no process wait.
    client: Any = jax._src.distributed.global_state.client

    def leave(key: str, note: str) -> None:
        if client is None:
            raise RuntimeError("jax.distributed has no client")
        client.key_value_set(f"spectral_core/{key}", note)

    def read(key: str) -> str | None:
        try:
            found: str = client.key_value_try_get(f"spectral_core/{key}")
        except jax.errors.JaxRuntimeError:  # none yet
            return None
        return found

    return Board("process", jax.process_index(), jax.process_count(), leave, read)


def identity_of(arrays: Iterable[jax.Array]) -> str:
    """Return a key of the values of all arrays together, to the bit."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]


def check_in_sight(name: str, array: Any) -> None:
    """Raise `InputError` for an array of which another process holds a part."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise InputError(
            f"{name} lies on devices of {jax.process_count()} processes, and a measurement has to "
            "see all of it; bring it to each with "
            "jax.experimental.multihost_utils.process_allgather(…, tiled=True), or measure in one "
            "process that has all devices."
        )
