"""The operations of torch that consume a weight: one file a kind, listed here."""

from spectral_backends.torch.layers.readers import (
    convolution,
    einsum,
    embedding,
    fused,
    linear,
)
from spectral_backends.torch.layers.readers.base import Reader

__all__ = ["READERS"]

READERS: dict[str, Reader] = {
    **linear.READERS,
    **convolution.READERS,
    **embedding.READERS,
    **einsum.READERS,
    **fused.READERS,
}
"""Each reader by the name of its operation, as torch calls it."""
