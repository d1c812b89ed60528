"""Processes of `jax.distributed` that hold parts of the data, or of arrays."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def processes():
    """What two processes on this machine were told."""
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, script, str(number), "2", str(port)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        done = [process.communicate(timeout=180) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0, 0], done[0][1] + done[1][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in done]


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
