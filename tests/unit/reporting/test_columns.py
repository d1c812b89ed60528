"""The column of a term of α in a table and in flat rows."""

from dataclasses import replace

import numpy as np
from decomposed import layer

from spectral_core.reporting import rows


def test_a_column_of_a_term_shows_its_fit():
    spectrum = layer(phi=0.5)
    column = rows._term("of it φδ", "phi_delta")
    fit = spectrum.decomposition.phi_delta
    low, high = fit.interval
    assert column.header == "of it φδ"
    assert column.cell(spectrum) == f"{fit.exponent:.2f} ± {(high - low) / 2:.2f}"
    assert column.figures(spectrum) == {
        "phi_delta": fit.exponent, "phi_delta_low": low, "phi_delta_high": high,
    }  # fmt: skip


def test_a_layer_without_a_decomposition_has_no_figures_of_terms():
    bare = replace(layer(), decomposition=None)
    figures = rows._term("κ", "kappa").figures(bare)
    assert list(figures) == ["kappa", "kappa_low", "kappa_high"]
    assert all(np.isnan(value) for value in figures.values())
