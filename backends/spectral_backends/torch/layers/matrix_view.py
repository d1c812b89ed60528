"""A weight matrix as a strided view of the tensor that holds it."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from spectral_core.matrices.strides import ParameterSlice

__all__ = ["MatrixView"]


@dataclass(frozen=True)
class MatrixView(ParameterSlice):
    """A slice of a parameter that PyTorch reads and writes as a strided view."""

    @classmethod
    def of(cls, view: Tensor, out_axes: int) -> "MatrixView":
        """Describe `view`, a view of a contiguous parameter (its values are not read)."""
        return cls(tuple(view.shape), view.stride(), int(view.storage_offset()), out_axes)

    def overlaps(self, other: "MatrixView") -> bool:
        """Say whether two matrices of a parameter have elements in common."""
        one, two = self.extent, other.extent
        if self == other or not (one.start < two.stop and two.start < one.stop):
            return self == other
        marks = torch.zeros(max(one.stop, two.stop), dtype=torch.bool)
        marks.as_strided(self.size, self.stride, self.offset).fill_(True)
        return bool(marks.as_strided(other.size, other.stride, other.offset).any())

    def matrix(self, parameter: Tensor) -> Tensor:
        """Read the matrix, shape ``(m, n)``, out of a tensor of the parameter's shape."""
        flat = parameter.contiguous()
        return flat.as_strided(self.size, self.stride, self.offset).reshape(self.shape)

    def embed(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Lay `matrices`, shape ``(K, m, n)``, into zeros of shape ``(K, *shape)``."""
        count, numel = matrices.shape[0], prod(shape)
        flat = matrices.new_zeros(count, numel)
        target = flat.as_strided((count, *self.size), (numel, *self.stride), self.offset)
        target.copy_(matrices.reshape(count, *self.size))
        return flat.view(count, *shape)
