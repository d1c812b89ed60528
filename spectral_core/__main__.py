"""``python -m spectral_core``: the command line, which lives in the adapters."""

import sys

from spectral_adapters.cli import main

sys.exit(main())
