"""Modules whose names are in pickles of version 0.1.0; they are kept for one release."""

import sys
from importlib import import_module

MOVED = {
    "certificate": "curvature",
    "decomposition": "alignment",
    "explanation": "reporting",
    "matrix_layout": "matrices",
    "mechanisms": "alignment",
    "power_law": "exponents",
    "problem": "curvature",
    "rank_profile": "exponents",
    "report": "reporting",
}


def keep_old_names() -> None:
    """Make `pickle` find the classes of version 0.1.0 where it looks for them."""
    for old, room in MOVED.items():
        sys.modules[f"spectral_core.{old}"] = import_module(f"spectral_core.{room}")
