"""ResNet-20 on CIFAR-10 test images, from a weights file::

    SPECTRAL_DATA=path/to/data spectral-core measure docs/examples/resnet20_cifar10.py:problem \
        --weights path/to/data/resnet20_cifar10.safetensors --output report.json --plots figures

The data folder holds `cifar10_test.npz` (arrays `images`, uint8 NHWC, and `labels`) and
`reference_networks.py` with the forward pass of the stored weights.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

DATA = Path(os.environ.get("SPECTRAL_DATA", "../shared/data"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the network's training


def load_module(path: Path) -> ModuleType:
    """Import a Python file by path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cifar10_test(count: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first `count` test images, normalised, in batches."""
    with np.load(DATA / "cifar10_test.npz") as stored:
        images = torch.from_numpy(stored["images"][:count]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(stored["labels"][:count].astype(np.int64))
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def problem(weights: dict[str, Tensor], **options: Any) -> CurvatureProblem:
    """Return the problem: a function of the parameter dict, batch norm in eval mode."""
    networks = load_module(DATA / "reference_networks.py")
    return CurvatureProblem(
        lambda params, images: networks.resnet_cifar(params)(images),
        F.cross_entropy,
        cifar10_test(count=2048, batch_size=128),
        params=weights,
        **options,
    )
