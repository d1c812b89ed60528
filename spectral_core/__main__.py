"""``python -m spectral_core`` runs the command line, which lives in the adapters."""

import sys

from spectral_adapters.cli import main

sys.exit(main())
