"""The clauses of all kinds, in the order in which a backend grows into them."""

from spectral_core.testing import (
    conduct_clauses,
    data_clauses,
    measure_clauses,
    protocol_clauses,
    refusal_clauses,
    value_clauses,
)
from spectral_core.testing.clause import Clause

__all__ = ["clauses"]


def clauses() -> tuple[Clause, ...]:
    """Return the requirements on every backend as clauses; none depends on another."""
    return (
        *protocol_clauses.CLAUSES,
        *value_clauses.CLAUSES,
        *data_clauses.CLAUSES,
        *conduct_clauses.CLAUSES,
        *refusal_clauses.CLAUSES,
        *measure_clauses.CLAUSES,
    )
