"""`measure`: directions, curvatures, spectra; journal and progress of a long measurement."""

from spectral_core.measuring.convergence import converge as converge
from spectral_core.measuring.layer_selection import select_layers as select_layers
from spectral_core.measuring.measurement import measure as measure

__all__ = ["converge", "measure", "select_layers"]
