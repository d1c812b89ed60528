"""Where the examples find their data: the folder that ``SPECTRAL_DATA`` names.

It holds the weights, the data sets and `reference_networks.py`, the forward passes of the weights.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

DATA = Path(os.environ.get("SPECTRAL_DATA", "../shared/data"))


def reference_networks() -> ModuleType:
    """Import the forward passes from the data folder."""
    path = DATA / "reference_networks.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
