"""Singular values that may be rounding: known of a problem that says so, cut, named, reported."""

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

import spectral_core as sc
from spectral_core.curvature.problem import KnowsRounding
from spectral_core.measuring.directions import top_directions
from spectral_core.measuring.gradient_rounding import DOUBT, SHARE, with_rounding

LAYER = sc.LayerInfo("w", "linear", (12, 9))


def orthogonal(n, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


U, V = orthogonal(12, 9, 0), orthogonal(9, 9, 1)
SIGMA = 2.0 ** -np.arange(9)
EXACT = U * SIGMA @ V.T


class Rounded:
    """``h = 3 σ²`` of a gradient with a known error; a part of the data shows `seen` of it."""

    def __init__(self, error, seen=1.0, described=None):
        self.error, self.seen, self.asked = error, seen, []
        self.described = described or {}

    def layers(self):
        return [LAYER]

    def skipped(self):
        return {}

    def describe(self):
        return {"backend": "test"} | self.described

    def gradients(self, layers):
        return {"w": EXACT + self.error}

    def gradient_errors(self, layers, *, samples=None):
        self.asked.append(samples)
        return {"w": self.error * (1.0 if samples is None else self.seen)} if layers else {}

    def curvatures(self, layer, u, v, kind="hessian"):
        return 3 * np.sum(u * (EXACT @ v), axis=0) ** 2

    def kronecker_factors(self, layers, **options):
        raise AssertionError


def noise(size, seed=5):
    return size * np.random.default_rng(seed).standard_normal((12, 9)) / np.sqrt(12)


@pytest.mark.parametrize("size", [1e-9, 1e-4, 3e-3, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_11_6_each_singular_value_lies_within_its_rounding_of_an_exact_one(size, seed):
    problem = Rounded(noise(size, seed))
    window = top_directions(LAYER, problem.gradients(["w"])["w"], 9)
    found = with_rounding(problem, [LAYER], {"w": window})["w"].rounding
    nearest = np.abs(window.sigma[:, None] - SIGMA).min(1)
    assert np.all(nearest <= found * (1 + 1e-9))
    assert np.all(found <= np.linalg.norm(problem.error, 2))
    residuals = [
        EXACT @ window.v - window.u * window.sigma,
        EXACT.T @ window.u - window.v * window.sigma,
    ]
    expected = np.sqrt(sum(np.sum(r**2, axis=0) for r in residuals) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-15)


def test_an_error_beside_the_directions_costs_nothing():
    """Weyl's bound would leave two directions."""
    error = 0.04 * np.outer(U[:, 0], V[:, 0])
    spectrum = sc.measure(Rounded(error), top_k=8)["w"]
    assert len(spectrum.sigma) == 8 and spectrum.notes == ()
    np.testing.assert_allclose(spectrum.rounding, [0.04] + [0] * 7, atol=1e-15)


def test_the_window_ends_where_a_tenth_may_be_rounding():
    problem = Rounded(noise(0.003))
    spectrum = sc.measure(problem, top_k=8)["w"]
    count = len(spectrum.sigma)
    window = top_directions(LAYER, problem.gradients(["w"])["w"], 8)
    rounding = with_rounding(problem, [LAYER], {"w": window})["w"].rounding
    assert 2 < count < 8 and np.all(spectrum.rounding <= SHARE * spectrum.sigma)
    assert rounding[count] > SHARE * window.sigma[count]
    assert spectrum.notes[0] == (
        f"window cut to {count} of 8 directions by rounding: σ_{count + 1} = "
        f"{window.sigma[count]:.2g} may be off by {rounding[count]:.2g}, the gradient's own "
        "rounding; float64 holds no more digits of it"
    )
    assert spectrum.alpha.exponent == pytest.approx(2, abs=0.1)
    np.testing.assert_array_equal(spectrum.sigma, window.sigma[:count])


@pytest.mark.parametrize(
    ("dtype", "described", "remedy"),
    [
        (np.float32, {}, "measure in float64 (dtype=torch.float64, or jax_enable_x64)."),
        (np.float64, {}, "float64 holds no more digits of it."),
        (np.float64, {"precision": "float32"}, "take the casts to float32 out of the model."),
    ],
)
def test_a_layer_of_rounding_alone_is_skipped(dtype, described, remedy):
    problem = Rounded(noise(3.0), described=described)
    problem.gradients = lambda layers: {"w": (EXACT + problem.error).astype(dtype)}
    with pytest.raises(sc.SpectralError) as caught:
        sc.measure(problem, top_k=5)
    assert "the gradient's own rounding; " in str(caught.value) and "'w': σ_1 = " in str(
        caught.value
    )
    assert str(caught.value).endswith(remedy)


def test_all_data_are_looked_at_only_where_a_part_raises_a_doubt():
    fine = Rounded(noise(1e-9))
    assert len(sc.measure(fine, top_k=8)["w"].sigma) == 8 and fine.asked == [8]
    doubtful = Rounded(noise(1e-9), seen=1e7)
    spectrum = sc.measure(doubtful, top_k=8)["w"]
    assert doubtful.asked == [8, None] and len(spectrum.sigma) == 8
    assert np.all(spectrum.rounding < DOUBT * spectrum.sigma)


@pytest.mark.parametrize("errors", [{}, {"w": np.full((12, 9), np.nan)}])
def test_of_what_is_not_known_nothing_is_said(errors):
    problem = Rounded(noise(3.0))
    problem.gradient_errors = lambda layers, samples=None: errors
    spectrum = sc.measure(problem, top_k=8)["w"]
    assert spectrum.rounding is None and len(spectrum.sigma) == 8 and spectrum.notes == ()


def test_a_problem_without_the_method_is_measured_as_before():
    problem = Rounded(noise(3.0))
    assert isinstance(problem, KnowsRounding)
    members = ("layers", "skipped", "describe", "gradients", "curvatures", "kronecker_factors")
    plain = SimpleNamespace(**{name: getattr(problem, name) for name in members})
    spectrum = sc.measure(plain, top_k=8)["w"]
    assert spectrum.rounding is None and len(spectrum.sigma) == 8 and not problem.asked


def test_errors_of_another_shape_name_the_layer():
    problem = Rounded(noise(1e-9))
    problem.gradient_errors = lambda layers, samples=None: {"w": np.zeros((9, 12))}
    with pytest.raises(sc.InputError, match="for layer 'w'"):
        sc.measure(problem, top_k=3)


def test_rounding_is_saved_and_may_be_missing(tmp_path):
    report = sc.measure(Rounded(noise(1e-9)), top_k=4)
    report.save(tmp_path / "run.json")
    again = sc.SpectralReport.load(tmp_path / "run.json")
    np.testing.assert_array_equal(again["w"].rounding, report["w"].rounding)
    data = report.to_dict()
    del data["spectra"][0]["rounding"]
    assert sc.SpectralReport.from_dict(data)["w"].rounding is None
    data["spectra"][0]["rounding"] = [0.1]
    with pytest.raises(sc.ReportError):
        sc.SpectralReport.from_dict(data)


def test_a_loss_of_exactly_zero_is_noted():
    (note,) = sc.measure(Rounded(noise(1e-9), described={"loss": 0.0}), top_k=4)["w"].notes
    assert note.startswith("the loss is exactly zero and its gradient is not")
    assert sc.measure(Rounded(noise(1e-9), described={"loss": 0.1}), top_k=4)["w"].notes == ()


def test_what_is_cast_inside_is_said_in_the_heading():
    report = sc.measure(
        Rounded(noise(1e-9), described={"dtype": "float64", "precision": "float32"}), top_k=4
    )
    assert "test float64 (float32 inside the model) on" in report.summary()


def test_a_saturated_softmax_against_50_digits():
    """``p − y`` in float32 where the loss is 1e-7: its error is what the wider type shows."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((12, 9)) + 17 * np.eye(12, 9)

    def gradient(dtype):
        powers = np.exp(
            (z.astype(np.float32).astype(dtype))
            - z.max(1, keepdims=True).astype(np.float32).astype(dtype)
        )
        return powers / powers.sum(1, keepdims=True) - np.eye(12, 9, dtype=dtype)

    exact = np.empty((12, 9))
    with mpmath.workdps(50):
        for i, row in enumerate(z.astype(np.float32).tolist()):
            powers = [mpmath.e**value for value in row]
            total = sum(powers)
            exact[i] = [float(p / total - (i == j)) for j, p in enumerate(powers)]
    problem = Rounded(gradient(np.float32).astype(np.float64) - gradient(np.float64))
    problem.gradients = lambda layers: {"w": gradient(np.float32)}
    window = top_directions(LAYER, gradient(np.float32), 9)
    found = with_rounding(problem, [LAYER], {"w": window})["w"].rounding
    true = np.linalg.svd(exact, compute_uv=False)
    off = np.abs(window.sigma[:, None] - true).min(1)
    assert np.all(off <= found * 1.01 + 1e-14)
