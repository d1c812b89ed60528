"""The mean loss of a model over its batches, as a function of its parameters."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from spectral_backends.torch.instruments.nested import map_tensors
from spectral_backends.torch.instruments.process_state import (
    differentiable_operations,
    modes_put_back,
    saved_tensors_kept,
    seeded,
)
from spectral_backends.torch.instruments.threads import threads_for
from spectral_backends.torch.objective.functional_model import FunctionalModel
from spectral_backends.torch.objective.loss_terms import LossTerms, Reduction, ReductionRecorder
from spectral_backends.torch.objective.term_check import cutter_of, shapes_of
from spectral_core.curvature.argument_checks import checked_count
from spectral_core.errors import InputError
from spectral_core.losses.batch_weighting import Weighting, settled
from spectral_core.losses.sample_cuts import cut_batches
from spectral_core.losses.terms import BatchLoss
from spectral_core.storage.exclusive import exclusively

__all__ = ["Objective"]


class Objective:
    """``L = (1/N) Σ_i l_i`` as a function of the model's parameters, batch by batch.

    Parameters
    ----------
    model : FunctionalModel
        The model as a function of its parameters.
    loss_fn, batches, forward, weight, reduction
        The arguments of `CurvatureProblem`.

    Attributes
    ----------
    work_of_operation : float
        The multiply-adds of a matrix product or convolution of the model on one batch. They decide
        on the number of threads of a pass, and are infinite until they are known.
    """

    def __init__(
        self,
        model: FunctionalModel,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        batches: Iterable[Any],
        forward: Callable[[Any, Any], Any] | None,
        weight: Callable[[Any], float] | None,
        reduction: Reduction | None,
    ) -> None:
        self.model = model
        self._given = loss_fn, batches, forward, weight, reduction
        self._loss_fn = _with_tensors_cast(loss_fn, model)
        self.batches, self._forward = batches, forward
        self._weight, self._reduction = weight, reduction
        self.weighting = Weighting(reduction=reduction)
        self.work_of_operation = float("inf")

    def in_type(self, dtype: torch.dtype) -> "Objective":
        """Return the same function of the same values in another floating point type."""
        other = Objective(self.model.in_type(dtype), *self._given)
        other.weighting = self.weighting
        return other

    def on_batches(self, batches: Iterable[Any]) -> "Objective":
        """Return the same mean over other batches, weighted by the same rule."""
        loss_fn, _, forward, weight, reduction = self._given
        found = Objective(self.model, loss_fn, batches, forward, weight, reduction)
        found.weighting, found.work_of_operation = self.weighting, self.work_of_operation
        return found

    @contextmanager
    def one_pass(self, seed: int) -> Iterator[Iterator[Any]]:
        """Yield the batches, moved and cast, with every side effect undone afterwards.

        Passes of other threads wait, as a module and the process hold parameters and seed of one.
        """
        on_cpu = self.model.device.type == "cpu"
        with (
            exclusively(),
            modes_put_back(),
            threads_for(self.work_of_operation) if on_cpu else nullcontext(),
            seeded(seed, self.model.device, self.batches),
            differentiable_operations(self.model.device),
            saved_tensors_kept(),
            torch.inference_mode(False),
            torch.enable_grad(),
            self.model.unchanged(),
        ):
            yield (map_tensors(self.model.cast_input, batch) for batch in self.batches)

    def settle_terms(
        self, batches: Sequence[BatchLoss], seed: int, precision: torch.dtype, *, strict: bool
    ) -> Weighting:
        """Choose how batches are weighted, from what cutting one of them shows.

        Parameters
        ----------
        batches : sequence of BatchLoss
            The batches as a pass over all of them saw them.
        seed : int
            The seed of each pass.
        precision : dtype
            The narrowest that is computed in on the way from the parameters.
        strict : bool
            Whether to refuse terms that the cut does not confirm.

        Raises
        ------
        InputError
            If the loss does not tell how to weight several batches, or contradicts the user.
        """

        def data(index: int) -> Any:
            with self.one_pass(seed) as found:
                batch = next(islice(found, index, None))
                return batch if self._loss_fn is None else self._outputs({}, batch)

        precisions = [torch.finfo(precision).eps]

        def loss(data: Any) -> BatchLoss:
            with self.one_pass(seed):
                found, seen = self._loss_of(data)
                precisions.append(torch.finfo(found.dtype).eps)
                return BatchLoss(float(found.detach()), seen)

        # The mean of a single batch is the loss itself, whatever its number of terms.
        as_it_is = len(batches) == 1 and self._reduction != "sum" and _is_plain_mean(batches[0])
        cuts = [] if as_it_is else cut_batches(batches, cutter_of(data, loss))
        self.weighting = settled(
            batches, cuts, max(precisions),
            reduction=self._reduction, strict=strict and not as_it_is,
        )  # fmt: skip
        return self.weighting

    def leaf(self, name: str) -> Tensor:
        """Return a parameter as a leaf of a new graph."""
        return self.model.parameters[name].detach().requires_grad_()

    def leaves(
        self, names: Iterable[str], *, channels_last: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return some parameters as leaves.

        Kernels of images may be laid out with their channels last, and with them what is computed:
        the values are the same, and a backward pass on a CPU takes two thirds of the time.

        Parameters
        ----------
        names : iterable of str
            The names of the parameters.
        channels_last : collection of str
            The names of those that are kernels of images, to be laid out in this way.
        """
        leaves = {name: self.leaf(name) for name in names}
        for name in channels_last:
            kernels = leaves[name].detach().contiguous(memory_format=torch.channels_last)
            leaves[name] = kernels.requires_grad_()
        return leaves

    def matrix_leaves(self) -> dict[str, Tensor]:
        """Return every parameter of two or more axes as a leaf."""
        return {name: self.leaf(name) for name, p in self.model.parameters.items() if p.ndim >= 2}

    def loss(
        self,
        weights: Mapping[str, Tensor],
        batch: Any,
        at_outputs: Callable[[Any], Any] | None = None,
    ) -> tuple[Tensor, LossTerms]:
        """Return the batch's loss with its graph, and its terms.

        `at_outputs` is given the outputs, where there is a loss function, and returns what goes
        into it in their place.
        """
        loss, read = self.read(weights, batch, at_outputs)
        return loss, self.weighting.terms(read)

    def read(
        self,
        weights: Mapping[str, Tensor],
        batch: Any,
        at_outputs: Callable[[Any], Any] | None = None,
    ) -> tuple[Tensor, BatchLoss]:
        """Return the batch's loss with its graph, and what it tells of its terms but its value."""
        if self._loss_fn is None:
            return self._read(batch, batch, weights)
        outputs, targets = self._outputs(weights, batch)
        return self._read((at_outputs(outputs) if at_outputs else outputs, targets), batch)

    def split(
        self, weights: Mapping[str, Tensor], batch: Any
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], LossTerms]:
        """Return the outputs with their graph, the loss as a function of them, and the terms.

        Raises
        ------
        InputError
            If the outputs are not told from the loss, or are no tensor.
        """
        if self._loss_fn is None:
            raise InputError(
                "curvature 'ggn' needs to know the model's outputs: pass a loss_fn, and a forward "
                "that returns (outputs, targets)."
            )
        outputs, targets = self._outputs(weights, batch)
        if not isinstance(outputs, Tensor):
            raise InputError(
                f"curvature 'ggn' needs a tensor of outputs and the forward returned a "
                f"{type(outputs).__name__}; return the tensor that the loss depends on."
            )
        if outputs.ndim == 0:
            raise InputError(
                "curvature 'ggn' needs outputs with an axis of samples and the forward returned a "
                "single number; return what it is computed from, or choose curvature='hessian'."
            )
        loss_fn = self._loss_fn
        try:
            _, read = self._read((outputs.detach(), targets), batch)
        except RuntimeError as error:
            raise InputError(
                f"loss_fn: it is no function of the outputs alone ({error}), which its "
                "Gauss-Newton curvature needs; choose engine='auto' and curvature='hessian'."
            ) from error
        return outputs, lambda y: _as_scalar(loss_fn(y, targets)), self.weighting.terms(read)

    def _read(
        self, data: Any, batch: Any, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, BatchLoss]:
        loss, seen = self._loss_of(data, weights)
        given = None if self._weight is None else checked_count(self._weight(batch))
        # NaN in place of the loss, as reading a number makes a GPU wait.
        return loss, BatchLoss(nan, seen, given, shapes_of(data))

    def _loss_of(
        self, data: Any, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, tuple[LossTerms, ...]]:
        """Return the loss of outputs and targets, or else of a batch, and how it reduces them."""
        with ReductionRecorder() as recorder:
            found = self._loss_fn(*data) if self._loss_fn else self.model(weights or {}, data)
        seen = recorder.terms(found) if isinstance(found, Tensor) else None
        return _as_scalar(found), () if seen is None else (seen,)

    def _outputs(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[Any, Any]:
        """Return the arguments of the loss function."""
        result = self.model(weights, batch)
        if self._forward is None:
            return result, batch[-1]
        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(
                f"forward: it returned a {type(result).__name__}; with a loss_fn it must return "
                "(outputs, targets). If it returns the loss, pass loss_fn=None."
            )
        return result


def _is_plain_mean(batch: BatchLoss) -> bool:
    return all(r.reduction == "mean" and r.inside is None for r in batch.readings)


def _as_scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise InputError(f"loss_fn: it returned a {type(loss).__name__}; return a scalar tensor.")
    if loss.numel() != 1:
        raise InputError(
            f"loss_fn: it returned a tensor of shape {tuple(loss.shape)}; reduce it to a scalar, "
            "for instance with .mean()."
        )
    if loss.is_complex():
        raise InputError("loss_fn: it returned a complex number; return a real one.")
    return loss.reshape(()) if loss.ndim else loss


def _with_tensors_cast(loss_fn: Any, model: FunctionalModel) -> Any:
    """Let a loss module compute with copies of its tensors, such as class weights, cast."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    own = [*loss_fn.named_parameters(), *loss_fn.named_buffers()]
    if not own:
        return loss_fn
    tensors = {name: model.cast(tensor, copy=True) for name, tensor in own}
    return lambda outputs, targets: torch.func.functional_call(loss_fn, tensors, (outputs, targets))
