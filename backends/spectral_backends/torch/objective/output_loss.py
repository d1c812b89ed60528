"""A loss as a function of the network's outputs, for the core; and random numbers for it."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from spectral_backends.torch.objective.loss_terms import LossTerms
from spectral_core.errors import InputError
from spectral_core.losses.base import OutputCurvature
from spectral_core.losses.form import OutputForm, output_curvature
from spectral_core.losses.protocols import Fit
from spectral_core.losses.recognition import find_form

__all__ = ["TorchDraws", "loss_curvature"]


class _OutputLoss:
    """Implements `spectral_core.losses.protocols.OutputLoss` by autograd."""

    def __init__(self, outputs: Tensor, loss_of: Callable[[Tensor], Tensor]) -> None:
        self._loss_of, self.outputs = loss_of, outputs
        self._z = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (self._gradient,) = torch.autograd.grad(
                loss_of(self._z), self._z, create_graph=True, materialize_grads=True
            )
        self.gradient = self._gradient.detach()

    def at(self, outputs: Tensor) -> "_OutputLoss":
        """Return the same loss at another point."""
        return _OutputLoss(outputs, self._loss_of)

    def products(self, vectors: Tensor) -> Tensor:
        """Return the Hessian at z times each of ``(n, *z.shape)``."""
        if not self._gradient.requires_grad:
            return torch.zeros_like(vectors)
        return torch.stack([self._product(vector) for vector in vectors])

    @property
    def probe(self) -> Tensor:
        """Return a tensor like z whose entries have no structure, always the same."""
        z = self.outputs
        generator = torch.Generator(z.device).manual_seed(0)
        return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)

    def _product(self, vector: Tensor) -> Tensor:
        try:
            (product,) = torch.autograd.grad(
                self._gradient, self._z, vector, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise InputError(
                f"loss_fn: autograd cannot differentiate it twice in the outputs ({error}), so it "
                "has no Gauss-Newton curvature; replace the operation by one that has."
            ) from error
        return product


class TorchDraws:
    """Implements `spectral_core.losses.protocols.Draws` with a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def signs(self, like: Tensor) -> Tensor:
        """Return −1 and 1 with equal chances."""
        bits = torch.randint(2, like.shape, generator=self._generator, device=like.device)
        return 2 * bits.to(like.dtype) - 1

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(
            like.shape, generator=self._generator, dtype=like.dtype, device=like.device
        )

    def bernoulli(self, p: Tensor) -> Tensor:
        """Return 1 with probability p, else 0."""
        return torch.bernoulli(p, generator=self._generator)

    def one_hot(self, p: Tensor) -> Tensor:
        """Return, along the last axis, 1 for a class drawn with probabilities p and 0 else."""
        flat = p.reshape(-1, p.shape[-1])
        drawn = torch.multinomial(flat, 1, generator=self._generator)
        return torch.zeros_like(flat).scatter_(1, drawn, 1).reshape(p.shape)


def loss_curvature(
    outputs: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    terms: LossTerms,
    max_outputs: int,
    *,
    convex: bool = True,
) -> OutputCurvature:
    """Return the curvature of ``loss_of``, as the sum of its terms, at outputs without a graph.

    `max_outputs`, `convex` and what is raised are as in `find_form` of the core.
    """
    loss = _OutputLoss(outputs, lambda z: terms.scale * loss_of(z))
    tried: dict[OutputForm, OutputCurvature] = {}

    def fits(forms: Sequence[OutputForm]) -> Iterator[Fit]:
        for form in forms:
            tried[form] = output_curvature(form, loss, terms.count)
            yield tried[form].fit()

    eps = torch.finfo(outputs.dtype).eps
    form = find_form(outputs.shape, eps, fits, max_outputs, convex=convex)
    return tried[form] if form in tried else output_curvature(form, loss, terms.count)
