"""Spectra as hypothesis draws them: the shapes of real data, and nasty ones."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def positive_spectra(draw, min_size=3, max_size=25):
    """Positive values of any order, over many orders of magnitude, sometimes tied."""
    size = draw(st.integers(min_size, max_size))
    logs = draw(st.lists(st.floats(-20, 20, allow_nan=False), min_size=size, max_size=size))
    if draw(st.booleans()):
        logs = [round(value) for value in logs]
    return np.exp(np.asarray(logs, dtype=np.float64))


@st.composite
def pairs(draw, **kwargs):
    """A descending σ with at least two distinct values, and positive h of the same length."""
    sigma = np.sort(draw(positive_spectra(**kwargs)))[::-1]
    sigma = sigma * (1 + 0.01 * np.arange(len(sigma), 0, -1))
    h = draw(positive_spectra(min_size=len(sigma), max_size=len(sigma)))
    return sigma, h
