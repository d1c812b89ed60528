"""Leaving the process as it was found, and making a model's passes differentiable twice."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_attention", "seeded"]


@contextmanager
def seeded(seed: int, device: torch.device, batches: Any) -> Iterator[None]:
    """Run with every random generator seeded, then put each back where it was.

    Covers Python, NumPy, torch on the CPU and on `device`, and the generators that a `DataLoader`
    and its sampler hold, so that a random model or loader repeats itself from pass to pass.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    own = [g for g in _generators(batches) if isinstance(g, torch.Generator)]
    own_states = [generator.get_state() for generator in own]
    devices = [device] if device.type not in ("cpu", "meta") else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            for generator in own:
                generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in zip(own, own_states, strict=True):
            generator.set_state(state)


def _generators(batches: Any) -> list[Any]:
    holders = [batches, getattr(batches, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(generator): generator for generator in found}.values())


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Use the attention kernels that have a second derivative; restore the others afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
