"""Every public name shows how it is used, and its examples print what they say."""

import doctest
import inspect

import pytest

import spectral_core as sc

NAMES = [name for name in sc.__all__ if callable(getattr(sc, name))]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_docstring_hold(name):
    thing = getattr(sc, name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(thing, name, module=False, globs={"sc": sc})
    assert example.examples, f"{name}: show how it is used, in a section of examples"
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_is_a_sentence(name):
    first = inspect.getdoc(getattr(sc, name)).split("\n\n")[0]
    assert first.rstrip().endswith(".")
