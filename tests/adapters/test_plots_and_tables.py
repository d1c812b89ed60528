"""Figures and tables show the report's numbers and touch nothing global."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from decomposed import layer as decomposed_layer
from decomposed import split

import spectral_core as sc
from spectral_adapters import plots, tables
from spectral_core.measuring.layer_spectrum import spectrum_from_values
from spectral_core.reporting.spectrum import Provenance

matplotlib = pytest.importorskip("matplotlib")


def spectrum(index, kind, alpha=2.0, drop=False, size=20):
    rng = np.random.default_rng(index)
    sigma = np.arange(1.0, size + 1) ** -0.8 * np.exp(-0.01 * np.arange(size) ** 2)
    h = sigma**alpha * np.exp(0.3 * rng.normal(size=size))
    if drop:
        h[[3, 7]] = [-0.1, np.nan]
    name = f"blocks.{index}.some_rather_long.module.name"
    return spectrum_from_values(sc.LayerInfo(name, kind, (64, 128)), sigma, h)


def report_of(*spectra):
    provenance = Provenance({"loss": 1.0, "n_terms": 9}, {}, 20, "hessian", 0.95)
    return sc.SpectralReport(provenance, spectra, {"frozen": "because"})


@pytest.fixture
def report():
    return report_of(
        *(spectrum(i, ("conv2d", "linear")[i % 2], 1 + i / 4, drop=i == 2) for i in range(7))
    )


def test_layers_are_drawn_as_measured(report):
    layer = list(report.values())[2]
    ax = plots.plot_curvature(layer)
    kept = ax.collections[0].get_offsets()
    assert len(kept) == 18 and len(ax.collections[1].get_offsets()) == 2
    np.testing.assert_allclose(kept[:, 0], np.delete(layer.sigma, [3, 7]))
    line = ax.lines[0]
    x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(layer.alpha.exponent)
    assert f"{layer.alpha.exponent:.2f}" in ax.texts[0].get_text()


def test_winner_is_the_solid_line(report):
    layer = next(iter(report.values()))
    ax = plots.plot_rank_profile(layer)
    solid = [line.get_label() for line in ax.lines if line.get_linestyle() == "-"]
    assert solid == [layer.rank_profile.winner.replace("_", "-")]


def test_what_alpha_rests_on_is_drawn():
    sigma = np.append(np.geomspace(1, 0.1, 11), 1e-6)
    carried = spectrum_from_values(
        sc.LayerInfo("a", "linear", (12, 12)), sigma, np.append(sigma[:-1] ** 2, 1e-9)
    )
    assert carried.carried_by == (12,)
    ring = plots.plot_curvature(carried).collections[1]
    assert ring.get_offsets().data.tolist() == [[1e-6, 1e-9]]
    ax = plots.plot_alpha_over_k(carried)
    drawn = ax.lines[1].get_ydata()
    np.testing.assert_allclose(drawn, carried.alpha_over_k.exponent)
    assert drawn[-2] == pytest.approx(2) and abs(drawn[-1] - 2) > 0.1


def test_both_intervals_of_alpha_are_drawn():
    number = sc.SampledNumber(0.1, (1.5, 2.5), 0.0, 2.0)
    noisy = sc.LayerSampling(8, "own", 0.1, np.full(18, 0.1), number, number, number, number)
    first = replace(spectrum(0, "conv2d"), sampling=noisy)
    ax = plots.plot_alpha_by_depth(report_of(first, spectrum(1, "linear")))
    ends = [path.vertices[:, 1].tolist() for c in ax.collections for path in c.get_paths()]
    assert [1.5, 2.5] in ends
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["± line", "± sample", "mostly noise", "conv2d", "linear"]
    assert "(sample)" in plots.plot_curvature(first).texts[0].get_text()


def test_given_axes_are_used(report):
    figure = matplotlib.figure.Figure()
    for draw, what in (
        (plots.plot_curvature, next(iter(report.values()))),
        (plots.plot_rank_profile, next(iter(report.values()))),
        (plots.plot_alpha_over_k, next(iter(report.values()))),
        (plots.plot_transfer, report),
        (plots.plot_alpha_by_depth, report),
    ):
        ax = figure.add_subplot()
        assert draw(what, ax) is ax


def convergence_of(*names, size=20):
    sizes, rng = 64.0 * 2 ** np.arange(5), np.random.default_rng(0)
    layers = []
    for name in names:
        alpha, stderr = 2 + 0.3 * rng.normal(size=5), np.linspace(0.4, 0.1, 5)
        sigma = tuple(np.arange(1.0, size + 1) ** -0.8 * n**-0.5 for n in sizes)
        sigma[0][-1:] = np.nan  # the smallest parts have fewer directions
        errors = dict.fromkeys(("alpha", "gamma", "s", "participation"), stderr)
        layers.append(
            sc.LayerConvergence(name, sizes, (16, 8, 4, 2, 1), *[alpha] * 4, errors, sigma, 8)
        )
    provenance = Provenance({"loss": 1.0, "n_terms": 1024}, {}, 20, "hessian", np.nan)
    return sc.Convergence(provenance, tuple(layers))


def test_alpha_is_drawn_against_the_sample_size_with_its_standard_error():
    layer = convergence_of("fc")["fc"]
    ax = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    assert plots.plot_alpha_by_size(layer, ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.c_[layer.sizes, layer.alpha])
    band = ax.collections[0].get_paths()[0].vertices
    for edge in (layer.alpha - layer.stderr["alpha"], layer.alpha + layer.stderr["alpha"]):
        assert all(np.isclose(band[:, 1], value).any() for value in edge)
    marked = [line.get_xdata()[0] for line in ax.lines[1:]]
    assert marked == ([] if layer.enough is None else [layer.enough])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "128", "256", "512", "1024"]


def test_sigma_is_drawn_beside_the_root_of_the_sample_size():
    layer = convergence_of("fc")["fc"]
    ax = plots.plot_sigma_by_size(layer)
    assert [text.get_text() for text in ax.texts] == ["1", "2", "4", "9", "20"]
    for measured, line in zip(ax.lines[::2], ax.lines[1::2], strict=True):
        known = np.isfinite(measured.get_ydata())  # here they fall along the line
        np.testing.assert_allclose(measured.get_ydata()[known], line.get_ydata()[known])
    assert not known[0] and known[1:].all()


@pytest.mark.parametrize("count", [1, 7])
def test_a_convergence_of_any_number_of_layers_is_drawn(tmp_path, count):
    found = convergence_of(*(f"blocks.{i}.attention.query" for i in range(count)), size=count)
    files = plots.save_convergence_figures(found, tmp_path / "deep" / "folder")
    assert len(files) == 2 and all(f.stat().st_size > 5000 for f in files)
    (tmp_path / "file").write_text("")
    with pytest.raises(sc.ReportError, match="cannot be written"):
        plots.save_convergence_figures(found, tmp_path / "file")


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_any_number_of_layers(tmp_path, count):
    before = dict(matplotlib.rcParams)
    report = report_of(*(spectrum(i, "conv2d") for i in range(count)))
    files = plots.save_figures(report, tmp_path / "deep" / "folder")
    assert len(files) == 5 and all(f.stat().st_size > 5000 for f in files)
    assert dict(matplotlib.rcParams) == before


def test_layers_without_a_fit_are_drawn_too(tmp_path):
    bad = spectrum_from_values(
        sc.LayerInfo("bad", "linear", (3, 3)), np.asarray([3.0, 2.0]), np.asarray([-1.0, np.nan])
    )
    assert len(plots.save_figures(report_of(bad), tmp_path)) == 5


def test_unwritable_folder(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sc.ReportError, match="cannot be written"):
        plots.save_figures(report, tmp_path / "file" / "x")


def test_tables_hold_the_reports_values(report):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(report))))
    for row, layer in zip(rows, report.values(), strict=True):
        assert row["layer"] == layer.name
        assert float(row["alpha"]) == layer.alpha.exponent
        assert float(row["alpha_low"]) == layer.alpha.interval[0]
    assert tables.to_markdown(report).count("\n") == len(report) + 1


def test_data_frames(report):
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    a, b = tables.to_pandas(report), tables.to_polars(report)
    expected = [layer.s.exponent for layer in report.values()]
    assert list(a["s"]) == list(b["s"]) == expected and list(a.index) == list(report)


def test_rich_table(report):
    console = pytest.importorskip("rich.console").Console(width=300, file=io.StringIO())
    console.print(tables.to_rich(report))
    text = console.file.getvalue()
    assert all(cell in text for row in report.table()[1] for cell in row)


@pytest.fixture
def decomposed():
    return report_of(
        spectrum(0, "conv2d"), decomposed_layer(1, name="up", phi=-1.0, kappa=0.4),
        decomposed_layer(2, name="down", beta=2.7, phi=-0.5, nu=-0.3),
    )  # fmt: skip


def test_bars_add_up_to_alpha(decomposed):
    ax = plots.plot_decomposition(decomposed)
    layers = decomposed.decomposed()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["up", "down"]
    for position, measured in enumerate(layers):
        bars = [b for b in ax.patches if abs(b.get_x() + 0.35 - position) < 0.01]
        assert sum(b.get_height() for b in bars) == pytest.approx(
            measured.decomposition.alpha.exponent
        )
        for sign in (1, -1):  # stacked: each begins where the last of its sign ended
            end = 0
            for bar in (b for b in bars if b.get_height() * sign > 0):
                assert bar.get_y() == pytest.approx(end)
                end += bar.get_height()


def test_kappa_has_two_bars_where_it_is_split():
    parted = split(decomposed_layer(1, name="up", kappa=0.4), positions=0.9)
    whole = decomposed_layer(2, name="down", kappa=0.4)
    ax = plots.plot_decomposition(report_of(parted, whole))
    for position, layer, count in ((0, parted, 5), (1, whole, 4)):
        bars = [b for b in ax.patches if abs(b.get_x() + 0.35 - position) < 0.01]
        heights = [b.get_height() for b in bars]
        assert len(bars) == count
        assert sum(heights) == pytest.approx(layer.decomposition.alpha.exponent)
        for part in ("kappa_positions", "kappa_dependence") if count == 5 else ("kappa",):
            wanted = getattr(layer.decomposition, part).exponent
            assert any(height == pytest.approx(wanted) for height in heights)
    (legend,) = ax.figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert "κ: dependence" in texts and "κ^pos: positions acting together" in texts


def test_decomposed_reports_in_every_form(decomposed, tmp_path):
    files = plots.save_figures(decomposed, tmp_path)
    assert [f.name for f in files][-1] == "decomposition.png"
    text = tables.to_markdown(decomposed)
    head, terms = text.split("\n\n")
    assert head.count("\n") == 4 and terms.count("\n") == 3 and "χ median" in terms
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(decomposed))))
    assert rows[0]["phi"] == "nan" and float(rows[1]["phi"]) == pytest.approx(-1, abs=0.05)
    pytest.importorskip("rich")
    assert tables.to_rich(decomposed, terms=True).row_count == 2
