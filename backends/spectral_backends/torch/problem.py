"""`CurvatureProblem` for PyTorch: a model, its loss and its data, as the core measures them."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectral_backends.torch.distributed.ranks import find_board, identity_of, warn_of_sampler
from spectral_backends.torch.distributed.shards import WHOLE_COPY, flat_shards
from spectral_backends.torch.engines.linearity_probe import LinearityProbe
from spectral_backends.torch.engines.registry import ENGINES
from spectral_backends.torch.engines.setting import MemoryBudget, Setting
from spectral_backends.torch.engines.structure import examine
from spectral_backends.torch.factors.kronecker import kronecker_factors
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.determinism import compare_evaluations
from spectral_backends.torch.objective.evaluation import evaluate
from spectral_backends.torch.objective.functional_model import FunctionalModel
from spectral_backends.torch.objective.mean_gradients import MeanGradients, gradient_errors
from spectral_backends.torch.objective.objective import Objective
from spectral_backends.torch.objective.sample_groups import (
    batches_of_groups,
    terms_and_loss,
    ways_of,
)
from spectral_core.arrays.plain import plain
from spectral_core.curvature.argument_checks import (
    check_chunk_size,
    check_direction_shapes,
    check_reduction,
    check_reiterable,
    check_seed,
    narrowed,
)
from spectral_core.curvature.base_problem import BaseProblem
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.curvature.problem import KroneckerFactors, SampleGroup
from spectral_core.curvature.processes import OtherData
from spectral_core.errors import InputError
from spectral_core.losses.sample_cuts import SampleAxis
from spectral_core.sampling.sample_groups import check_group_count, groups_of

__all__ = ["CurvatureProblem"]


class CurvatureProblem(BaseProblem[Layer]):
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
        ``loss_fn(outputs, targets)`` returns a scalar. `loss_fn` is None if `forward` returns the
        loss.
    batches : iterable
        The batches ``(*inputs, target)``, or batches of any form that `forward` understands. They
        are traversed as often as needed. Tensors are moved to the model's device.
    params : mapping of str to Tensor, optional
        The parameters, if `model` is a function.
    forward : callable, optional
        ``forward(model, batch)`` returns ``(outputs, targets)``, or the loss if `loss_fn` is None.
    weight : callable, optional
        ``weight(batch)`` returns the number of terms that the batch's loss averages. By default it
        is read off the reduction inside the loss (cross-entropy with its ignored and weighted
        classes, any loss with a ``reduction``, ``mean()``, ``sum()``), and the parts of a batch
        that is cut in two must bear it out. Weights that contradict the loss are refused.
    reduction : {"mean", "sum"}, optional
        The way in which the loss reduces its terms, if it cannot be read off. A sum is divided by
        the number of terms.
    dtype : torch.dtype, optional
        The type to measure in. By default it is the model's own, float32 for half precision.
    device : torch.device or str, optional
        The device to measure on. By default it is that of the model.
    seed : int
        The seed of every random generator at the start of each pass.
    chunk_size : int, optional
        The number of directions that are differentiated together. By default it is what fits
        `memory_budget`.
    memory_budget : int, optional
        The bytes that the second derivatives of one chunk may take beside the graph of one batch.
        By default they are 8 MiB on a CPU, where larger chunks fall out of the caches and were
        measured slower, and 1 GiB elsewhere.
    check_deterministic : bool
        Whether to refuse a model or loader whose loss changes between two passes or depends on the
        batching, as batch norm does in training mode. A loss whose terms, as read off it or as
        `weight` has them, do not add up over the halves of a batch is refused too. If False, each
        pass starts from `seed` and the function so defined is measured.

    Raises
    ------
    InputError
        If model, loss or data cannot be used; the message says what to change.
    NonDeterministicError
        If the loss is not repeatable and `check_deterministic`.

    Warns
    -----
    UserWarning
        If the batches are one rank's part of the data, or some matrices flat shards.

    Notes
    -----
    Several threads may measure at the same time, also the same model: passes over the data take
    turns. Nothing else may use the model, or draw random numbers, meanwhile. An error of the
    model's own code comes through as it is, with a note that says which batch it was. In a process
    group each rank measures the data that it is given. A warning is given if its loader's sampler
    or the loss of another rank shows that they are only a part. Layers whose weights are sharded
    are skipped or refused.

    The tensors that operations save for their backward passes are kept. Gradient checkpointing
    (which must not be reentrant), offloading and compression of saved tensors do not act during a
    measurement, so networks are measured as they would be without them. Second derivatives hold
    that much in any case; smaller batches need less memory.

    Examples
    --------
    >>> import torch
    >>> from spectral_backends.torch import CurvatureProblem
    >>> model, batch = torch.nn.Linear(3, 1), (torch.ones(4, 3), torch.zeros(4, 1))
    >>> problem = CurvatureProblem(model, torch.nn.functional.mse_loss, [batch])
    >>> problem.curvatures("weight", torch.ones(1, 2), torch.eye(3)[:, :2])
    tensor([2., 2.])
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
        _check_options(loss_fn, forward, weight, reduction, dtype, chunk_size, memory_budget, seed)
        self._model = FunctionalModel(model, params, forward, dtype, _checked_device(device))
        _check_matrices(model, self._model)
        self._seed, self._deterministic = seed, check_deterministic
        available = memory_budget or 2 ** (23 if self._model.device.type == "cpu" else 30)
        self._budget = MemoryBudget(chunk_size, available)
        self._objective = Objective(self._model, loss_fn, batches, forward, weight, reduction)
        self._evaluation = evaluate(self._objective, seed)
        if check_deterministic:
            again = evaluate(self._objective, seed + 1)
            compare_evaluations(self._evaluation, again, self._model)
        weighting = self._objective.settle_terms(
            self._evaluation.batches,
            seed,
            self._evaluation.narrowing.precision,
            strict=check_deterministic,
        )
        self._evaluation = replace(self._evaluation, weighting=weighting)
        if casts := self._evaluation.narrowing.operations:
            type_name = str(self._model.dtype).removeprefix("torch.")
            told = narrowed(type_name, self._evaluation.narrowing.name, casts)
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        self._structure = examine(self._objective, seed)
        self._objective.work_of_operation = self._structure.work_of_operation
        self._layers, self._skipped = self._structure.layers, self._structure.skipped
        self._second_order = LinearityProbe(self._objective, seed)
        setting = self._setting_of(self._objective)
        self._engines = [engine(setting) for engine in ENGINES]
        self._others = self._other_data(batches)
        self._others.look()

    def describe(self) -> dict[str, Any]:
        """Return the description of the problem: numbers of the data, loss, types and versions."""
        narrowing = self._evaluation.narrowing
        return {
            "backend": "torch",
            "versions": {"torch": str(torch.__version__)},
            "dtype": str(self._model.dtype).removeprefix("torch."),
            **({"precision": narrowing.name} if narrowing.operations else {}),
            "model_dtype": str(self._model.stored_dtype).removeprefix("torch."),
            "device": str(self._model.device),
            "seed": self._seed,
            "loss": self._evaluation.loss,
            "n_terms": _whole_if_whole(self._evaluation.n_terms),
            "n_batches": len(self._evaluation.batches),
        }

    def gradient_errors(
        self, layers: Sequence[str], *, samples: int | None = None
    ) -> dict[str, Tensor]:
        """Return about ``G − G'`` of shape ``(m, n)``, with G' exact for the same values.

        G' is computed in float64, also if the model casts to float32 inside. For a problem in
        float64 without such casts it is computed in float32, and the difference scaled by 2⁻²⁹.

        Parameters
        ----------
        layers : sequence of str
            The names of layers.
        samples : int, optional
            The approximate number of samples of the first batch to take, if it can be cut: those
            that carry most of the gradient, and others from all over it. By default all data are
            used.

        Returns
        -------
        dict of str to Tensor
            The errors, in the problem's dtype. The dict is empty if the model draws random numbers
            or may do so (``check_deterministic=False``), or if it cannot be run in the other type.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        located = [self._find(name) for name in layers]
        if not self._deterministic or self._evaluation.draws_numbers:
            return {}  # random numbers differ between types
        errors = gradient_errors(
            self._objective,
            _parameters(located),
            self._seed,
            samples,
            self._structure.heaviest,
            narrowed=bool(self._evaluation.narrowing.operations),
        )
        return {
            layer.info.name: layer.view.matrix(errors[layer.parameter])
            for layer in located
            if layer.parameter in errors
        }

    def sample_groups(self, count: int) -> list[SampleGroup]:
        """Return disjoint groups of whole samples, as equal as the data allow.

        A group takes samples in the order of a checksum of what they hold, so that neither batches
        nor their order matter. Samples lie along the first axis where shapes leave a choice. Where
        they cannot be told apart, whole batches are dealt out.

        Parameters
        ----------
        count : int
            The number of groups, 4 or more.

        Raises
        ------
        InputError
            If there are too few samples, or the mean loss over the groups is not that over all
            data.
        """
        check_group_count(count)
        objective, seed = self._objective, self._seed

        def made(way: SampleAxis | None) -> list[tuple["CurvatureProblem", float, float]]:
            found = [self._on_batches(b) for b in batches_of_groups(objective, seed, way, count)]
            return [(p, *terms_and_loss(p._objective, seed)) for p in found]

        ways = [partial(made, way) for way in ways_of(objective, seed)]
        eps = torch.finfo(self._evaluation.narrowing.precision).eps
        return groups_of(self._evaluation.loss, ways, eps)

    def _on_batches(self, batches: Iterable[Any]) -> "CurvatureProblem":
        """Return the problem of other batches of the same model, as its structure is known."""
        found = copy.copy(self)
        found._objective = self._objective.on_batches(batches)
        found._engines = [engine(self._setting_of(found._objective)) for engine in ENGINES]
        return found

    def _setting_of(self, objective: Objective) -> Setting:
        return Setting(
            objective,
            self._structure,
            self._seed,
            self._budget.together,
            self._evaluation.narrowing.precision,
            self._second_order,
        )

    def _gradients(self, layers: Sequence[Layer]) -> list[Tensor]:
        self._others.look()  # slower ranks may have left their notes by now
        with self._objective.one_pass(self._seed) as batches:
            means = MeanGradients(self._objective, _parameters(layers))
            for batch in batches:
                means.add(batch)
        return [layer.view.matrix(means.mean(layer.parameter)) for layer in layers]

    def _factors(
        self, layers: Sequence[Layer], options: FactorOptions
    ) -> dict[str, KroneckerFactors]:
        return self._factors_along(layers, options, {})

    def _factors_along(
        self,
        layers: Sequence[Layer],
        options: FactorOptions,
        directions: Mapping[str, tuple[Tensor, Tensor]],
    ) -> dict[str, KroneckerFactors]:
        return kronecker_factors(
            self._objective, layers, options, self._seed, self._budget.together, directions
        )

    def _directions(self, layer: Layer, u: Any, v: Any) -> tuple[Tensor, Tensor]:
        u, v = _as_directions("u", u), _as_directions("v", v)
        check_direction_shapes(layer.info, u.shape, v.shape)
        return self._model.cast(u), self._model.cast(v)

    def _other_data(self, batches: Any) -> OtherData:
        """Return the watch for ranks that measure other data, unless that is known already."""
        return OtherData(
            None if warn_of_sampler(batches) else find_board(),
            partial(identity_of, self._model.parameters.values()),
            self._evaluation.loss,
            self._evaluation.n_terms,
        )


def _check_matrices(model: Any, copied: FunctionalModel) -> None:
    """Refuse a model without matrices, and say so if flat shards are the reason."""
    shards = flat_shards(model) if isinstance(model, nn.Module) else {}
    kept = any(p.ndim >= 2 for p in copied.parameters.values())
    if shards:
        name, shard = next(iter(shards.items()))
        text = (
            f"model: {len(shards)} of its parameters, such as {name!r} of shape "
            f"{tuple(shard.shape)}, are flat shards of matrices, as FullyShardedDataParallel or "
            f"DeepSpeed make them, which cannot be measured; {WHOLE_COPY}."
        )
        if not kept:
            raise InputError(text)
        warnings.warn(text, UserWarning, stacklevel=3)
    if not kept:
        raise InputError("model: it has no parameter with two or more axes, so no matrix.")


def _parameters(layers: Sequence[Layer]) -> list[str]:
    """Return the names of their parameters, each once."""
    return list(dict.fromkeys(layer.parameter for layer in layers))


def _whole_if_whole(count: float | None) -> float | int | None:
    return int(count) if count is not None and count == int(count) else count


def _check_options(
    loss_fn: Any,
    forward: Any,
    weight: Any,
    reduction: Any,
    dtype: torch.dtype | None,
    chunk_size: Any,
    memory_budget: Any,
    seed: Any,
) -> None:
    if loss_fn is None and forward is None:
        raise InputError("loss_fn: None is for a forward that returns the loss; pass one of both.")
    if loss_fn is not None and not callable(loss_fn):
        raise InputError(
            f"loss_fn: a {type(loss_fn).__name__} cannot be called; pass a function of outputs and "
            "targets."
        )
    for name, function in (("forward", forward), ("weight", weight)):
        if function is not None and not callable(function):
            raise InputError(
                f"{name}: a {type(function).__name__} cannot be called; pass a function, or None."
            )
    check_reduction(reduction)
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype: {dtype} is too coarse to measure in; choose float32 or float64.")
    check_chunk_size(chunk_size)
    if memory_budget is not None and (
        isinstance(memory_budget, bool) or not isinstance(memory_budget, int) or memory_budget < 1
    ):
        raise InputError(
            f"memory_budget: {memory_budget!r} is not a positive number of bytes; pass for "
            "instance 2**30."
        )
    check_seed(seed)


def _checked_device(device: torch.device | str | None) -> torch.device | None:
    """Return a device that this build of PyTorch can put a tensor on."""
    if device is None:
        return None
    try:
        made = torch.device(device)
        torch.empty(1, device=made).to("cpu")
    except Exception as error:  # each kind of device has its own
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"device: {device!r} cannot be measured on ({first}); choose 'cpu' or one that is here."
        ) from error
    return made


def _as_directions(name: str, directions: Any) -> Tensor:
    directions = plain(name, directions)
    try:
        tensor = directions if isinstance(directions, Tensor) else torch.as_tensor(directions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: a {type(directions).__name__} is no array ({error}); pass unit columns."
        ) from error
    if not tensor.is_floating_point():
        raise InputError(
            f"{name}: has dtype {tensor.dtype}; pass unit columns of real floating point numbers."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name}: holds NaN or infinite values; pass unit columns.")
    return tensor
