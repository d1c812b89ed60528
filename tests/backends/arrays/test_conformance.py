"""The conformance suite on the problems of arrays, in every library."""

import importlib
from functools import partial

import array_forms
import broken_backends
import numpy as np
import pytest

from spectral_core import testing

CLAUSES = pytest.mark.parametrize("clause", testing.clauses(), ids=str)

REFUSED = {
    "drawn factors": "arrays have no model to draw targets from",
}
"""What a problem of arrays does not offer."""


def check(clause, make, refused=REFUSED, **options):
    notes = clause.check(make, **options)
    assert len(notes) == (clause.name in refused), notes
    assert refused.get(clause.name, "") in "".join(notes)


# A measurement decides by values, which jit has not, and brings them to the host, where arrays on
# the made-up device of array-api-strict cannot go.
@pytest.mark.not_in("jit", "device")
@CLAUSES
def test_of_every_library(clause, xp):
    """NumPy and CuPy by the problems of their own, the others by that of any library."""
    own = xp.library if xp.library in ("numpy", "cupy") else "arrays"
    problem = importlib.import_module(f"spectral_backends.{own}").CurvatureProblem
    check(clause, partial(array_forms.make, array=xp.array, problem=problem))


class FactorsOfVersion01(broken_backends.Correct):
    """A backend whose factors take the names of version 0.1."""

    def kronecker_factors(self, layers, *, delta="ggn", sharing="expand"):
        return super().kronecker_factors(layers, fisher_type=delta, kfac_approx=sharing)


FACTOR_CLAUSES = ("factors", "shared positions", "drawn factors", "options", "determinism")


@pytest.mark.parametrize(
    "clause", [clause for clause in testing.clauses() if clause.name in FACTOR_CLAUSES], ids=str
)
def test_a_backend_that_takes_former_names(clause):
    assert not clause.check(partial(broken_backends.correct, problem=FactorsOfVersion01))


@CLAUSES
def test_by_differences(clause):
    """Extrapolated differences are no exact values: the suite takes the backend's tolerance."""
    make = partial(array_forms.make, method="differences")
    check(clause, make, tolerance=1e-8)


@pytest.mark.parametrize("name", ["linear network", "softmax regression"])
def test_dense_networks_have_the_values_of_closed_forms(name):
    """`DenseNetwork` knows these forms only: no squares, metrics, positions or weights."""
    form = testing.closed_forms()[name].cut([4, 3])
    problem = array_forms.make_dense(form)
    for layer, info in enumerate(problem.layers()):
        u, v = (np.eye(size)[:, :3] for size in info.shape)
        for kind in ("hessian", "ggn"):
            np.testing.assert_allclose(
                problem.curvatures(info.name, u, v, kind),
                form.curvature(layer, u, v, kind),
                rtol=1e-12,
            )
