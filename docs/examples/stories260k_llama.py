"""The 260k-parameter Llama on text sampled from itself, from a weights file.

::

    SPECTRAL_DATA=path/to/data spectral-core measure docs/examples/stories260k_llama.py:problem \
        --weights path/to/data/stories260k_llama.safetensors --output report.json --plots figures

The data folder holds `stories260k_selfsampled_tokens.npz` (`tokens`, uint16, one sequence a row)
and `reference_networks.py` with the forward pass of the stored weights.
"""

from typing import Any

import numpy as np
import torch
from shared_data import DATA, reference_networks
from torch import Tensor
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem


def sequences(count: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return `count` sequences as (tokens, next tokens) in batches."""
    with np.load(DATA / "stories260k_selfsampled_tokens.npz") as stored:
        tokens = torch.from_numpy(stored["tokens"][:count].astype(np.int64))
    return [(part[:, :-1], part[:, 1:]) for part in tokens.split(batch_size)]


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def problem(weights: dict[str, Tensor], count: int = 128, **options: Any) -> CurvatureProblem:
    """Return the problem: a function of the parameter dict, with a tied embedding."""
    networks = reference_networks()
    return CurvatureProblem(
        lambda params, tokens: networks.llama_260k(params)(tokens),
        token_loss,
        sequences(count, batch_size=8),
        params=weights,
        **options,
    )
