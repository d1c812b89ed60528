"""ResNet-20 on CIFAR-10 test images, from a weights file.

::

    SPECTRAL_DATA=path/to/data spectral-core measure docs/examples/resnet20_cifar10.py:problem \
        --weights path/to/data/resnet20_cifar10.safetensors --output report.json --plots figures

The data folder holds `cifar10_test.npz` (arrays `images`, uint8 NHWC, and `labels`) and
`reference_networks.py` with the forward pass of the stored weights.
"""

from typing import Any

import shared_data
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem


def cifar10_test(count: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first `count` test images, normalised, in batches."""
    images, labels = map(torch.from_numpy, shared_data.cifar10_test(count))
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def problem(weights: dict[str, Tensor], count: int = 2048, **options: Any) -> CurvatureProblem:
    """Return the problem: a function of the parameter dict, batch norm in eval mode."""
    networks = shared_data.reference_networks()
    return CurvatureProblem(
        lambda params, images: networks.resnet_cifar(params)(images),
        F.cross_entropy,
        cifar10_test(count, batch_size=128),
        params=weights,
        **options,
    )
