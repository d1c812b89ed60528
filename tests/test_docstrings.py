"""Every public name shows how it is used, and its examples print what they say."""

import doctest
import importlib
import inspect
import json
from pathlib import Path

import pytest

import spectral_core as sc

FACE = json.loads((Path(__file__).parent / "golden" / "public_face.json").read_text("utf-8"))
# The suite shows itself in its module's docstring; the command line has its help texts.
ELSEWHERE = ("spectral_core.testing", "spectral_adapters.cli")
# What a user does not make but gets, or what another example shows.
SHOWN_BY_OTHERS = (
    "ScaleBySpectralNewtonState",
    "SpectralNewtonState",
    "RoutingTable",
    "DemoRun",
    "find_sentences",
)
NAMES = [
    (module, name)
    for module, names in FACE.items()
    for name, face in names.items()
    if module not in ELSEWHERE and name not in SHOWN_BY_OTHERS and face != "value"
]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_the_examples_of_a_docstring_hold(module, name, tmp_path, monkeypatch):
    if module == "spectral_adapters.plots":
        pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)  # some write files
    owner = pytest.importorskip(module, exc_type=ImportError)
    thing = getattr(owner, name)
    assert inspect.getdoc(thing).split("\n\n")[0].rstrip().endswith(".")
    finder = doctest.DocTestFinder(recurse=False)
    known = vars(importlib.import_module(thing.__module__)) | vars(owner)
    known["sc"] = sc
    (example,) = finder.find(thing, name, module=False, globs=known)
    assert example.examples, f"{name}: show how it is used, in a section of examples"
    try:
        # It raises; a `DocTestRunner` would print an ImportError and count it as a failure.
        doctest.DebugRunner(optionflags=doctest.ELLIPSIS).run(example)
    except doctest.DocTestFailure as failure:
        pytest.fail(
            f"{failure.example.source}printed {failure.got!r}, not {failure.example.want!r}"
        )
    except doctest.UnexpectedException as error:
        reason = error.exc_info[1]
        if not isinstance(reason, ImportError):
            raise reason from error
        pytest.skip(str(reason))  # another session has that library
