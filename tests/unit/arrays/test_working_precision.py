"""Half precision in, half precision out, and in between float32: only the result is rounded."""

import dataclasses

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.arrays.namespace import to_numpy

RNG = np.random.default_rng(0)
K, J = 20, 6
RANKS = np.arange(1, K + 1.0)
SIGMA = np.sort(np.exp(RNG.normal(size=K)))[::-1] * RANKS**-0.8
H = SIGMA**1.9 * np.exp(0.2 * RNG.normal(size=K))
GGN = H * np.exp(0.1 * RNG.normal(size=K))
WEIGHTS = np.exp(RNG.normal(size=K))
U, V = (np.linalg.qr(RNG.normal(size=(n, n)))[0][:, :J] for n in (12, 16))
C_DELTA, C_A = (rows.T @ rows / 40 for rows in (RNG.normal(size=(40, n)) for n in (12, 16)))
S = np.asarray([1.01, 1.5, 2.0, 7.0])

CALLS = {
    "fit_power_law": (lambda w, x, y: sc.fit_power_law(x, y, weights=w), WEIGHTS, SIGMA, H),
    "fit_power_law, ppml": (lambda x, y: sc.fit_power_law(x, y, estimator="ppml"), SIGMA, H),
    "exponent_over_window": (sc.exponent_over_window, SIGMA, H),
    "check_line": (sc.check_line, SIGMA, H),
    "exponent_triangle": (sc.exponent_triangle, SIGMA, H),
    "fit_rank_profiles": (sc.fit_rank_profiles, SIGMA),
    "participation_ratio": (sc.participation_ratio, H),
    "entropy_rank": (sc.entropy_rank, H),
    "certified_exponent": (sc.certified_exponent, RANKS**-1.5),
    "window_bound": (lambda s: sc.window_bound(s, 300), S),
    "zeta_bound": (sc.zeta_bound, S),
    "zeta": (sc.zeta, S),
    "exponential_participation": (lambda b: sc.exponential_participation(b, 20), S),
    "log_normal_participation": (lambda a, b: sc.log_normal_participation(a, b, 300), -S, -S / 7),
    "transfer": (lambda sigma: sc.transfer(sigma, 1.7), SIGMA),
    "transfer, absolute": (lambda s: sc.transfer(s, 1.7, damping_mode="absolute"), SIGMA),
    "spectral_alignment": (sc.spectral_alignment, U, V, C_DELTA, C_A),
    "effective_rank": (sc.effective_rank, C_DELTA),
    "slope_bound": (lambda sigma: sc.slope_bound(sigma, 3.0), SIGMA),
    "residual_prediction": (lambda s, h: sc.residual_prediction(s, h).rho_delta, SIGMA[:9], SIGMA),
}


def torch_half(name):
    torch = pytest.importorskip("torch")
    return lambda a: torch.asarray(a.copy()).to(getattr(torch, name))


def jax_half(name):
    jnp = pytest.importorskip("jax.numpy")
    return lambda a: jnp.asarray(a, getattr(jnp, name))


def numpy_half(name):
    dtype = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    return lambda a: a.astype(dtype)


UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
LIBRARIES = {"numpy": numpy_half, "torch": torch_half, "jax": jax_half}


def leaves(result, path=""):
    """Return all floating arrays of a result by path."""
    if dataclasses.is_dataclass(result):
        result = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if isinstance(result, tuple):
        result = dict(enumerate(result))
    if isinstance(result, dict):
        return {k: v for key, r in result.items() for k, v in leaves(r, f"{path}.{key}").items()}
    kind = "float" if isinstance(result, float) else str(getattr(result, "dtype", ""))
    return {path: result} if "float" in kind else {}


@pytest.mark.parametrize(
    ("library", "precision"),
    [(lib, kind) for lib in LIBRARIES for kind in UNITS if (lib, kind) != ("jax", "float16")],
)
@pytest.mark.parametrize("name", CALLS)
def test_only_the_result_is_rounded(name, library, precision):
    function, *arrays = CALLS[name]
    given = [LIBRARIES[library](precision)(array) for array in arrays]
    with np.errstate(over="ignore"):
        found = leaves(function(*given))
    expected = leaves(function(*[to_numpy(array).astype(np.float64) for array in given]))
    assert found.keys() == expected.keys()
    smallest = np.finfo(np.float16).smallest_subnormal if precision == "float16" else 0.0
    for path, value in found.items():
        if not isinstance(value, float):
            assert value.dtype == given[0].dtype
        value, wanted = to_numpy(value).astype(np.float64), np.asarray(expected[path])
        # What is a difference of float32 numbers near 1 has their rounding.
        off = np.abs(value - wanted) - 1.1 * UNITS[precision] * np.abs(wanted)
        assert np.all((off <= smallest + 1e-6) | np.isnan(wanted)), path
        assert np.array_equal(np.isnan(value), np.isnan(wanted)), path


def test_certified_exponent_of_a_power_law():
    """12 % off in bfloat16: two digits of a logarithm, and their difference has none."""
    h = (LIBRARIES["torch"]("bfloat16"))(RANKS**-1.5)
    found, wanted = (float(sc.certified_exponent(x)) for x in (h, h.double()))
    assert abs(found - wanted) <= UNITS["bfloat16"] * wanted


def test_a_decomposition_of_half_precision():
    # The alignment is rounded itself, so the terms are those of what it says.
    half = LIBRARIES["torch"]("bfloat16")
    arrays = [half(a) for a in (SIGMA[:J], H[:J], GGN[:J])]
    alignment = sc.spectral_alignment(*(half(a) for a in (U, V, C_DELTA, C_A)))
    found = sc.decompose_exponent(*arrays, alignment)
    factors = [
        sc.FactorSpectrum(*(getattr(f, n.name).double() for n in dataclasses.fields(f)))
        for f in (alignment.delta, alignment.a)
    ]
    exact = sc.SpectralAlignment(*factors, alignment.kron.double())
    wanted = sc.decompose_exponent(*(a.double() for a in arrays), exact)
    for name in ("alpha", "beta", "phi", "kappa", "nu", "phi_delta", "phi_a", "full_alignment"):
        a, b = (float(getattr(fits, name).exponent) for fits in (found, wanted))
        assert abs(a - b) <= 2.0**-8 * abs(b)
    assert abs(float(found.closure - wanted.closure)) < 1e-5


def test_under_jit_and_vmap():
    jax = pytest.importorskip("jax")
    h = LIBRARIES["jax"]("bfloat16")(np.stack([H, GGN]))
    for function in (jax.jit(sc.certified_exponent), jax.vmap(sc.certified_exponent)):
        found = function(h)
        assert found.dtype == h.dtype
        wanted = sc.certified_exponent(np.asarray(h, np.float64))
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2.0**-8)


def test_the_widest_array_decides():
    half, single = H.astype(np.float16), SIGMA.astype(np.float32)
    fit = sc.fit_power_law(single, half)
    assert fit.exponent.dtype == np.float32
    assert fit.exponent == sc.fit_power_law(single, half.astype(np.float32)).exponent
    number = np.asarray(1.7, np.float32)  # of a traced α: it has no axes
    assert sc.transfer(half, number).dtype == np.float16
    assert sc.zeta(np.float16(2)).dtype == np.float16


def test_results_of_half_precision_become_plain_numbers():
    for library in LIBRARIES:
        half = LIBRARIES[library]("bfloat16")
        plain = sc.exponent_triangle(half(SIGMA), half(H)).to_floats()
        assert isinstance(plain.alpha.exponent, float)
        assert sc.fit_power_law(half(SIGMA), half(H)).reason is None


def test_gradients_of_ml_dtypes_are_refused_with_a_sentence():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(sc.InputError, match="gradient: has dtype bfloat16; convert it"):
        sc.precondition(np.ones((3, 4), ml_dtypes.bfloat16), 2.0)
