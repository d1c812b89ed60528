"""The mean loss of a model over its batches: one pass, one batch, their terms and their checks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spectral_backends.torch.batches import check_batch
from spectral_backends.torch.determinism import Evaluation
from spectral_backends.torch.functional_model import FunctionalModel
from spectral_backends.torch.loss_terms import LossTerms, Reduction, ReductionRecorder
from spectral_backends.torch.nested import map_tensors
from spectral_backends.torch.state import differentiable_attention, seeded
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
        self._loss_fn, self._batches, self._forward = loss_fn, batches, forward
        self._weight, self._reduction = weight, reduction

    @contextmanager
    def one_pass(self, seed: int) -> Iterator[Iterator[Any]]:
        """Yield the batches, moved and cast, with every side effect undone afterwards."""
        with (
            seeded(seed, self.model.device, self._batches),
            differentiable_attention(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            before = {name: buffer.clone() for name, buffer in self.model.buffers.items()}
            try:
                yield (map_tensors(self.model.cast, batch) for batch in self._batches)
            finally:
                self.model.buffers.update(before)  # every pass starts from the user's buffers

    def evaluate(self, seed: int) -> Evaluation:
        """Run the model over all data once, checking everything on the way."""
        losses: list[float] = []
        counted: list[LossTerms] = []
        with self.one_pass(seed) as batches:
            before = {name: buffer.clone() for name, buffer in self.model.buffers.items()}
            for index, batch in enumerate(batches):
                check_batch(index, batch)
                loss, terms = self.loss(self.matrix_leaves(), batch)
                _check_loss(index, loss, terms)
                losses.append(float(loss.detach()) if terms.count else 0.0)
                counted.append(terms)
            after = self.model.buffers
            written = [name for name, b in before.items() if not torch.equal(b, after[name])]
        if not losses:
            raise InputError("batches: it is empty; a measurement needs at least one batch.")
        n_terms = sum(terms.count for terms in counted)
        if n_terms == 0:
            raise InputError("batches: no term counts, every target is ignored; check the targets.")
        if len(losses) > 1 and not all(terms.known for terms in counted):
            raise InputError(
                "weight: the number of terms behind each batch's loss cannot be read off it, and "
                f"{len(losses)} batches must be weighted by it; pass weight=lambda batch: "
                "<number of samples or tokens that the loss averages>."
            )
        total = sum(
            terms.scale * value for terms, value in zip(counted, losses, strict=True) if terms.count
        )
        return Evaluation(
            loss=total / n_terms,
            n_terms=n_terms if counted[0].known else None,
            batch_losses=tuple(losses),
            written_buffers=tuple(sorted(written)),
        )

    def leaf(self, name: str) -> Tensor:
        """Return a parameter as a leaf of a new graph."""
        return self.model.parameters[name].detach().requires_grad_()

    def matrix_leaves(self) -> dict[str, Tensor]:
        """Return every parameter of two or more axes as a leaf."""
        return {name: self.leaf(name) for name, p in self.model.parameters.items() if p.ndim >= 2}

    def loss(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, LossTerms]:
        """Return the batch's loss with its graph, and its terms."""
        recorder = ReductionRecorder()
        if self._loss_fn is None:
            with recorder:
                loss = self.model(weights, batch)
        else:
            outputs, targets = self._outputs(weights, batch)
            with recorder:
                loss = self._loss_fn(outputs, targets)
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
        loss_fn, recorder = self._loss_fn, ReductionRecorder()
        with recorder:
            loss = loss_fn(outputs.detach(), targets)
        terms = self._terms(recorder, loss, batch)
        return outputs, lambda y: _as_scalar(loss_fn(y, targets)), terms

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
            return LossTerms(_checked_count(self._weight(batch)), reduction)
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


def _check_loss(index: int, loss: Tensor, terms: LossTerms) -> None:
    if not loss.requires_grad:
        raise InputError(
            "loss_fn: the loss does not depend on the model's parameters in a differentiable way; "
            "look for detach(), no_grad(), argmax or item() on the way, or outputs that the loss "
            "ignores."
        )
    if terms.count and not torch.isfinite(loss):
        raise InputError(
            f"batches: the loss of batch {index} is {float(loss.detach())}, on finite data and "
            "parameters; look for an overflow, a logarithm of zero or a division by zero."
        )


def _checked_count(count: Any) -> float:
    value = float(count)
    if not 0 <= value < float("inf"):
        raise InputError(f"weight: it returned {count!r}; return the batch's number of loss terms.")
    return value
