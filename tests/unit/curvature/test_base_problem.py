"""A backend for a library without autograd: the base problem and one engine.

`Multinomial` is multinomial logistic regression with its derivatives written out, in SciPy's manner
of sparse inputs. It is the recipe of CONTRIBUTING.md, and everything that the base class promises is
tested on it.
"""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

import spectral_core as sc
from spectral_core.curvature.argument_checks import check_direction_shapes
from spectral_core.curvature.base_problem import BaseProblem
from spectral_core.curvature.engine import CurvatureEngine, LayerFinding


@dataclass(frozen=True)
class Weight:
    """The one layer of the model: what the backend knows of it, and what it shows."""

    info: sc.LayerInfo
    values: np.ndarray


class WrittenOut(CurvatureEngine[Weight]):
    """Second derivatives by formula: ``h_k = mean_i (v_kᵀx_i)² u_kᵀ (diag p_i − p_i p_iᵀ) u_k``."""

    name = "written-out"
    independent = True

    def __init__(self, inputs, probabilities):
        self._inputs, self._p = inputs, probabilities

    def price(self, layers, request):
        return 1.0

    def run(self, layers, request):
        for layer in request.todo(layers):
            request.progress_callback(layer.info.name)
            u, v = request.directions[layer.info.name]
            spread = self._p @ u**2 - (self._p @ u) ** 2
            values = ((self._inputs @ v) ** 2 * spread).mean(axis=0)
            yield LayerFinding(layer.info.name, values, ggn=values)


class Multinomial(BaseProblem[Weight]):
    """The mean cross-entropy of ``softmax(W x)`` over sparse samples."""

    def __init__(self, weight, inputs, labels):
        self._inputs, self._labels = inputs, labels
        logits = inputs @ weight.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        self._p = p / p.sum(axis=1, keepdims=True)
        info = sc.LayerInfo("weight", "linear", weight.shape)
        self._layers, self._skipped = {"weight": Weight(info, weight)}, {}
        self._engines = (WrittenOut(inputs, self._p),)

    def describe(self):
        loss = -np.log(self._p[np.arange(len(self._labels)), self._labels]).mean()
        return {"backend": "scipy", "dtype": "float64", "loss": float(loss)}

    def _directions(self, layer, u, v):
        check_direction_shapes(layer.info, u.shape, v.shape)
        return np.asarray(u, np.float64), np.asarray(v, np.float64)

    def _residuals(self):
        return self._p - np.eye(self._p.shape[1])[self._labels]

    def _gradients(self, layers):
        return [(self._inputs.T @ self._residuals()).T / len(self._labels) for _ in layers]

    def _factors(self, layers, options):
        count = len(self._labels)
        delta = np.diag(self._p.mean(axis=0)) - self._p.T @ self._p / count
        if options.fisher_type == "empirical":
            delta = self._residuals().T @ self._residuals() / count
        inputs = (self._inputs.T @ self._inputs).toarray() / count
        return {layer.info.name: sc.KroneckerFactors(delta, inputs) for layer in layers}


def parts():
    rng = np.random.default_rng(0)
    inputs = sparse.random(60, 9, density=0.4, random_state=1, format="csr")
    return rng.normal(size=(6, 9)) / 2, inputs, rng.integers(6, size=60)


@pytest.fixture
def problem():
    return Multinomial(*parts())


def test_its_report_is_that_of_a_backend_with_autograd(problem):
    torch = pytest.importorskip("torch")
    from spectral_backends.torch import CurvatureProblem

    weight, inputs, labels = parts()
    model = torch.nn.Linear(9, 6, bias=False).double()
    model.weight.data = torch.from_numpy(weight)
    data = [(torch.from_numpy(inputs.toarray()), torch.from_numpy(labels))]
    other = CurvatureProblem(model, torch.nn.CrossEntropyLoss(), data)
    own, expected = (sc.measure(each, top_k=5, decompose=True) for each in (problem, other))
    found, wanted = own["weight"], expected["weight"]
    np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-12)
    np.testing.assert_allclose(found.curvature, wanted.curvature, rtol=1e-10)
    for term in ("beta", "phi", "kappa"):
        mine, theirs = (getattr(each.decomposition, term) for each in (found, wanted))
        np.testing.assert_allclose(mine.exponent, theirs.exponent, rtol=1e-8, atol=1e-8)


def test_its_certificate_names_its_engine(problem):
    report = sc.measure(problem, top_k=4)
    assert report["weight"].certificate.engine == "written-out"
    assert problem.curvature_engine == "written-out"
    named = sc.measure(problem, top_k=4, engine="written-out")
    assert named["weight"].curvature.tobytes() == report["weight"].curvature.tobytes()
    with pytest.raises(sc.InputError, match="'monte-carlo' or 'written-out'"):
        sc.measure(problem, engine="by hand")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda p: p.gradients(["head"]), "layer 'head': there is none of that name"),
        (lambda p: p.curvatures("weight", np.ones((6, 2)), np.ones((8, 2))), "(9, K)"),
        (
            lambda p: p.curvatures("weight", np.ones((6, 1)), np.ones((9, 1)), "fisher"),
            "kind: 'fisher'",
        ),
        (lambda p: p.layer_curvatures({}, engine="columns"), "'written-out'"),
        (lambda p: p.kronecker_factors(["weight"], fisher_type="fisher"), "fisher_type: 'fisher'"),
    ],
)
def test_what_the_base_class_checks(problem, call, told):
    with pytest.raises(sc.InputError) as error:
        call(problem)
    assert told in str(error.value)


def test_one_layer_and_many_are_computed_by_the_same_engine(problem):
    u, v = np.eye(6, 3), np.eye(9, 3)
    (found,) = problem.layer_curvatures({"weight": (u, v)})
    assert found.values.tobytes() == problem.curvatures("weight", u, v).tobytes()
    assert list(problem.layer_curvatures({"weight": (u, v)}, done=["weight"])) == []
    again = pickle.loads(pickle.dumps(problem))
    assert again.curvatures("weight", u, v).tobytes() == found.values.tobytes()
