"""`CurvatureProblem` for PyTorch: a model, its loss and its data, as the core measures them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectral_backends.torch.batches import check_batch, check_reiterable, map_tensors
from spectral_backends.torch.determinism import Evaluation, compare_evaluations
from spectral_backends.torch.discovery import Layer, name_layers
from spectral_backends.torch.functional_model import FunctionalModel
from spectral_backends.torch.loss_terms import LossTerms, ReductionRecorder
from spectral_backends.torch.operations import OperationRecorder
from spectral_backends.torch.quadratic_forms import (
    GaussNewtonForm,
    GraphSize,
    HessianForm,
    QuadraticForm,
    along_directions,
)
from spectral_backends.torch.state import differentiable_attention, seeded
from spectral_core.errors import InputError, LayerError
from spectral_core.problem import CurvatureKind, LayerInfo

__all__ = ["CurvatureProblem"]


class CurvatureProblem:
    """The mean loss of a model over batches, as a function of each of its weight matrices.

    ``L(W) = (1/N) Σ_i l_i`` over all N terms of all batches (samples, or tokens that are not
    masked), so that batch size, order and a ragged last batch do not change a result (Theory 1).
    Curvatures are exact second derivatives by automatic differentiation.

    Parameters
    ----------
    model : nn.Module or callable
        A module, or a function ``model(params, *inputs)`` of a parameter dict. It is left as it
        is: parameters, gradients, mode, buffers, hooks and random state.
    loss_fn : callable or None
        ``loss_fn(outputs, targets)`` returns a scalar. None if `forward` returns the loss.
    batches : iterable
        Of ``(*inputs, target)`` tuples, or of anything that `forward` understands; traversed as
        often as needed. Tensors are moved to the model's device.
    params : mapping of str to Tensor, optional
        The parameters, where `model` is a function.
    forward : callable, optional
        ``forward(model, batch)`` returns ``(outputs, targets)``, or the loss if `loss_fn` is None.
    weight : callable, optional
        ``weight(batch)`` returns the number of terms that the batch's loss averages. By default it
        is read off the reduction inside the loss (cross-entropy with its ignored and weighted
        classes, any loss with a ``reduction``, ``mean()``, ``sum()``).
    reduction : {"mean", "sum"}, optional
        How the loss reduces its terms, where that cannot be read off.
    dtype : torch.dtype, optional
        Measure in this type. By default the model's own, float32 for half precision.
    device : torch.device or str, optional
        Measure there. By default where the model is.
    seed : int
        Of every random generator at the start of each pass.
    chunk_size : int, optional
        Directions differentiated together. By default what fits `memory_budget`.
    memory_budget : int, optional
        Bytes that the second derivatives of one chunk may take beside the graph of one batch. By
        default 8 MiB on a CPU, where larger chunks fall out of the caches and were measured slower,
        and 1 GiB elsewhere.
    check_deterministic : bool
        Refuse a model or loader whose loss changes between two passes, or whose forward pass writes
        to its buffers. If False, each pass starts from `seed` and the function so defined is
        measured.

    Raises
    ------
    InputError
        If model, loss or data cannot be used; the message says what to change.
    NonDeterministicError
        If the loss is not repeatable and `check_deterministic`.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: Callable[[Any, Any], Tensor] | None,
        batches: Iterable[Any],
        *,
        params: Mapping[str, Tensor] | None = None,
        forward: Callable[[Any, Any], Any] | None = None,
        weight: Callable[[Any], float] | None = None,
        reduction: Literal["mean", "sum"] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        check_deterministic: bool = True,
    ) -> None:
        check_reiterable(batches)
        _check_options(loss_fn, forward, reduction, dtype, chunk_size)
        self._loss_fn, self._forward = loss_fn, forward
        self._batches, self._weight, self._reduction = batches, weight, reduction
        self._model = FunctionalModel(
            model, params, forward, dtype, None if device is None else torch.device(device)
        )
        if not any(p.ndim >= 2 for p in self._model.parameters.values()):
            raise InputError("model: it has no parameter with two or more axes, so no matrix.")
        self._seed, self._chunk_size = seed, chunk_size
        self._memory_budget = memory_budget or 2 ** (23 if self._model.device.type == "cpu" else 30)
        self._evaluation = self._evaluate(seed)
        if check_deterministic:
            again = self._evaluate(seed + 1)
            compare_evaluations(self._evaluation, again, self._model)
        self._layers, self._skipped = self._discover()

    def layers(self) -> list[LayerInfo]:
        """Return the weight matrices in the order of the forward pass."""
        return [layer.info for layer in self._layers.values()]

    def skipped(self) -> dict[str, str]:
        """Return the parameters of two or more axes that are no layer, with the reason."""
        return dict(self._skipped)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem: numbers of the data, loss, types and versions."""
        return {
            "backend": "torch",
            "versions": {"torch": str(torch.__version__)},
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "model_dtype": str(self._model.stored_dtype).removeprefix("torch."),
            "device": str(self._model.device),
            "seed": self._seed,
            "loss": self._evaluation.loss,
            "n_terms": _whole_if_whole(self._evaluation.n_terms),
            "n_batches": len(self._evaluation.batch_losses),
        }

    def gradients(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return ``G = ∂L/∂W`` of shape ``(m, n)`` for each named layer, in one pass.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        located = [self._find(name) for name in layers]
        names = list(dict.fromkeys(layer.parameter for layer in located))
        totals = {name: torch.zeros_like(self._model.parameters[name]) for name in names}
        count = 0.0
        with self._pass(self._seed) as batches:
            for batch in batches:
                weights = {name: self._leaf(name) for name in names}
                found, terms = self._model.hold(
                    weights, partial(self._batch_gradients, weights, batch)
                )
                if terms.count == 0:
                    continue
                for name, gradient in zip(names, found, strict=True):
                    totals[name] += _scale(terms) * gradient
                count += terms.count
        return {
            layer.info.name: layer.view.matrix(totals[layer.parameter] / count) for layer in located
        }

    def curvatures(
        self, layer: str, u: Tensor, v: Tensor, kind: CurvatureKind = "hessian"
    ) -> Tensor:
        """Return ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, exactly, in one pass.

        Parameters
        ----------
        layer : str
            Name of the layer.
        u, v : Tensor
            Shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            The Hessian of L in this layer's weight, or its generalised Gauss-Newton part.

        Returns
        -------
        Tensor
            Shape ``(K,)``, in the problem's dtype and on its device.

        Raises
        ------
        InputError
            If the layer is unknown or the shapes do not fit it.
        LayerError
            If autograd cannot differentiate the layer twice.
        """
        located = self._find(layer)
        u, v = self._directions(located, u, v)
        total = torch.zeros(u.shape[1], dtype=torch.float64)
        count = 0.0
        with self._pass(self._seed) as batches:
            for batch in batches:
                weight = self._leaf(located.parameter)
                values, terms = self._model.hold(
                    {located.parameter: weight},
                    partial(self._batch_curvatures, located, weight, u, v, batch, kind),
                )
                if terms.count:
                    total += _scale(terms) * values.to("cpu", torch.float64)
                count += terms.count
        return (total / count).to(self._model.device, self._model.dtype)

    # One pass over the data

    @contextmanager
    def _pass(self, seed: int) -> Iterator[Iterator[Any]]:
        """Yield the batches, moved and cast, with every side effect undone afterwards."""
        with (
            seeded(seed, self._model.device, self._batches),
            differentiable_attention(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield (map_tensors(self._model.cast, batch) for batch in self._batches)

    def _evaluate(self, seed: int) -> Evaluation:
        """Run the model over all data once, checking everything on the way."""
        losses: list[float] = []
        counted: list[LossTerms] = []
        written: set[str] = set()
        with self._pass(seed) as batches:
            for index, batch in enumerate(batches):
                check_batch(index, batch)
                before = {name: b.clone() for name, b in self._model.buffers.items()}
                loss, terms = self._loss(self._matrix_leaves(), batch)
                written |= {
                    n for n, b in before.items() if not torch.equal(b, self._model.buffers[n])
                }
                self._model.buffers.update(before)
                _check_loss(index, loss, terms)
                losses.append(float(loss.detach()) if terms.count else 0.0)
                counted.append(terms)
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
            _scale(terms) * value
            for terms, value in zip(counted, losses, strict=True)
            if terms.count
        )
        return Evaluation(
            loss=total / n_terms,
            n_terms=n_terms if counted[0].known else None,
            batch_losses=tuple(losses),
            written_buffers=tuple(sorted(written)),
        )

    # One batch

    def _outputs(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[Any, Any]:
        """Return what goes into the loss function."""
        result = self._model(weights, batch)
        if self._forward is None:
            return result, batch[-1]
        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(
                f"forward: it returned a {type(result).__name__}; with a loss_fn it must return "
                "(outputs, targets). If it returns the loss, pass loss_fn=None."
            )
        return result

    def _loss(self, weights: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, LossTerms]:
        recorder = ReductionRecorder()
        if self._loss_fn is None:
            with recorder:
                loss = self._model(weights, batch)
        else:
            outputs, targets = self._outputs(weights, batch)
            with recorder:
                loss = self._loss_fn(outputs, targets)
        return _as_scalar(loss), self._terms(recorder, loss, batch)

    def _terms(self, recorder: ReductionRecorder, loss: Tensor, batch: Any) -> LossTerms:
        seen = recorder.terms(loss)
        reduction = self._reduction or (seen.reduction if seen else "mean")
        if self._weight is not None:
            return LossTerms(_checked_count(self._weight(batch)), reduction)
        return LossTerms(seen.count, reduction) if seen else LossTerms(1.0, "mean", known=False)

    def _batch_gradients(
        self, weights: Mapping[str, Tensor], batch: Any
    ) -> tuple[tuple[Tensor, ...], LossTerms]:
        loss, terms = self._loss(weights, batch)
        leaves = list(weights.values())
        return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True), terms

    def _batch_curvatures(
        self,
        layer: Layer,
        weight: Tensor,
        u: Tensor,
        v: Tensor,
        batch: Any,
        kind: CurvatureKind,
    ) -> tuple[Tensor, LossTerms]:
        form, terms, size = self._form(layer, weight, batch, kind)
        return self._along(form, layer, u, v, size), terms

    def _form(
        self, layer: Layer, weight: Tensor, batch: Any, kind: CurvatureKind
    ) -> tuple[QuadraticForm, LossTerms, int]:
        """Return the batch's quadratic form, its terms, and the bytes of its graph."""
        size = GraphSize()
        weights = {layer.parameter: weight}
        with _naming(layer.info.name), size.measuring():
            if kind == "hessian":
                loss, terms = self._loss(weights, batch)
                return HessianForm(loss, weight), terms, size.bytes
            outputs, loss_of = self._split(layer, weights, batch)
            recorder = ReductionRecorder()
            with recorder:
                loss = loss_of(outputs.detach())
            terms = self._terms(recorder, loss, batch)
            return GaussNewtonForm(outputs, loss_of, weight), terms, size.bytes

    def _split(
        self, layer: Layer, weights: Mapping[str, Tensor], batch: Any
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the outputs with their graph, and the loss as a function of them."""
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
        loss_fn = self._loss_fn
        return outputs, lambda y: _as_scalar(loss_fn(y, targets))

    def _along(
        self, form: QuadraticForm, layer: Layer, u: Tensor, v: Tensor, graph_bytes: int
    ) -> Tensor:
        shape = self._model.parameters[layer.parameter].shape
        per_direction = graph_bytes + 3 * shape.numel() * u.element_size()
        chunk = self._chunk_size or max(1, self._memory_budget // max(per_direction, 1))
        with _naming(layer.info.name):
            try:
                return along_directions(form, layer.view, shape, u, v, chunk)
            except (RuntimeError, NotImplementedError):
                if chunk == 1:
                    raise
                # Some operation has no batching rule: one direction at a time needs none.
                self._chunk_size = 1
                return along_directions(form, layer.view, shape, u, v, 1)

    # Names and tensors

    def _discover(self) -> tuple[dict[str, Layer], dict[str, str]]:
        matrices = self._matrix_leaves()
        recorder = OperationRecorder(matrices)
        with self._pass(self._seed) as batches, recorder:
            self._loss(matrices, next(batches))
        return name_layers(recorder, matrices, self._model.frozen)

    def _leaf(self, name: str) -> Tensor:
        return self._model.parameters[name].detach().requires_grad_()

    def _matrix_leaves(self) -> dict[str, Tensor]:
        return {name: self._leaf(name) for name, p in self._model.parameters.items() if p.ndim >= 2}

    def _find(self, name: str) -> Layer:
        if name in self._layers:
            return self._layers[name]
        known = ", ".join(list(self._layers)[:8])
        raise InputError(
            f"layer {name!r}: {self._skipped.get(name, 'there is none of that name')}; "
            f"layers are: {known}{', …' if len(self._layers) > 8 else ''}."
        )

    def _directions(self, layer: Layer, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        m, n = layer.info.shape
        if u.ndim != 2 or v.ndim != 2 or len(u) != m or len(v) != n or u.shape[1] != v.shape[1]:
            raise InputError(
                f"layer {layer.info.name!r}: u and v have shapes {tuple(u.shape)} and "
                f"{tuple(v.shape)}; for its {m}×{n} matrix pass ({m}, K) and ({n}, K)."
            )
        return self._model.cast(u), self._model.cast(v)


def _whole_if_whole(count: float | None) -> float | int | None:
    return int(count) if count is not None and count == int(count) else count


def _scale(terms: LossTerms) -> float:
    """Return what turns the batch's loss into a sum over its terms."""
    return terms.count if terms.reduction == "mean" else 1.0


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


def _check_options(
    loss_fn: Any, forward: Any, reduction: Any, dtype: torch.dtype | None, chunk_size: Any
) -> None:
    if loss_fn is None and forward is None:
        raise InputError("loss_fn: None is for a forward that returns the loss; pass one of both.")
    if loss_fn is not None and not callable(loss_fn):
        raise InputError(f"loss_fn: a {type(loss_fn).__name__} cannot be called.")
    if reduction not in (None, "mean", "sum"):
        raise InputError(f"reduction: {reduction!r} is unknown; choose 'mean' or 'sum'.")
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype: {dtype} is too coarse to measure in; choose float32 or float64.")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise InputError(f"chunk_size: {chunk_size!r} is not a positive number of directions.")


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Turn a failure of autograd into a `LayerError` that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LayerError(
            layer, "its graph does not fit into the device's memory; use smaller batches."
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LayerError(
            layer,
            f"autograd cannot differentiate the loss twice here ({first}); replace the operation "
            "by one with a second derivative.",
        ) from error
