"""Processes of `jax.distributed` that hold parts of the data, or of arrays."""

import socket
from pathlib import Path

import pytest
from side_by_side import run_side_by_side


@pytest.fixture(scope="module")
def processes():
    """What two processes on this machine were told."""
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return run_side_by_side(script, [str(port)], JAX_PLATFORMS="cpu")


def test_own_batches_are_told(processes):
    for number, found in enumerate(processes):
        (text,) = found["own batches"]
        assert text.startswith(f"batches: process {number} of 2 measures what it is given as if")
        assert f"process {1 - number} holds other data of the same model (loss " in text


@pytest.mark.parametrize("what", ["the same batches", "a checkpoint each", "alone"])
def test_what_is_whole_is_not(processes, what):
    assert [found[what] for found in processes] == [[], []]


@pytest.mark.parametrize("what", ["params", "batches"])
def test_arrays_out_of_sight_are_refused(processes, what):
    for found in processes:
        text = found[f"{what} of all"]
        assert text.startswith(f"{what}: ") and "lies on devices of 2 processes" in text
        assert "process_allgather" in text
