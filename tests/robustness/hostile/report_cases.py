"""Reports that cannot be read or written; damaged files are in test_files.py."""

import json
import os
import pickle
from pathlib import Path

from case import refused
from torch_cases import build

import spectral_core as sc

REPORT = sc.measure(build(), top_k=3)


def loaded(change):
    """Load the report with its JSON changed."""
    data = json.loads(json.dumps(REPORT.to_dict()))
    change(data)
    Path("changed.json").write_text(json.dumps(data))
    return sc.SpectralReport.load("changed.json")


def written(content):
    Path("written.json").write_bytes(content)
    return sc.SpectralReport.load("written.json")


def fifo():
    os.mkfifo("pipe")
    return sc.SpectralReport.load("pipe")


def huge():
    with open("huge.json", "wb") as stream:
        stream.truncate(2**40)  # a hole
    return sc.SpectralReport.load("huge.json")


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def pickled():
    try:
        return written(pickle.dumps(Evil()))
    finally:
        assert not Path("owned").exists()


def put(*path, value):
    def change(data):
        *way, last = path
        for key in way:
            data = data[key]
        data[last] = value

    return lambda: loaded(change)


def twice():
    return loaded(lambda data: data["spectra"].append(data["spectra"][0]))


INCOMPLETE = ("changed.json", "not a complete report", "save it again")
CUT = ("written.json", "not JSON", "save")

CASES = [
    *(refused("SpectralReport.load", what, call, *words, error=sc.ReportError) for what, call, words in (
        ("not there", lambda: sc.SpectralReport.load("none.json"), ("none.json", "No such file", "check the path")), ("a folder", lambda: sc.SpectralReport.load("."), (".", "no regular file", "choose another")),
        ("a device without end", lambda: sc.SpectralReport.load("/dev/zero"), ("/dev/zero", "no regular file", "choose another")), ("a pipe without a writer", fifo, ("pipe", "no regular file", "choose another")),
        ("a terabyte", huge, ("huge.json", "1099511627776 bytes", "choose another")), ("a pickle", pickled, CUT), ("empty", lambda: written(b""), CUT), ("NUL bytes", lambda: written(b"\0" * 100), CUT),
        ("a million brackets", lambda: written(b"[" * 10**6), CUT), ("nested objects", lambda: written(b'{"a":' * 10**5), CUT), ("100 MB in one line", lambda: written(b"[" + b"0," * (5 * 10**7)), CUT),
        ("a number of a million digits", lambda: written(b'{"schema_version": ' + b"9" * 10**6 + b"}"), CUT), ("a number beyond floats", lambda: written(b'{"schema_version": 1, "x": 1e999}'), CUT),
        ("NaN, which is no JSON", lambda: written(b'{"schema_version": NaN}'), CUT), ("UTF-16", lambda: written("{}".encode("utf-16")), CUT),
        ("another JSON", lambda: written(b"[1, 2]"), ("written.json", "holds no 'schema_version'", "choose a file")), ("a version of True", put("schema_version", value=True), ("changed.json", "holds no 'schema_version'", "choose a file")),
        ("a version to come", put("schema_version", value=10**9), ("changed.json", "1000000000", "pip install -U")), ("a version as text", put("schema_version", value="1"), ("changed.json", "holds no 'schema_version'", "choose a file")),
        ("no layers", put("spectra", value=None), INCOMPLETE), ("layers in a dict", put("spectra", value={"a": 1}), INCOMPLETE), ("a layer of null", put("spectra", 0, value=None), INCOMPLETE), ("a layer twice", twice, INCOMPLETE),
        ("no provenance", put("provenance", value=[]), INCOMPLETE), ("a loss as text", put("provenance", "problem", "loss", value="__import__('os')"), INCOMPLETE), ("a window as text", put("provenance", "top_k", value="20"), INCOMPLETE),
        ("skipped by number", put("skipped", value={"a": 5}), INCOMPLETE), ("skipped in a list", put("skipped", value=[["a", "b"]]), INCOMPLETE), ("a name of null", put("spectra", 0, "name", value=None), INCOMPLETE),
        ("a shape of three", put("spectra", 0, "shape", value=[1, 2, 3]), INCOMPLETE), ("a shape of text", put("spectra", 0, "shape", value="ab"), INCOMPLETE), ("σ of text", put("spectra", 0, "sigma", value=["a", "b", "c"]), INCOMPLETE),
        ("σ in rows", put("spectra", 0, "sigma", value=[[1.0], [2.0]]), INCOMPLETE), ("fewer σ than h", put("spectra", 0, "sigma", value=[1.0]), INCOMPLETE), ("σ beyond floats", put("spectra", 0, "sigma", value=[10**400] * 3), INCOMPLETE),
        ("α of text", put("spectra", 0, "triangle", "alpha", "exponent", value="2"), INCOMPLETE), ("α a list", put("spectra", 0, "triangle", "alpha", "exponent", value=[1.0, 2.0]), INCOMPLETE), ("α an object", put("spectra", 0, "triangle", "alpha", "exponent", value={"a": 1}), INCOMPLETE),
        ("an interval of one", put("spectra", 0, "triangle", "alpha", "interval", value=[1.0]), INCOMPLETE), ("an unknown profile", put("spectra", 0, "rank_profile", "winner_code", value=99), INCOMPLETE), ("an unknown status", put("spectra", 0, "triangle", "alpha", "status", value=7), INCOMPLETE),
        ("notes of numbers", put("spectra", 0, "notes", value=[5]), INCOMPLETE), ("a note in place of notes", put("spectra", 0, "notes", value="abc"), INCOMPLETE), ("a certificate of text", put("spectra", 0, "certificate", value="fine"), INCOMPLETE),
        ("participation a number", put("spectra", 0, "participation", value=3), INCOMPLETE),
    )),
    *(refused("SpectralReport.load", repr(path), lambda p=path: sc.SpectralReport.load(p), "path", repr(path), "pass a text") for path in (5, None, b"run.json", "a\0b")),
    *(refused("SpectralReport.save", repr(path), lambda p=path: REPORT.save(p), "path", repr(path), "pass a text") for path in (5, None, b"run.json", "a\0b")),
    *(refused("SpectralReport.save", what, lambda p=path: REPORT.save(p), path, seen, remedy, error=sc.ReportError) for what, path, seen, remedy in (
        ("over a device", "/dev/null", "no regular file", "choose another"), ("over a folder", ".", "no regular file", "choose another"), ("too long a name", "x" * 300, "File name too long", "choose another"), ("below a file", "/dev/null/run.json", "cannot be written", "choose another"),
    )),
    *(refused("SpectralReport.from_dict", what, lambda d=data: sc.SpectralReport.from_dict(d), "report", "holds no 'schema_version'", "choose a file", error=sc.ReportError) for what, data in (("None", None), ("a list", []), ("empty", {}))),
    refused("SpectralReport", "a layer that is not there", lambda: REPORT["nope"], "'nope'", "no layer", "there are: 0, 2", error=KeyError),
    refused("LayerSpectrum.from_dict", "empty", lambda: sc.LayerSpectrum.from_dict({}), "a LayerSpectrum", "without name", "sigma", error=KeyError),
    refused("LayerSpectrum.from_dict", "a number", lambda: sc.LayerSpectrum.from_dict(5), "a int", "in place of", "a LayerSpectrum", error=TypeError),
]  # fmt: skip
