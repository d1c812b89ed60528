"""Use an installed distribution from outside the checkout, with the core dependencies alone."""

import importlib.util
import subprocess
import sys

import numpy as np

import spectral_core as sc

assert "site-packages" in sc.__file__, sc.__file__
for name in ("backends", "adapters", "tests", "docs"):
    assert importlib.util.find_spec(name) is None, name
for name in ("spectral_backends", "spectral_adapters"):
    assert importlib.util.find_spec(name) is not None, name

sigma = np.arange(1.0, 21.0) ** -0.8
triangle = sc.exponent_triangle(sigma, sigma**1.9)
assert abs(triangle.alpha.exponent - 1.9) < 1e-12 and abs(triangle.closure) < 1e-12

# Without the extras, the command says which one to install.
done = subprocess.run(
    [sys.executable, "-m", "spectral_core", "--version"], capture_output=True, text=True
)
assert done.returncode == 1 and "pip install 'spectral-core[cli]'" in done.stderr, done
print(f"spectral-core {sc.__version__} works from {sc.__file__}")
