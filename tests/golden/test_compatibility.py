"""What users of version 0.1.0 have written goes on working: names, signatures, pickles, reports."""

import base64
import json
import pickle
import re
import sys
from pathlib import Path

import pytest

import spectral_core as sc
from spectral_core._renamed import FORMER_NAMES

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "tools" / "golden"))

import public_face  # noqa: E402

FACE = json.loads((HERE / "public_face.json").read_text())
PICKLES = json.loads((HERE / "version_0_1_0_pickles.json").read_text())
NEEDS = {
    "optax": "optax",
    "SpectralDimensionNumbers": "optax",
    "ScaleBySpectralNewtonState": "optax",
    "torch_optim": "torch",
}


def faces():
    for module, names in FACE.items():
        for name, face in names.items():
            members = face.items() if isinstance(face, dict) else [("", face)]
            for member, parameters in members:
                yield pytest.param(
                    module, name, member, parameters, id=f"{module}.{name}.{member}".rstrip(".")
                )


@pytest.fixture(scope="module")
def present():
    found = {}

    def of(module):
        if module not in found:
            pytest.importorskip(module, exc_type=ImportError)
            found[module] = public_face.public_face(module)
        return found[module]

    return of


def by_its_new_name(parameter):
    """Return an argument as it is called now; `tests/unit/test_renamed.py` uses former names."""
    star, name, default = re.fullmatch(r"(\* )?(\w+)(=.*)", parameter).groups(default="")
    new = {former: name for name, former in FORMER_NAMES.items()}.get(name, name)
    return f"{star}{new}{default}"


@pytest.mark.parametrize(("module", "name", "member", "recorded"), faces())
def test_a_public_name_takes_what_it_took(present, module, name, member, recorded):
    now = present(module)[name]
    now = now[member] if member else now
    if isinstance(recorded, str):
        assert now == recorded
        return
    if member != "()":  # fields keep their names
        recorded = [by_its_new_name(each) if "=" in each else each for each in recorded]
    positional = [each for each in recorded if not each.startswith("* ")]
    assert now[: len(positional)] == positional
    assert set(recorded) <= set(now), f"{set(recorded) - set(now)} went away or changed"
    new = [each for each in now if each not in recorded]
    assert all("=" in each for each in new), f"{new} must be given where nothing was"


def test_no_public_name_is_new_without_being_written_down(present):
    for module in FACE:
        if module.partition(".")[0] == "spectral_core":
            assert set(present(module)) == set(FACE[module])


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_of_0_1_0_loads(name):
    for part, library in NEEDS.items():
        if part in name:
            pytest.importorskip(library)
    kept = pickle.loads(base64.b64decode(PICKLES[name]))
    kind = name.rpartition(".")[2]
    assert type(kept).__name__ == (kind if kind != "state_dict" else "dict")
    again = pickle.loads(pickle.dumps(kept))
    assert type(again) is type(kept)
    public = getattr(sc, kind, None)
    assert public is None or type(kept) is public


def test_an_error_of_a_layer_comes_back_from_a_pickle():
    again = pickle.loads(pickle.dumps(sc.LayerError("a", "it is flat")))
    assert (again.layer, again.reason, str(again)) == (
        "a",
        "it is flat",
        str(sc.LayerError("a", "it is flat")),
    )


def kept_of(written, now):
    """Return what was written as it is now: later versions may have more fields."""
    if isinstance(written, dict):
        return {key: kept_of(written[key], now[key]) for key in written}
    if isinstance(written, list) and len(written) == len(now):
        return [kept_of(*pair) for pair in zip(written, now, strict=True)]
    return now


def test_a_report_of_0_1_0_loads():
    report = sc.SpectralReport.load(HERE / "version_0_1_0_report.json")
    assert list(report) == ["0", "1", "head"]
    written = json.loads((HERE / "version_0_1_0_report.json").read_text())
    assert kept_of(written, report.to_dict()) == written | {"schema_version": 2}
    kept = pickle.loads(base64.b64decode(PICKLES["SpectralReport"]))
    assert kept.to_dict() == report.to_dict() and str(kept) == str(report)
