"""What properties are drawn from: spectra, matrices, Kronecker factors, small networks.

All in NumPy's float64, from a description and a seed, for a test to convert. Where arrays are
compiled by shape, `few` keeps to few shapes.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from matrices import covariance, orthonormal, with_spectrum
from network_registry import ACTIVATIONS, LOSSES, Network

SPECTRA = ("power-law", "exponential", "log-normal", "random", "tied")
MATRICES = ("gaussian", "orthogonal", "graded", "rank-deficient", "tiny", "huge")
FACTORS = ("power-law", "tied", "rank-deficient")

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(-10, 10).map(np.exp)


def lengths(few=False, at_least=3):
    """How many values a spectrum has."""
    return st.sampled_from([k for k in ((3, 12) if few else range(1, 26)) if k >= at_least])


def shapes(few=False, at_least=1):
    """Rows and columns of a matrix, of either orientation."""
    if few:
        return st.sampled_from([(5, 8), (8, 5)])
    return st.tuples(st.integers(at_least, 9), st.integers(at_least, 9))


# Spectra


@st.composite
def spectra(draw, few=False, at_least=3, kinds=SPECTRA, length=None):
    """Positive values over at most 30 e-folds: of a profile that falls, or of any order, or tied."""
    k = draw(lengths(few, at_least)) if length is None else length
    kind, rank = draw(st.sampled_from(kinds)), np.arange(1.0, k + 1)
    if kind == "power-law":
        logs = -draw(st.floats(0, 5)) * np.log(rank)
    elif kind == "exponential":
        logs = -draw(st.floats(0, 1)) * rank
    elif kind == "log-normal":
        logs = draw(st.floats(-2, 1)) * np.log(rank) - draw(st.floats(0, 1)) * np.log(rank) ** 2
    else:
        logs = np.asarray(draw(st.lists(st.floats(-15, 15), min_size=k, max_size=k)))
        logs = np.round(logs) if kind == "tied" else logs
    return np.exp(logs)


@st.composite
def spoilt(draw, few=False, at_least=3, length=None):
    """A spectrum some of whose values are zero, negative or not finite."""
    values = draw(spectra(few, at_least, length=length))
    bad = st.sampled_from([0.0, -1.0, -1e-6, np.nan, np.inf])
    for place, value in draw(
        st.dictionaries(st.integers(0, len(values) - 1), bad, max_size=len(values) // 2)
    ).items():
        values[place] = value
    return values


@st.composite
def pairs(draw, few=False, at_least=3, curvatures=spectra):
    """σ, descending and without ties, and h beside it: of its own, or following a power of σ."""
    sigma = np.sort(draw(spectra(few, at_least)))[::-1]
    sigma = sigma * (1 + 0.01 * np.arange(len(sigma), 0, -1))
    h = draw(curvatures(few, at_least, length=len(sigma)))
    if draw(st.booleans()):
        noise = draw(st.floats(0, 0.1))
        with np.errstate(invalid="ignore"):  # signs of what is not a number
            h = np.sign(h) * np.abs(h) ** noise * sigma ** draw(st.floats(0, 2))
    return sigma, h


def spoilt_pairs(few=False, at_least=3):
    """Pairs whose h is not positive everywhere, as exact curvatures are."""
    return pairs(few, at_least, curvatures=spoilt)


# Matrices


@st.composite
def matrices(draw, few=False, at_least=1, kinds=MATRICES):
    """A matrix of a kind, its singular vectors random."""
    shape, kind, seed = draw(shapes(few, at_least)), draw(st.sampled_from(kinds)), draw(seeds)
    k = min(shape)
    if kind in ("gaussian", "tiny", "huge"):
        scale = {"gaussian": 1.0, "tiny": 1e-8, "huge": 1e8}[kind]
        return scale * np.random.default_rng(seed).normal(size=shape)
    sigma = {
        "orthogonal": np.ones(k),
        "graded": np.geomspace(1, 1e-8, k),
        "rank-deficient": np.where(np.arange(k) < (k + 1) // 2, np.linspace(1, 0.3, k), 0.0),
    }[kind]
    return with_spectrum(sigma, shape, seed)


@dataclass(frozen=True)
class FactorPair:
    """Singular directions u (m, K) and v (n, K) beside the factors ``C_δ`` and ``C_A``."""

    u: np.ndarray
    v: np.ndarray
    c_delta: np.ndarray
    c_a: np.ndarray


@st.composite
def factor_pairs(draw, few=False, kinds=FACTORS):
    """Directions and factors whose eigenvalues fall, are equal, or end."""
    m, n = draw(shapes(few, at_least=4))
    k = min(m, n) if few else draw(st.integers(3, min(m, n)))
    rng = np.random.default_rng(draw(seeds))

    def factor(size):
        kind = draw(st.sampled_from(kinds))
        decay = 0.0 if kind == "tied" else draw(st.floats(0.1, 2))
        values = np.arange(1.0, size + 1) ** -decay * draw(st.floats(-5, 5).map(np.exp))
        if kind == "rank-deficient":
            values[draw(st.integers(1, size - 1)) :] = 0
        return covariance(rng, values)

    return FactorPair(orthonormal(rng, m)[:, :k], orthonormal(rng, n)[:, :k], factor(m), factor(n))


# Networks


@st.composite
def networks(draw, few=False, activations=ACTIVATIONS, losses=LOSSES, shared=False, samples=(2, 5)):
    """Random depth, widths, activation, loss and data; with `shared`, positions and convolutions."""
    if few:
        kinds = draw(st.sampled_from([("dense",), ("dense", "dense")]))
        widths = (4,) * (len(kinds) + 2)  # so that all layers share what is compiled
        count = samples[1]
    else:
        kinds = draw(st.lists(st.just("dense"), max_size=3).map(tuple))
        widths = tuple(draw(st.integers(2, 6)) for _ in range(len(kinds) + 2))
        count = draw(st.integers(*samples))
    if shared:
        kinds = tuple(draw(st.sampled_from(["dense", "convolution"])) for _ in kinds)
    return Network(
        kinds,
        widths,
        draw(st.sampled_from(activations)),
        draw(st.sampled_from(losses)),
        count,
        draw(st.sampled_from([3] if few else [1, 3, 4])) if shared else 1,
        draw(seeds),
    )
