"""The column of a term of α in a table and in flat rows."""

from dataclasses import replace

import numpy as np
from decomposed import layer, split

import spectral_core as sc
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


def test_the_parts_of_kappa_have_columns_where_a_layer_has_them():
    plain, parted = layer(kappa=0.5), split(layer(kappa=0.5), positions=0.7)
    header, (first, second) = rows.table(rows.TERM_COLUMNS, [plain, parted])
    place = header.index("of it κ^pos")
    assert header[place - 1 : place + 2] == ["κ", "of it κ^pos", "κ^dep"]
    assert first[place : place + 2] == ["", ""] and first[place - 1] == second[place - 1]
    fits = parted.decomposition
    assert second[place] == rows._with_interval(fits.kappa_positions)
    assert second[place + 1] == rows._with_interval(fits.kappa_dependence)
    assert "κ^dep" not in rows.table(rows.TERM_COLUMNS, [plain])[0]
    shown = rows.shown(rows.TERM_COLUMNS, [plain, parted])
    assert np.isnan(rows.row(shown, plain)["kappa_positions"])
    assert rows.row(shown, parted)["kappa_dependence"] == fits.kappa_dependence.exponent
    assert rows.shown(rows.TERM_COLUMNS, []) == list(rows.TERM_COLUMNS)


def test_a_spectrum_with_the_parts_of_kappa_goes_through_json():
    parted = split(layer(kappa=0.5), positions=0.7)
    data = parted.to_dict()
    again = sc.LayerSpectrum.from_dict(data)
    assert again.to_dict() == data
    assert again.decomposition.kappa_positions == parted.decomposition.kappa_positions
    for name in ("kappa_positions", "kappa_dependence"):  # as earlier versions wrote it
        del data["decomposition"][name]
    del data["diagonal"]
    former = sc.LayerSpectrum.from_dict(data)
    assert former.diagonal is former.decomposition.kappa_positions is None
    assert former.decomposition.kappa == parted.decomposition.kappa
