"""What a report shows: every figure in its place, in tables, rows and messages."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from written_layers import decomposition, layer, report

import spectral_core as sc
from spectral_core.reporting.spectrum import Provenance
from spectral_core.storage import files

NAN = math.nan
TERMS = ("beta", "phi", "phi_delta", "phi_a", "kappa", "nu")


SUMMARY = """\
hessian curvature along the top 20 gradient singular directions of 2 layers; \
loss 2.30259 over 2048 terms; torch float32 on cpu

layer         kind    shape      α  ± line  mark          R²      γ      s     αγ  |s−αγ|/s    |τ| ≤ bound    PR  ≤ cert.  ζ(s)²/ζ(2s)  profile     dropped
────────────  ──────  ─────  ─────  ──────  ─────────  ─────  ─────  ─────  ─────  ────────  ─────────────  ────  ───────  ───────────  ──────────  ───────
body          conv2d  64×27  1.765   0.124  one point  0.988  0.812  1.432  1.434     1.5 %  0.012 ≤ 0.046  2.35     2.79          inf  log-normal  1/4
a longer one  linear  64×27  1.765   0.124  one point  0.988  0.812  1.432  1.434     1.5 %  0.012 ≤ 0.046  2.35     2.79          inf  log-normal  1/4

± line: how well a line fits these K points (95%), not how far α would move with other data: \
measure with sampling=8 for that

α = β + φ + κ + ν, slopes on log σ; χ = κν

layer                   α            β             φ      of it φδ            φA            κ            ν  closure  χ median  χ range  n
────────────  ───────────  ───────────  ────────────  ────────────  ────────────  ───────────  ───────────  ───────  ────────  ───────  ───
a longer one  1.77 ± 0.12  2.10 ± 0.11  -0.60 ± 0.22  -0.40 ± 0.55  -0.20 ± 0.66  0.25 ± 0.33  0.00 ± 0.44    3e-16         8  2–30     3/4

notes
  body: one point: α = 1.55 would be nothing without direction 1 and nothing without direction 4
  body: cut
  body: tied
  a longer one: one point: α = 1.55 would be nothing without direction 1 and nothing without \
direction 4
  a longer one: far

skipped
  frozen: needs no gradient
  odd: holds 5 NaN"""  # fmt: skip


def test_errors_are_told_in_percent():
    found = layer()
    found = replace(found, triangle=replace(found.triangle, relative_error=0.95))
    assert " 95.0 %  " in report(found).summary()


def test_the_summary_word_by_word():
    found = report(
        layer(notes=("cut", "tied")),
        layer("a longer one", kind="linear", notes=("far",), decomposition=decomposition()),
        skipped={"frozen": "needs no gradient", "odd": "holds 5 NaN"},
    )
    assert str(found) == found.summary() == SUMMARY


def test_a_summary_without_notes_terms_and_skipped_layers_is_heading_table_and_its_meaning():
    sigma = np.geomspace(1, 0.01, 12)
    plain = layer(sigma=sigma, curvature=sigma**2 * np.exp(0.3 * np.sin(3 * np.arange(12))))
    assert plain.flags == ()
    heading, table, meaning = str(report(plain)).split("\n\n")
    assert heading.startswith("hessian curvature") and table.startswith("layer")
    assert "  ok  " in table and meaning.startswith("± line: ")


def test_what_a_problem_does_not_say_is_unknown():
    found = report(layer(), provenance=Provenance({}, {}, 7, "ggn", 0.95))
    assert str(found).splitlines()[0] == (
        "ggn curvature along the top 7 gradient singular directions of 1 layers; loss unknown over "
        "an unknown number of terms; ? ? on ?"
    )


def test_a_decomposition_without_a_usable_direction():
    """All of χ is NaN, of which there is no median and no range."""
    found = report(layer(decomposition=decomposition(chi=[NAN] * 4)))
    header, ((*_, median, spread, n),) = found.decomposition_table()
    assert header[-3:] == ["χ median", "χ range", "n"]
    assert (median, spread, n) == ("", "", "3/4")


def test_a_row_of_every_figure():
    (row,) = report(layer()).rows()
    assert row == {
        "layer": "body", "kind": "conv2d", "m": 64, "n": 27,
        "flags": "one point",
        "alpha": 1.7654, "alpha_low": 1.7654 - 0.1236, "alpha_high": 1.7654 + 0.1236,
        "alpha_r_squared": 0.9876, "alpha_n": 3,
        "gamma": 0.8123, "gamma_low": 0.8123 - 0.0456, "gamma_high": 0.8123 + 0.0456,
        "gamma_r_squared": 0.9321, "gamma_n": 4,
        "s": 1.4321, "s_low": 1.4321 - 0.2345, "s_high": 1.4321 + 0.2345,
        "s_r_squared": 0.9135, "s_n": 3,
        "predicted_s": 1.4342, "relative_error": 0.0147, "defect": -0.0123, "defect_bound": 0.0457,
        "participation_ratio": 2.3456, "certified_bound": 2.7891, "zeta_bound": math.inf,
        "rank_profile": "log_normal", "dropped": 1,
    }  # fmt: skip


def test_rows_of_layers_with_and_without_a_decomposition_have_the_same_columns():
    plain, split = report(layer(), layer("b", decomposition=decomposition())).rows()
    assert list(plain) == list(split)
    columns = [f"{term}{end}" for term in TERMS for end in ("", "_low", "_high")]
    assert list(plain)[-len(columns) - 1 :] == [*columns, "closure"]
    assert all(math.isnan(plain[name]) for name in (*columns, "closure"))
    assert split["closure"] == -3.2e-16
    for term in TERMS:
        expected = getattr(decomposition(), term)
        found = split[term], split[f"{term}_low"], split[f"{term}_high"]
        assert found == (expected.exponent, *expected.interval)


def test_a_report_is_a_mapping_of_its_layers():
    found = report(layer(), layer("head"), skipped={"frozen": "needs no gradient"})
    assert list(found) == ["body", "head"] and len(found) == 2
    assert found["head"] is found.spectra[1] and "frozen" not in found
    with pytest.raises(KeyError, match=r"^\"layer 'frozen' was skipped: needs no gradient\"$"):
        found["frozen"]
    with pytest.raises(KeyError, match=r"^\"no layer 'x'; there are: body, head\"$"):
        found["x"]


def test_a_saved_report_is_json_with_every_field(tmp_path):
    certificate = sc.Certificate("tangents", reason="GELU", cost=2.5)
    whole = layer(
        notes=("cut",), ggn=np.asarray([8.0, 4.0, 2.0, 1.0]), decomposition=decomposition(),
        certificate=certificate,
    )  # fmt: skip
    found = report(whole, skipped={"frozen": "needs no gradient"})
    found.save(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text("utf-8")
    data = json.loads(text)
    assert text == json.dumps(data, indent=1) + "\n"
    assert list(data) == ["schema_version", "provenance", "spectra", "skipped"]
    assert data["schema_version"] == 2 and data["skipped"] == {"frozen": "needs no gradient"}
    assert data["provenance"] == asdict(found.provenance)
    (spectrum,) = data["spectra"]
    assert spectrum["sigma"] == [4.0, 3.0, 2.0, 1.0] and spectrum["notes"] == ["cut"]
    assert spectrum["participation"]["zeta_bound"] == "Infinity"
    assert spectrum["decomposition"]["chi"] == [2.0, 8.0, None, 30.0]
    assert spectrum["certificate"]["second_order"] is None
    loaded = sc.SpectralReport.load(str(tmp_path / "run.json"))
    assert str(loaded) == str(found) and loaded.provenance == found.provenance
    np.testing.assert_equal(asdict(loaded["body"]), asdict(whole))


@pytest.mark.parametrize("name", ["sigma", "curvature", "ggn"])
def test_arrays_of_unequal_lengths_are_no_spectrum(name):
    data = layer(ggn=np.ones(4)).to_dict()
    data[name] = data[name][:3]
    with pytest.raises(ValueError, match="^layer 'body' has unequal numbers of σ and h$"):
        sc.LayerSpectrum.from_dict(data)


def test_fits_of_a_batch_are_no_spectrum():
    """Whether a table shows them or not; nor is a χ that has no number for each direction."""
    for part, name, error in (
        ("triangle", "defect", sc.InputError), ("triangle", "window_term", sc.InputError),
        ("rank_profile", "delta_bic", sc.InputError), ("decomposition", "closure", sc.InputError),
        ("decomposition", "chi", TypeError),
    ):  # fmt: skip
        data = layer(decomposition=decomposition()).to_dict()
        data[part][name] = [1.0, 2.0] if name != "chi" else 1.0
        with pytest.raises(error):
            sc.LayerSpectrum.from_dict(data)
        with pytest.raises(sc.ReportError, match="is not a complete report"):
            sc.SpectralReport.from_dict(report(layer()).to_dict() | {"spectra": [data]})


def test_a_report_of_as_many_bytes_as_are_read(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    report(layer()).save(path)
    size = path.stat().st_size
    monkeypatch.setattr(files, "MAX_BYTES", size)
    sc.SpectralReport.load(path)
    monkeypatch.setattr(files, "MAX_BYTES", size - 1)
    with pytest.raises(sc.ReportError, match=f"has {size} bytes, more than the {size - 1}"):
        sc.SpectralReport.load(path)
