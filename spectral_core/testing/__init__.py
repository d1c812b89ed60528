"""The conformance suite: requirements on every `CurvatureProblem`, to run against your backend.

>>> @pytest.mark.parametrize("clause", testing.clauses(), ids=str)
... def test_conformance(clause):
...     clause.check(make)

Here ``make(form, watch)`` builds your problem of a `ClosedForm`.
"""

from spectral_core.testing.clause import Clause as Clause
from spectral_core.testing.clause import ConformanceError as ConformanceError
from spectral_core.testing.clause import Make as Make
from spectral_core.testing.clause import Watch as Watch
from spectral_core.testing.closed_form import Batch as Batch
from spectral_core.testing.closed_form import ClosedForm as ClosedForm
from spectral_core.testing.forms import closed_forms as closed_forms
from spectral_core.testing.suite import clauses as clauses

__all__ = [
    "Batch", "Clause", "ClosedForm", "ConformanceError", "Make", "Watch", "clauses",
    "closed_forms",
]  # fmt: skip
