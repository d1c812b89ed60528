"""Probes that read ``uᵀ δ aᵀ v`` off a backward pass, without keeping any δ."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.capture.layer_io import ActivationCapture, LayerCall
from spectral_backends.torch.instruments.linearity import identity
from spectral_backends.torch.instruments.nested import tensors_in
from spectral_backends.torch.layers.discovery import Layer

__all__ = ["DirectionProbes"]


class DirectionProbes(ActivationCapture):
    """Watches a forward pass and puts a probe at each use of some layers' matrices.

    A probe is the identity on the operation's result, plus zero times a leaf of shape ``(B, K)``.
    The gradient in the leaf is ``Σ_t (u_kᵀ δ_t)(v_kᵀ a_t)``, sample by sample: the derivative along
    ``u_k v_kᵀ`` of the function that is differentiated (Theory 5.4).

    Parameters
    ----------
    layers : iterable of Layer
        The layers whose uses are probed.
    parameters : mapping of str to Tensor
        The leaves that the model uses, by name.
    directions : mapping of str to (Tensor, Tensor)
        The vectors u of shape ``(m, K)`` and v of shape ``(n, K)`` of each layer.

    Attributes
    ----------
    leaves : dict of str to list of Tensor
        One leaf for each use of a layer.
    unprobed : dict of str to str
        The layers that have a use where no probe can be put, with the reason.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        parameters: Mapping[str, Tensor],
        directions: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(layers, parameters)
        self._directions = directions
        self.leaves: dict[str, list[Tensor]] = {name: [] for name in directions}
        self._in_place: set[str] = set()

    @property
    def unprobed(self) -> dict[str, str]:
        """Return the layers that have a use where no probe can be put, with the reason."""
        unseen = [layer.info.name for layer in self._layers if not self.all_seen(layer)]
        hidden = {name: f"{kind} hides its positions" for name, kind in self.hidden.items()}
        return (
            dict.fromkeys(unseen, "its weight is also used in other ways")
            | dict.fromkeys(self._in_place, "a product in place")
            | hidden
        )

    def replace(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Put a probe at the result for each layer whose matrix made it."""
        for layer, call in self.made:
            name = layer.info.name
            if any(result is tensor for tensor in tensors_in((args, kwargs))):
                self._in_place.add(name)
                continue
            u, v = self._directions[name]
            # Of more directions than inputs, products with each input come first: they are fewer.
            few = v.shape[1] <= v.shape[0]
            with torch.no_grad():
                along = call.project(
                    v if few else torch.eye(len(v), dtype=v.dtype, device=v.device)
                )
            leaf = along.new_zeros(along.shape[0], v.shape[1], requires_grad=True)
            result = _Probe.apply(  # type: ignore[no-untyped-call]
                result, leaf, call, u, None if few else v, along
            )
            self.leaves[name].append(leaf)
        self.made = []
        return result


@identity
class _Probe(torch.autograd.Function):
    """Return a result as it is, and project the gradient that comes back on directions."""

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        leaf: Tensor,
        call: LayerCall,
        u: Tensor,
        v: Tensor | None,
        along: Tensor,
    ) -> Tensor:
        """Return the result in an object of its own."""
        ctx.call, ctx.u, ctx.v, ctx.along = call, u, v, along
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient and its products with the directions."""
        rows = ctx.call.outputs(gradients[0])  # (B, S, m)
        if ctx.v is not None:  # `along` are the inputs, and their products the matrix of a sample
            products = (rows.mT @ ctx.along @ ctx.v * ctx.u).sum(-2)
        elif rows.shape[-2] > rows.shape[-1]:  # sum over the longer axis first
            products = (rows.mT @ ctx.along * ctx.u).sum(-2)
        else:
            products = (rows @ ctx.u * ctx.along).sum(-2)
        return gradients[0], products, None, None, None, None
