"""Every backend by name, in double precision, skipped with the reason where it cannot run."""

import pytest

BACKENDS = ("torch", "jax")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    pytest.importorskip(f"spectral_backends.{name}")
    if name == "jax":
        request.getfixturevalue("double_jax")
    return name
