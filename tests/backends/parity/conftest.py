"""Every backend by name, in double precision, skipped with the reason where it cannot run."""

from collections.abc import Iterator

import pytest

BACKENDS = ("torch", "jax")


@pytest.fixture
def double_jax() -> Iterator[None]:
    """Double precision in JAX, for one test."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    pytest.importorskip(f"spectral_backends.{name}")
    if name == "jax":
        request.getfixturevalue("double_jax")
    return name
