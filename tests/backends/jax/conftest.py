"""The JAX tests measure in double precision, and are left out where there is no JAX."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("jax") is None:
    collect_ignore_glob = ["*.py"]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Compute in float64, with little time spent on compiling."""
    import jax

    settings = {"jax_enable_x64": True, "jax_disable_most_optimizations": True}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
