"""Threads: as many as an operation has work for, and none that keeps a core busy by waiting.

Threads wait for each other at the end of every operation. On an idle machine that costs
microseconds; where other programs run, a thread that is waited for may be off its core for
milliseconds. Thousands of small operations then take tens of times as long on several threads as on
one. The waiting itself makes it worse: by default the threads of GNU's OpenMP, which PyTorch runs
on under Linux, keep their cores busy for three milliseconds before they sleep.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spectral_backends.torch.instruments.process_state import put_back

__all__ = ["threads_for"]

WORK_PER_THREAD = 2**26
"""Multiply-adds that keep a core busy for about two milliseconds."""

MAX_TEAMS = 4
"""Most teams of sleeping threads: more would be needed where few of many cores are used."""


@contextmanager
def threads_for(work: float) -> Iterator[None]:
    """Run operations on the CPU on as many threads as their work is worth.

    Parameters
    ----------
    work : float
        The multiply-adds of one matrix product or convolution. No more threads than before are
        used, and their number is put back afterwards.
    """
    before = torch.get_num_threads()
    threads = int(max(1.0, min(float(before), work / WORK_PER_THREAD)))
    with put_back(lambda: torch.set_num_threads(before)):
        if threads < before:
            torch.set_num_threads(threads)
        with _sleeping_at_barriers(threads):
            yield


@contextmanager
def _sleeping_at_barriers(threads: int) -> Iterator[None]:
    """Let threads that wait for others go to sleep at once, as ``OMP_WAIT_POLICY=passive`` does.

    That variable is read when PyTorch is imported. Later, GNU's OpenMP does the same while it
    manages more threads than there are cores: so other teams of threads, asleep, make up the
    number. To other implementations of OpenMP they make no difference.
    """
    sleepers: list[threading.Thread] = []
    ready, over = threading.Semaphore(0), threading.Event()

    def sleep_with_team() -> None:
        torch.ones(2**17).sum()  # enough elements to start all threads of the team
        ready.release()
        over.wait()

    def wake_up() -> None:
        over.set()
        for sleeper in sleepers:
            sleeper.join()

    with put_back(wake_up):
        for _ in range(_missing_teams(threads)):
            sleeper = threading.Thread(target=sleep_with_team, daemon=True)
            sleeper.start()
            sleepers.append(sleeper)
            ready.acquire()
        yield


def _missing_teams(threads: int) -> int:
    """Return the number of teams of this size that, with one at work, exceed the cores."""
    if sys.platform != "linux" or threads == 1:
        return 0
    missing = len(os.sched_getaffinity(0)) + 1 - threads
    teams = -(-missing // (threads - 1))  # the thread that starts a team belongs to it
    return teams if 0 < teams <= MAX_TEAMS else 0
