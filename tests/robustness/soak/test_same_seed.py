"""The same seed gives the same report, in this process and in another, whatever ran before."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import seed_cases
from seed_cases import MAKES, NEEDS, report, reports


@pytest.mark.parametrize("backend", MAKES)
def test_same_seed_same_report(backend):
    """Here; and in another process, in the other order, where sets of strings have another order."""
    library = pytest.importorskip(NEEDS[backend])
    np.random.seed(5)
    random.seed(5)
    if NEEDS[backend] == "torch":
        library.manual_seed(5)
    ours = reports(backend, 3)
    done = subprocess.run(
        [sys.executable, seed_cases.__file__, backend],
        capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert ours.keys() == theirs.keys()
    for name, text in ours.items():
        assert text == theirs[name], name
        found = json.loads(text)
        assert found["spectra"] and not found["skipped"], name
        assert not any("no decomposition" in str(s["notes"]) for s in found["spectra"]), name


DRAWN = [("torch", "monte-carlo"), ("torch", "tangents"), ("jax", "tangents")]


@pytest.mark.parametrize("backend, name", DRAWN)
def test_another_seed_another_report(backend, name):
    """What is compared above does depend on the seed: estimates, or factors that are drawn."""
    pytest.importorskip(backend)
    make, all_options = MAKES[backend]["curved"]
    one, two = (json.loads(report(make, seed, all_options[name])) for seed in (3, 4))
    assert one["spectra"] != two["spectra"]
