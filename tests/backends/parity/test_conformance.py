"""The conformance suite on the problems of PyTorch and JAX."""

import framework_forms
import pytest

from spectral_core import testing

MAKE = {"torch": framework_forms.make_torch, "jax": framework_forms.make_jax}


@pytest.mark.parametrize("clause", testing.clauses(), ids=str)
def test_conformance(backend, clause):
    assert clause.check(MAKE[backend]) == ()  # everything is offered
