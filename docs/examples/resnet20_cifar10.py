"""ResNet-20 on CIFAR-10 test images, from a weights file.

::

    SPECTRAL_DATA=path/to/data spectral-core measure docs/examples/resnet20_cifar10.py:problem \
        --weights path/to/data/resnet20_cifar10.safetensors --output report.json --plots figures

The data folder holds `cifar10_test.npz` (arrays `images`, uint8 NHWC, and `labels`) and
`reference_networks.py` with the forward pass of the stored weights.
"""

from typing import Any

import numpy as np
import torch
from shared_data import DATA, reference_networks
from torch import Tensor
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the network's training


def cifar10_test(count: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first `count` test images, normalised, in batches."""
    with np.load(DATA / "cifar10_test.npz") as stored:
        images = torch.from_numpy(stored["images"][:count]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(stored["labels"][:count].astype(np.int64))
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def problem(weights: dict[str, Tensor], count: int = 2048, **options: Any) -> CurvatureProblem:
    """Return the problem: a function of the parameter dict, batch norm in eval mode."""
    networks = reference_networks()
    return CurvatureProblem(
        lambda params, images: networks.resnet_cifar(params)(images),
        F.cross_entropy,
        cifar10_test(count, batch_size=128),
        params=weights,
        **options,
    )
