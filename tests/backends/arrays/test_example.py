"""The example on NumPy alone, in a process that loads no framework."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import spectral_core as sc

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "numpy_digits.py"
SCRIPT = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
loaded = {"torch", "jax", "cupy", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.parametrize("data", ["digits", "clusters"])
def test_numpy_trains_and_measures(data, request, tmp_path):
    path = tmp_path / "clusters.npz"
    if data == "digits":
        path = request.getfixturevalue("shared") / "data" / "mnist.npz"
    else:
        rng = np.random.default_rng(0)
        y = rng.integers(10, size=1200)
        x = rng.normal(size=(10, 64))[y] + rng.normal(size=(1200, 64))
        y = np.where(rng.random(1200) < 0.1, 0, y)  # or the network fits them to rounding
        np.savez(path, x_train=x, y_train=y)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(EXAMPLE), str(path)],
        capture_output=True, text=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held-out digits right" in done.stdout
    assert "gives the same curvatures" in done.stdout


def test_cupy_is_missed_with_the_command_that_installs_it():
    if find_spec("cupy"):
        pytest.skip("cupy is installed")
    with pytest.raises(sc.MissingExtraError, match=r"pip install 'spectral-core\[cupy\]'"):
        import spectral_backends.cupy  # noqa: F401
