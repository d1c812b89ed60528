"""The JAX tests measure in double precision, and are left out where there is no JAX."""

import os
from importlib.util import find_spec

import pytest

if find_spec("jax") is None:
    collect_ignore_glob = ["*.py"]

# Read when JAX is imported: the networks are small, and compiling them is most of the work.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(autouse=True)
def double_precision(double_jax: None) -> None:
    """Every test of this folder."""
