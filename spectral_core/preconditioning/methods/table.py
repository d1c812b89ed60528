"""The table of methods. A new one is a line here."""

from spectral_core.preconditioning.methods.base import Method
from spectral_core.preconditioning.methods.closed import Closed
from spectral_core.preconditioning.methods.eigh import Eigh
from spectral_core.preconditioning.methods.inversion import Inversion
from spectral_core.preconditioning.methods.polar import Polar
from spectral_core.preconditioning.methods.polynomial import Polynomial
from spectral_core.preconditioning.methods.shifts import Shifts
from spectral_core.preconditioning.methods.svd import Svd

__all__ = ["METHODS"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (Closed(), Shifts(), Eigh(), Svd(), Polar(), Polynomial(), Inversion())
}
