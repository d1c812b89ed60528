"""A measurement that is killed: forked from a warm process, so that fifty take no fifty imports.

Run as a script with a folder, a seed and a number of moments, it prints as JSON how many layers
were finished when each run was killed, and whether each report came out byte by byte the same.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

N_LAYERS = 8


def problem():
    torch.manual_seed(0)
    layers = [module for _ in range(N_LAYERS - 1) for module in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(12, 8)).double()
    x, y = torch.randn(64, 12, dtype=torch.float64), torch.randint(8, (64,))
    return CurvatureProblem(
        model, nn.functional.cross_entropy, [(x[:40], y[:40]), (x[40:], y[40:])]
    )


def measure(folder):
    """Resume and save, as the command line does."""
    options = {"top_k": 6, "engine": "double-backward", "resume": folder / "run.journal"}
    sc.measure(problem(), **options).save(folder / "report.json")


def forked(folder):
    """Start a measurement in a child, and return when it is ready to begin."""
    folder.mkdir(exist_ok=True)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(tell, b"!")
            measure(folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return child


def finished_layers(folder):
    journal = folder / "run.journal"
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def main(folder, seed, moments):
    measure(folder / "warm")  # what is imported late is imported now
    start = time.monotonic()
    assert os.waitpid(forked(folder / "whole"), 0)[1] == 0
    duration = time.monotonic() - start
    expected = (folder / "whole" / "report.json").read_bytes()
    rng, results = random.Random(seed), []
    for number in range(moments):
        own = folder / str(number)
        child = forked(own)
        time.sleep(rng.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        layers, saved = finished_layers(own), (own / "report.json").exists()
        resumed = os.waitstatus_to_exitcode(os.waitpid(forked(own), 0)[1])
        same = resumed == 0 and (own / "report.json").read_bytes() == expected
        results.append({"killed": killed, "layers": layers, "saved": saved, "same": same})
    print(json.dumps({"duration": duration, "runs": results}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
