"""A lock for everything that changes settings of the whole process, in whatever thread."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["exclusively"]

_lock = threading.RLock()


@contextmanager
def exclusively() -> Iterator[None]:
    """Run while no other thread is in here; the same thread may enter again.

    A pass of a measurement seeds the random generators of the process, sets its filters of warnings
    or its precision, and lends a module other parameters. Two at once would each get the other's.
    """
    with _lock:
        yield


def _renew() -> None:
    # A forked child does not have the thread that holds the lock.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
