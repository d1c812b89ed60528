"""Arguments go by their former names for one release, with a warning, on both sides of a problem."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_backends.numpy import DenseNetwork, through_dlpack
from spectral_core._renamed import FORMER_NAMES, by_new_names, renamed_arguments
from spectral_core.testing import closed_forms


class FactorsOfVersion01:
    """A problem whose methods take the names of version 0.1."""

    def __init__(self, problem):
        self.problem, self.asked = problem, []

    def __getattr__(self, name):
        return getattr(self.problem, name)

    def kronecker_factors(self, layers, *, delta="ggn", sharing="expand"):
        self.asked.append((delta, sharing))
        return self.problem.kronecker_factors(layers, fisher_type=delta, kfac_approx=sharing)

    def layer_curvatures(
        self, directions, kind="hessian", *, engine="auto", draws=64, done=(), tell=None
    ):
        self.asked.append(draws)
        tell("all layers")
        return self.problem.layer_curvatures(directions, kind, engine=engine, done=done)


def network(width=4):
    rng = np.random.default_rng(0)
    built = DenseNetwork((5, width, 3), activation="tanh", loss="squared")
    data = [(rng.normal(size=(32, 5)), rng.normal(size=(32, 3)))]
    return built.problem(built.init(), data)


def numbers(report):
    return {name: str(spectrum) for name, spectrum in report.items()}


def test_measure_takes_former_names_and_says_the_new_ones():
    now = sc.measure(
        network(), decompose=True, fisher_type="empirical", kfac_approx="reduce", mc_samples=8
    )
    with pytest.warns(DeprecationWarning) as warned:
        former = sc.measure(network(), decompose=True, delta="empirical", sharing="reduce", draws=8)
    assert numbers(former) == numbers(now)
    said = " ".join(str(each.message) for each in warned)
    for new in ("fisher_type", "kfac_approx", "mc_samples"):
        assert f"{FORMER_NAMES[new]} is now called {new}" in said
    assert all(each.filename == __file__ for each in warned), "the caller's line is named"


def test_both_names_are_refused():
    with pytest.raises(sc.InputError, match="delta: it is the former name of fisher_type"):
        sc.measure(network(), delta="ggn", fisher_type="empirical")


@pytest.mark.parametrize("wrapped", [False, True])
def test_methods_of_backends_take_former_names(wrapped):
    problem = through_dlpack(network(), np.zeros(1)) if wrapped else network()
    directions = {"0": (np.eye(4)[:, :2], np.eye(5)[:, :2])}
    heard = []
    now = list(problem.layer_curvatures(directions, mc_samples=4))
    with pytest.warns(DeprecationWarning, match=r"(draws|tell) is now called") as warned:
        former = list(problem.layer_curvatures(directions, draws=4, tell=heard.append))
    assert len(warned) == 2 and heard and np.array_equal(former[0].values, now[0].values)
    with pytest.warns(DeprecationWarning, match="sharing is now called kfac_approx"):
        former = problem.kronecker_factors(["0"], sharing="reduce")["0"]
    now = problem.kronecker_factors(["0"], kfac_approx="reduce")["0"]
    assert np.array_equal(former.output_covariance, now.output_covariance)


def test_a_problem_of_version_0_1_is_measured_by_its_own_names():
    problem = FactorsOfVersion01(network())
    options = {"decompose": True, "fisher_type": "empirical", "kfac_approx": "reduce"}
    found = sc.measure(problem, **options, mc_samples=6)
    assert numbers(found) == numbers(sc.measure(network(), **options))
    assert ("empirical", "reduce") in problem.asked and 6 in problem.asked


def test_a_closed_form_takes_former_names():
    form = closed_forms()["linear network"]
    with pytest.warns(DeprecationWarning, match="delta is now called fisher_type"):
        former = form.factors(0, delta="empirical")
    assert all(map(np.array_equal, former, form.factors(0, fisher_type="empirical")))


def test_a_former_name_is_only_that_of_an_argument_that_a_function_takes():
    @renamed_arguments
    def measured(mc_samples, tell=None):
        return mc_samples, tell

    with pytest.warns(DeprecationWarning, match="draws is now called mc_samples"):
        assert measured(draws=3, tell="aloud") == (3, "aloud")


def test_a_method_of_new_names_is_taken_as_it_is():
    def curvatures(directions, mc_samples=64, progress_callback=None):
        return directions

    assert by_new_names(curvatures) is curvatures
