"""The mean loss of a model over its batches, as a function of its parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectral_backends.torch.discovery import Layer
from spectral_backends.torch.functional_model import FunctionalModel
from spectral_backends.torch.loss_terms import LossTerms, Reduction, ReductionRecorder
from spectral_backends.torch.nested import map_tensors
from spectral_backends.torch.state import differentiable_operations, modes_put_back, seeded
from spectral_backends.torch.term_check import check_additive
from spectral_core._exclusive import exclusively
from spectral_core.backend_checks import checked_count
from spectral_core.errors import InputError

__all__ = ["Objective"]


class Objective:
    """``L = (1/N) Σ_i l_i`` as a function of the model's parameters, batch by batch.

    Parameters
    ----------
    model : FunctionalModel
        The model as a function of its parameters.
    loss_fn, batches, forward, weight, reduction
        As given to `CurvatureProblem`.
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
        self._batches, self._forward = batches, forward
        self._weight, self._reduction = weight, reduction

    def in_type(self, dtype: torch.dtype) -> "Objective":
        """Return the same function of the same values in another floating point type."""
        return Objective(self.model.in_type(dtype), *self._given)

    @contextmanager
    def one_pass(self, seed: int) -> Iterator[Iterator[Any]]:
        """Yield the batches, moved and cast, with every side effect undone afterwards.

        Passes of other threads wait: a module holds the parameters of one, the process its seed.
        """
        with (
            exclusively(),
            modes_put_back(),
            seeded(seed, self.model.device, self._batches),
            differentiable_operations(self.model.device),
            torch.inference_mode(False),
            torch.enable_grad(),
            self.model.unchanged(),
        ):
            yield (map_tensors(self.model.cast_input, batch) for batch in self._batches)

    def check_terms(self, seed: int) -> None:
        """Raise `InputError` if the first batch's loss is no mean over the terms read off it.

        Nothing is checked where the user says how to weight batches.
        """
        if self._weight is not None:
            return
        with self.one_pass(seed) as batches:
            batch = next(batches)
            if self._loss_fn is None:
                check_additive(lambda part: self.loss({}, part), batch)
            else:
                pair = self._outputs({}, batch)
                check_additive(lambda part: self._reduced(part[0], part[1], batch), pair)

    def leaf(self, name: str) -> Tensor:
        """Return a parameter as a leaf of a new graph."""
        return self.model.parameters[name].detach().requires_grad_()

    def leaves(self, layers: Iterable[Layer], *, channels_last: bool = False) -> dict[str, Tensor]:
        """Return the parameters of some layers as leaves.

        Kernels of images may be laid out with their channels last, and with them what is computed:
        the values are the same, and a backward pass on a CPU takes two thirds of the time.
        """
        leaves = {layer.parameter: self.leaf(layer.parameter) for layer in layers}
        if channels_last:
            for name in {layer.parameter for layer in layers if "conv2d" in layer.info.kind}:
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
        if self._loss_fn is not None:
            outputs, targets = self._outputs(weights, batch)
            return self._reduced(at_outputs(outputs) if at_outputs else outputs, targets, batch)
        with ReductionRecorder() as recorder:
            loss = self.model(weights, batch)
        return _as_scalar(loss), self._terms(recorder, loss, batch)

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
            _, terms = self._reduced(outputs.detach(), targets, batch)
        except RuntimeError as error:
            raise InputError(
                f"loss_fn: it is no function of the outputs alone ({error}), which its "
                "Gauss-Newton curvature needs; choose engine='auto' and curvature='hessian'."
            ) from error
        return outputs, lambda y: _as_scalar(loss_fn(y, targets)), terms

    def _reduced(self, outputs: Any, targets: Any, batch: Any) -> tuple[Tensor, LossTerms]:
        """Return the loss function's value, and the terms of it."""
        assert self._loss_fn is not None
        with ReductionRecorder() as recorder:
            loss = self._loss_fn(outputs, targets)
        return _as_scalar(loss), self._terms(recorder, loss, batch)

    def _outputs(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[Any, Any]:
        """Return what goes into the loss function."""
        result = self.model(weights, batch)
        if self._forward is None:
            return result, batch[-1]
        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(
                f"forward: it returned a {type(result).__name__}; with a loss_fn it must return "
                "(outputs, targets). If it returns the loss, pass loss_fn=None."
            )
        return result

    def _terms(self, recorder: ReductionRecorder, loss: Tensor, batch: Any) -> LossTerms:
        seen = recorder.terms(loss)
        reduction = self._reduction or (seen.reduction if seen else "mean")
        if self._weight is not None:
            if reduction == "sum" and self._reduction is None:
                raise InputError(
                    "weight: it says how many terms the loss averages, but the loss ends in a sum; "
                    "pass reduction='sum' if it adds up that many terms, 'mean' if their mean."
                )
            return LossTerms(checked_count(self._weight(batch)), reduction)
        return LossTerms(seen.count, reduction) if seen else LossTerms(1.0, "mean", known=False)


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
