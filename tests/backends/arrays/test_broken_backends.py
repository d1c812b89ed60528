"""The conformance suite itself: a correct backend passes, and one that breaks a clause fails it."""

import pytest
from broken_backends import BROKEN, correct

from spectral_core import testing

CLAUSES = {clause.name: clause for clause in testing.clauses()}


def broken_clauses(make):
    """Return the messages of the clauses that a backend does not keep."""
    found = {}
    for name, clause in CLAUSES.items():
        try:
            clause.check(make)
        except testing.ConformanceError as error:
            found[name] = str(error)
    return found


def test_every_clause_is_broken_once():
    assert list(BROKEN) == list(CLAUSES)


def test_what_is_wrapped_is_correct():
    """So a broken one fails for what is broken; and it offers all that the suite looks at."""
    for clause in CLAUSES.values():
        assert clause.check(correct) == (), clause


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_backend_fails_at_its_clause(name):
    """Besides only at clauses that look at the same values."""
    found = broken_clauses(BROKEN[name].make)
    assert found.keys() == {name, *BROKEN[name].also}
    assert found[name].startswith(f"{name} ({CLAUSES[name].statement}): ")
    assert "expected" in found[name] or "raised" in found[name]
