"""What is asked of a problem for its Kronecker factors, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.curvature.factor_options import FactorOptions, check_factor_size, factor_notes
from spectral_core.curvature.problem import KroneckerFactors, LayerInfo
from spectral_core.measuring import factor_source
from spectral_core.measuring.factor_source import FactorSource
from spectral_core.measuring.subsampling.grouped_problem import GroupedFactors


class Given:
    """A problem of given factors, by layer; each call is remembered."""

    def __init__(self, factors):
        self.factors, self.asked = factors, []

    def kronecker_factors(self, layers, *, fisher_type, kfac_approx):
        self.asked.append((list(layers), fisher_type, kfac_approx))
        for name in layers:
            if isinstance(self.factors[name], str):
                raise sc.LayerError(name, self.factors[name])
        return {name: self.factors[name] for name in layers}


def square(name, size=3):
    return LayerInfo(name, "linear", (size, size))


def diagonal(*values, noise=None, notes=()):
    matrix = np.diag(np.array(values, float))
    return KroneckerFactors(matrix, np.eye(len(values)) * [9.0, 4.0, 1.0], noise, notes)


def source(problem, layers, k=2, dtype=np.float64):
    directions = {
        layer.name: tuple(np.eye(side, k, dtype=dtype) for side in layer.shape) for layer in layers
    }
    return FactorSource(problem, layers, directions, "fisher-mc", "reduce")


def test_one_pass_serves_several_layers_and_another_those_that_remain():
    """A layer without factors is left out of the next try, and refused when it is asked for."""
    layers = [square(name) for name in "abc"]
    factors = {"a": diagonal(3, 2, 1), "b": "has none.", "c": diagonal(6, 2, 1, notes=("so",))}
    problem = Given(factors)
    found = source(problem, layers)
    found.prepare()
    how = ("fisher-mc", "reduce")
    assert problem.asked == [(["a", "b", "c"], *how), (["a", "c"], *how)]
    np.testing.assert_allclose(found.take(layers[0]).alignment.kron, [27, 8])
    with pytest.raises(sc.LayerError, match="layer 'b': has none."):
        found.take(layers[1])
    last = found.take(layers[2])
    assert last.notes == ("so",) and last.alignment.kron.tolist() == [54, 8]
    assert len(problem.asked) == 2
    source(Given({}), []).prepare()


def test_as_many_layers_at_once_as_memory_is_for(monkeypatch):
    """In order; one that is too large for that goes alone."""
    monkeypatch.setattr(factor_source, "MAX_ELEMENTS", 36)
    shapes = {
        "a": (3, 3),
        "b": (3, 3),
        "c": (1, 4),
        "d": (1, 4),
        "e": (1, 1),
        "f": (1, 1),
        "g": (9, 3),
    }
    layers = [LayerInfo(name, "linear", shape) for name, shape in (shapes | {"h": (1, 1)}).items()]
    problem = Given(
        {layer.name: KroneckerFactors(*(np.eye(side) for side in layer.shape)) for layer in layers}
    )
    found = source(problem, layers, 1)
    for layer in layers:
        found.take(layer)
    groups = ["".join(names) for names, *_ in problem.asked]
    assert groups == ["ab", "cde", "f", "g", "h"]


def test_eigenvalues_below_the_rounding_of_gradients_are_noise():
    """Directions in single precision know nothing of factors below the square of it."""
    layer = LayerInfo("a", "linear", (3, 20))
    noise = 15 * np.finfo(np.float32).eps ** 2  # below 20 of these, far above double precision
    problem = Given({"a": KroneckerFactors(np.diag([1.0, 0.5, noise]), np.eye(20))})
    for dtype, rank in ((np.float32, 2), (np.float64, 3)):
        found = source(problem, [layer], 3, dtype).take(layer).alignment
        assert found.delta.rank == rank and isinstance(found.delta.condition, float)
        assert found.kron.dtype == np.float64


def test_notes_on_noise_and_on_ties():
    noise = np.array([[0.3, 5.0, 5.0], [5.0, 0.4, 5.0], [5.0, 5.0, 5.0]])
    problem = Given({"a": diagonal(3, 2, 2, noise=noise, notes=("so",))})
    assert source(problem, [square("a")]).take(square("a")).notes == (
        "so",
        "standard error of uᵀ C_δ u: 15.8% (root mean square over the window)",  # 10 % and 20 %
        "eigenvalues of C_δ nearly tied at ranks 2: which of a tied cluster stands beside which "
        "direction is arbitrary, within the gap",
    )
    factors = KroneckerFactors(np.diag([3.0, 2.0, 1.0]), np.eye(3))
    assert source(Given({"a": factors}), [square("a")]).take(square("a")).notes == (
        "eigenvalues of C_A nearly tied at ranks 1, 2: which of a tied cluster stands beside which "
        "direction is arbitrary, within the gap",
    )


OPTIONS = FactorOptions("ggn", "expand", mc_samples=2, max_columns=0)


def test_the_least_options():
    OPTIONS.check()
    check_factor_size(LayerInfo("a", "linear", (16384, 16384)))


NOTES = {
    "exact": "C_δ is a Monte-Carlo estimate of 2 draws per batch",
    "complete": (
        "this matrix is also used in ways that its factors leave out (the other way around, as in "
        "a tied embedding, or in no product); κ holds their part"
    ),
    "even": "C_A weighs all positions alike, not by the terms of their sample",
}


def test_what_is_said_of_factors():
    fine = dict.fromkeys(NOTES, True)
    assert factor_notes(OPTIONS, **fine) == ()
    for what, note in NOTES.items():
        assert factor_notes(OPTIONS, **fine | {what: False}) == (note,)
    assert factor_notes(OPTIONS, **dict.fromkeys(NOTES, False)) == tuple(NOTES.values())


class Along(Given):
    """A problem that gives h^diag along the directions that it is told."""

    def kronecker_factors(self, layers, *, fisher_type, kfac_approx, directions):
        found = super().kronecker_factors(layers, fisher_type=fisher_type, kfac_approx=kfac_approx)
        self.asked.append(sorted(directions))
        along = {name: np.sum(u, axis=0) for name, (u, _) in directions.items()}
        return {name: replace(factors, diagonal=along[name]) for name, factors in found.items()}


def test_directions_go_to_a_problem_that_has_an_argument_for_them():
    layers = [square(name) for name in "ab"]
    problem = Along({name: diagonal(3, 2, 1) for name in "ab"})
    found = source(problem, layers)
    assert found.take(layers[0]).diagonal.tolist() == [1, 1]
    assert problem.asked[1:] == [["a", "b"]]
    assert source(Given(problem.factors), layers).take(layers[0]).diagonal is None


@pytest.mark.parametrize("wrong", [np.ones(3), np.array([1.0, np.nan])])
def test_a_diagonal_that_is_none_leaves_kappa_whole(wrong):
    factors = {"a": replace(diagonal(3, 2, 1), diagonal=wrong)}
    assert source(Given(factors), [square("a")]).take(square("a")).diagonal is None


def test_the_diagonal_of_groups_is_their_mean():
    one, other = (replace(diagonal(3, 2, 1), diagonal=np.array([d, 2 * d])) for d in (1.0, 5.0))
    assert GroupedFactors.of([one, other], [0.75, 0.25]).diagonal.tolist() == [2, 4]
    assert GroupedFactors.of([one, diagonal(3, 2, 1)], [0.75, 0.25]).diagonal is None
