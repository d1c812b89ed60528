"""Where the examples find their data: the folder that ``SPECTRAL_DATA`` names.

It holds the weights, the data sets and `reference_networks.py`, the forward passes of the weights.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

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


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the ResNet's training


def cifar10_test(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the first `count` test images ``(N, 3, 32, 32)``, normalised, and their labels."""
    with np.load(DATA / "cifar10_test.npz") as stored:
        return normalised(stored["images"][:count]), stored["labels"][:count].astype(np.int64)


def normalised(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return images ``(N, 32, 32, 3)`` of bytes as the ResNet takes them, ``(N, 3, 32, 32)``."""
    found = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (MEAN, STD))
    return (found - mean) / std
