"""Uses of the library: optimizers, the command line, plots, tables and the demo."""

import sys

from spectral_adapters.routing import dimension_numbers, table

# Modules whose names are in pickles of version 0.1.0; they are kept for one release.
sys.modules[f"{__name__}.dimension_numbers"] = dimension_numbers
sys.modules[f"{__name__}.routing_table"] = table
