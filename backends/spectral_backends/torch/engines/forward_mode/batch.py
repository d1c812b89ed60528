"""The second derivative of one batch's loss along directions, by one forward pass of tangents.

The adjoints λ of all pieces of the forward pass are made once, by one pass back. Along a direction
D of a weight the second derivative of the loss is then ``Σ <λ, D²φ[ẋ, ẋ]>`` over the pieces φ that
follow the weight, with ẋ the tangent of D at each piece's input: one pass forward from the layer,
and nothing before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_backends.torch.capture.layer_io import LayerCall
from spectral_backends.torch.capture.tape import Segment, Tape
from spectral_backends.torch.engines.forward_mode.rules import TangentRule, tangent_rule
from spectral_backends.torch.instruments.sums import zero_sums
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.loss_terms import LossTerms

__all__ = ["Block", "SweepResult", "TangentBatch"]


class LossOfBatch(Protocol):
    """A loss with its terms: an `Objective` or a substitute for it."""

    def loss(
        self,
        weights: Mapping[str, Tensor],
        batch: Any,
        at_outputs: Callable[[Any], Any] | None = None,
    ) -> tuple[Tensor, LossTerms]:
        """Return the batch's loss with its graph, and its terms; see `Objective.loss`."""


@dataclass(frozen=True)
class Block:
    """Some directions of one layer: columns of u ``(m, k)`` and v ``(n, k)``."""

    layer: Layer
    u: Tensor
    v: Tensor

    def __len__(self) -> int:
        """Return the number of directions."""
        return int(self.u.shape[1])


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep of P directions in one batch, summed over terms; float64, ``(P,)``.

    Parameters
    ----------
    ggn : Tensor
        The curvature of the loss function along the tangents of the outputs. It is zero if the loss
        is not told from the model.
    second_order : Tensor
        The curvature of the model along the tangents, weighted by the adjoints.
    derivative : Tensor
        ``<∂loss, D>``.
    """

    ggn: Tensor
    second_order: Tensor
    derivative: Tensor


class TangentBatch:
    """One batch after its forward pass and its pass back.

    Parameters
    ----------
    objective : LossOfBatch
        The mean loss.
    layers : sequence of Layer
        The layers whose directions will be sent.
    leaves : mapping of str to Tensor
        The parameters of these layers, by name.
    batch : Any
        The data.
    shortcuts : bool
        The option of `tangent_rule`.

    Attributes
    ----------
    terms : LossTerms
        The terms of the batch.
    knows_outputs : bool
        Whether the loss is told from the model.
    used_by_loss : set of str
        The parameters that the loss function uses directly, as a penalty does.

    Raises
    ------
    RuntimeError
        If an operation cannot be differentiated twice.
    """

    def __init__(
        self,
        objective: LossOfBatch,
        layers: Sequence[Layer],
        leaves: Mapping[str, Tensor],
        batch: Any,
        *,
        shortcuts: bool = True,
    ) -> None:
        tape = Tape(layers, leaves)
        with tape:
            loss, self.terms = objective.loss(leaves, batch, tape.mark_outputs)
        self._leaves = leaves
        self._dense = tape.dense
        self._n_model = tape.n_model if tape.n_model >= 0 else len(tape.segments)
        self.knows_outputs = tape.n_model >= 0
        tape.cut([loss])
        of_loss = {id(leaf) for s in tape.segments[self._n_model :] for leaf in s.inputs}
        self.used_by_loss = {name for name, leaf in leaves.items() if id(leaf) in of_loss}
        self._root = tape.segments[-1].cuts[0]
        self._steps: list[tuple[int, Segment, list[Tensor], TangentRule]] = []
        if self.terms.count:
            self._pull_back(tape, shortcuts)
        self._last_use = {
            id(leaf): position
            for position, (_, _, inputs, _) in enumerate(self._steps)
            for leaf in inputs
        }

    def _pull_back(self, tape: Tape, shortcuts: bool) -> None:
        """Go back over the pieces with the adjoints, and keep the rules that tangents need."""
        adjoints = {id(self._root): self._root.new_full((), self.terms.scale)}
        passive = {id(leaf) for name, leaf in self._leaves.items() if name not in self._dense}
        for position in reversed(range(len(tape.segments))):
            segment = tape.segments[position]
            arriving = [adjoints.pop(id(cut), None) for cut in segment.cuts]
            if all(adjoint is None for adjoint in arriving):
                continue
            inputs = [leaf for leaf in segment.inputs if id(leaf) not in passive]
            if not inputs:
                rule: TangentRule = _nothing
            else:
                rule, pulled = tangent_rule(segment, inputs, arriving, shortcuts=shortcuts)
                for leaf, adjoint in zip(inputs, pulled, strict=True):
                    if adjoint is not None:
                        known = adjoints.get(id(leaf))
                        adjoints[id(leaf)] = adjoint if known is None else known + adjoint
            self._steps.append((position, segment, inputs, rule))
        self._steps.reverse()

    @torch.no_grad()
    def sweep(self, blocks: Sequence[Block]) -> SweepResult:
        """Send directions forward, together."""
        return _Sweep(blocks).run(self)

    def starts(self, block: Block) -> bool:
        """Say whether a block's tangents begin at its parameter, not at the results of its uses."""
        return block.layer.parameter in self._dense


class _Tangent:
    """Holds tangents of some blocks at one tensor: ``(P, *shape)``, in the order of the blocks."""

    def __init__(self, blocks: tuple[int, ...], values: Tensor) -> None:
        self.blocks, self.values = blocks, values


class _Sweep:
    """Runs one pass of tangents over the pieces of a batch."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._sizes = [len(block) for block in blocks]
        self._sums = [list(parts) for parts in zip(*(zero_sums(b.u) for b in blocks), strict=True)]
        self._tangents: dict[int, _Tangent] = {}

    def run(self, batch: TangentBatch) -> SweepResult:
        """Return the sums over the batch."""
        for index, block in enumerate(self._blocks):
            if batch.starts(block):
                parameter = batch._leaves[block.layer.parameter]
                matrices = torch.einsum("mk,nk->kmn", block.u, block.v)
                start = block.layer.view.embed(matrices, parameter.shape)
                self._meet(id(parameter), _Tangent((index,), start))
        for position, (segment_index, segment, inputs, rule) in enumerate(batch._steps):
            self._pass(batch, position, segment_index, segment, inputs, rule)
            self._begin(batch, segment)
        ggn, second_order, derivative = self._sums
        if (root := self._tangents.get(id(batch._root))) is not None:
            self._add(derivative, root.blocks, root.values * batch.terms.scale)
        return SweepResult(torch.cat(ggn), torch.cat(second_order), torch.cat(derivative))

    def _pass(
        self,
        batch: TangentBatch,
        position: int,
        segment_index: int,
        segment: Segment,
        inputs: list[Tensor],
        rule: TangentRule,
    ) -> None:
        """Send the tangents that there are through a piece."""
        found = [self._tangents.get(id(leaf)) for leaf in inputs]
        for leaf in inputs:
            if batch._last_use[id(leaf)] == position:
                self._tangents.pop(id(leaf), None)
        if all(tangent is None for tangent in found):
            return
        blocks = tuple(sorted({b for tangent in found if tangent for b in tangent.blocks}))
        outputs, second = rule([None if t is None else self._filled(t, blocks) for t in found])
        del found
        if second is not None:
            sums = self._sums[1] if segment_index < batch._n_model else self._sums[0]
            self._add(sums, blocks, second)
        for cut, values in zip(segment.cuts, outputs, strict=True):
            if values is not None:
                self._meet(id(cut), _Tangent(blocks, values))

    def _begin(self, batch: TangentBatch, segment: Segment) -> None:
        """Add the tangents of blocks whose layer's matrix made an output of this piece."""
        for layer, call in segment.calls:
            for index, block in enumerate(self._blocks):
                if block.layer is layer and not batch.starts(block):
                    cut = next(
                        cut
                        for cut, output in zip(segment.cuts, segment.outputs, strict=True)
                        if output is call.result
                    )
                    self._meet(id(cut), _Tangent((index,), _begun(call, block)))

    def _meet(self, leaf: int, new: _Tangent) -> None:
        """Add tangents to those that a tensor has."""
        known = self._tangents.get(leaf)
        if known is not None:
            blocks = tuple(sorted({*known.blocks, *new.blocks}))
            apart = len(blocks) == len(known.blocks) + len(new.blocks)
            values = (
                self._woven(blocks, [known, new])
                if apart
                else self._filled(known, blocks) + self._filled(new, blocks)
            )
            new = _Tangent(blocks, values)
        self._tangents[leaf] = new

    def _filled(self, tangent: _Tangent, blocks: tuple[int, ...]) -> Tensor:
        """Return tangents of more blocks, with zeros for the blocks that had none."""
        if tangent.blocks == blocks:
            return tangent.values
        return self._woven(blocks, [tangent])

    def _woven(self, blocks: tuple[int, ...], tangents: Sequence[_Tangent]) -> Tensor:
        """Return the tangents of these blocks, of which each is in one of several or in none."""
        pieces: dict[int, Tensor] = {}
        for tangent in tangents:
            sizes = [self._sizes[b] for b in tangent.blocks]
            pieces |= zip(tangent.blocks, torch.split(tangent.values, sizes), strict=True)
        like = tangents[0].values
        return torch.cat(
            [
                pieces[b] if b in pieces else like.new_zeros(self._sizes[b], *like.shape[1:])
                for b in blocks
            ]
        )

    def _add(self, sums: list[Tensor], blocks: tuple[int, ...], values: Tensor) -> None:
        parts = torch.split(values, [self._sizes[b] for b in blocks])
        for b, part in zip(blocks, parts, strict=True):
            sums[b] += part.to(sums[b].dtype)


def _nothing(tangents: Any) -> Any:
    raise AssertionError("a piece without inputs has no tangents")


def _begun(call: LayerCall, block: Block) -> Tensor:
    """Return the tangents ``u (vᵀ a)`` in the shape of the operation's result, ``(k, *shape)``."""
    along = call.project(block.v)  # (B, S, k)
    rows = along.permute(2, 0, 1).unsqueeze(-1) * block.u.T[:, None, None, :]
    with torch.enable_grad():  # the transpose of outputs() puts elements back
        arranged = call.result.detach().new_empty(()).expand(call.result.shape)
        arranged.requires_grad_()
        seen = call.outputs(arranged)
    (placed,) = torch.autograd.grad(seen, arranged, rows, is_grads_batched=True)
    return placed
