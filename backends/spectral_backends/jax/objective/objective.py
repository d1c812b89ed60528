"""The mean loss of a model over its batches, as a function of its parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.batches import Signature, common_length, flat_batch, signature
from spectral_backends.jax.devices.placement import Placement, find_placement, traced_under
from spectral_backends.jax.jaxprs.compilation import compile_exactly, exact_products
from spectral_backends.jax.jaxprs.work import multiply_adds
from spectral_backends.jax.objective.loss_terms import (
    Reading,
    numbers_at,
    readings,
    sites_of,
    terms_of,
)
from spectral_backends.jax.objective.narrowing import narrowest
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss, Program, trace, trace_loss
from spectral_backends.jax.objective.term_check import LossData, cutter_of
from spectral_core.curvature.argument_checks import checked_count
from spectral_core.errors import InputError, NonDeterministicError
from spectral_core.losses.batch_weighting import settled
from spectral_core.losses.sample_cuts import cut_batches
from spectral_core.losses.terms import BatchLoss, LossTerms, Reduction

__all__ = ["Batch", "Objective", "batch_gradient"]

Compiled = Callable[..., Any]


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    Parameters
    ----------
    index : int
        Of the batch.
    key : tuple
        What compiled functions are made for.
    program : Program
        What is computed of it.
    leaves : list of jax.Array
        Its arrays.
    raw : Any
        As the user's iterable gave it.
    """

    index: int
    key: Signature
    program: Program
    leaves: list[jax.Array]
    raw: Any


class Objective:
    """``L = (1/N) Σ_i l_i`` as a function of the model's parameters, batch by batch.

    Parameters
    ----------
    loss_fn : callable or pair of callables
        As given to `CurvatureProblem`.
    parameters : Parameters
        Of the model.
    batches, weight, reduction, seed
        As given to `CurvatureProblem`.

    Attributes
    ----------
    loss : float
        Mean over all terms; set by `evaluate`.
    loss_fn : callable or pair of callables
        The loss, or the forward and the loss, as given.
    terms : list of LossTerms
        Of each batch.
    n_terms : float
        Of all batches.
    known : bool
        Whether the terms were read off the loss, or given.
    work : float
        Multiply-adds of all that was computed so far by functions of `compiled`.
    work_of_a_pass : float
        Those of one forward pass over all batches that have terms; set by `evaluate`.
    precision : dtype
        The narrowest that what depends on the parameters is cast to; set by `evaluate`.
    placement : Placement or None
        How the work lies on the devices, read off the parameters and the first batch that is
        sharded; None where nothing is.
    """

    def __init__(
        self,
        loss_fn: Loss | tuple[Loss, Loss],
        parameters: Parameters,
        batches: Iterable[Any],
        weight: Callable[[Any], float] | None,
        reduction: Reduction | None,
        seed: int,
    ) -> None:
        self.parameters, self.seed = parameters, seed
        self.loss_fn, self._batches = loss_fn, batches
        self._weight, self._reduction = weight, reduction
        self._programs: dict[Signature, Program] = {}
        self._compiled: dict[Any, Compiled] = {}
        self._made: dict[Any, Any] = {}
        self.loss = self.n_terms = 0.0
        self.terms: list[LossTerms] = []
        self.known = True
        self.work = self.work_of_a_pass = 0.0
        self.placement: Placement | None = None
        self.precision = parameters.dtype

    @property
    def eps(self) -> float:
        """Return the spacing of numbers at one, in `precision`."""
        finfo: Any = jnp.finfo  # NumPy's does not know bfloat16
        return float(finfo(self.precision).eps)

    def one_pass(self) -> Iterator[Batch]:
        """Yield the batches, on the device."""
        count = 0
        for index, raw in enumerate(self._batches):
            leaves, structure = flat_batch(index, raw, self.parameters.dtype)
            leaves = self._placed(leaves)
            key = signature(leaves, structure)
            if key not in self._programs:
                self._programs[key] = trace(self.loss_fn, self.parameters, leaves, structure)
            yield Batch(index, key, self._programs[key], leaves, raw)
            count += 1
        if self.terms and count != len(self.terms):
            raise NonDeterministicError(
                f"batches: the first pass had {len(self.terms)} batches, a later one {count}; pass "
                "a list, or a loader that repeats itself."
            )

    def _placed(self, leaves: list[jax.Array]) -> list[jax.Array]:
        """Return a batch where it is to lie; the first one says so for the parameters too."""
        if self.placement is None:
            self.placement = find_placement(leaves, self.parameters.values)
            if self.placement is not None:
                self.parameters.values = self.placement.weights(self.parameters.values)
        return leaves if self.placement is None else self.placement.batch(leaves)

    def weighted(self) -> Iterator[tuple[Batch, LossTerms]]:
        """Yield the batches that have terms, with them."""
        for batch in self.one_pass():
            if batch.index < len(self.terms) and self.terms[batch.index].count:
                yield batch, self.terms[batch.index]

    def first(self) -> Batch:
        """Return the first batch."""
        found = list(islice(self.one_pass(), 1))
        if not found:
            raise InputError("batches: it is empty; a measurement needs at least one batch.")
        return found[0]

    def few_samples(self, count: int) -> Batch:
        """Return the first samples of the first batch that has terms, where it can be cut."""
        batch = next(batch for batch, _ in self.weighted())
        length = common_length(batch.leaves)
        if length is None or length <= count:
            return batch
        if self.placement is None:
            leaves = [leaf[:count] for leaf in batch.leaves]
        else:
            leaves = [self.placement.first_samples(leaf, count) for leaf in batch.leaves]
        key = signature(leaves, batch.key[0])
        try:
            if key not in self._programs:
                self._programs[key] = trace(self.loss_fn, self.parameters, leaves, batch.key[0])
        except Exception:  # a model for batches of one size only
            return batch
        program = self._programs[key]
        same = list(program.layers) == list(batch.program.layers)
        return Batch(batch.index, key, program, leaves, batch.raw) if same else batch

    def compiled(self, key: Any, make: Callable[[], Compiled]) -> Compiled:
        """Return a compiled function, made once for each key, that adds to `work`."""
        key = (self.placement, key)
        if key not in self._compiled:
            self._compiled[key] = self._counted(jax.jit(traced_under(self.placement, make())))
        return self._compiled[key]

    def _counted(self, run: Any) -> Compiled:
        """Have a jitted function, which is called with arguments of one shape, add to `work`."""
        each: float | None = None

        def counted(*arguments: Any) -> Any:
            nonlocal each
            with exact_products():
                found = run(*arguments)
                if each is None:
                    each = multiply_adds(run.trace(*arguments).jaxpr)  # which JAX has kept
            self.work += each
            return found

        return counted

    def gradient(self, batch: Batch, scale: float) -> list[jax.Array]:
        """Return the gradient of a batch's loss in each parameter, times a number."""
        run = self.compiled((batch.key, "gradient"), partial(batch_gradient, batch))
        return list(run(self.parameters.values, batch.leaves, scale))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made once for each key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # Terms

    def evaluate(self, *, check: bool) -> None:
        """Go through all data once for the loss and its terms, and again to see it repeated.

        Raises
        ------
        InputError
            If data or loss are not finite, or batches cannot be weighted by their terms.
        NonDeterministicError
            If the second pass gives other losses.
        """
        first = self.first()
        self.precision = narrowest(first.program, self.parameters.dtype)
        found: list[BatchLoss] = []
        for batch in self.one_pass():
            read = self._read(batch)
            if _counts(read) and not np.isfinite(read.loss):
                raise InputError(
                    f"batches: the loss of batch {batch.index} is {read.loss}; {_WHY}."
                )
            found.append(read)
            self.work_of_a_pass += batch.program.work if _counts(read) else 0.0
        if not any(map(_counts, found)):
            raise InputError("batches: no term counts, their weights are zero; check the targets.")
        losses = [read.loss if _counts(read) else 0.0 for read in found]
        if check and not isinstance(self._batches, list | tuple):
            again = [self._read(batch) for batch in self.one_pass()]
            _compare(losses, [read.loss if _counts(read) else 0.0 for read in again], self.eps)
        cuts = cut_batches(found, cutter_of(self._data, self._loss_of, self.placement))
        weighting = settled(found, cuts, self.eps, reduction=self._reduction)
        self.terms = [weighting.terms(read) for read in found]
        _check_counts(self.terms)
        self.n_terms = sum(each.count for each in self.terms)
        self.known = all(each.known for each in self.terms)
        total = sum(t.scale * loss for t, loss in zip(self.terms, losses, strict=True))
        self.loss = total / self.n_terms

    def _read(self, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, and what is read off it of its terms."""
        program = batch.program
        data = LossData([], [], batch.leaves, batch.key[0], program)
        found = self.once((batch.key, "readings"), lambda: self._readings(data))

        def make() -> Compiled:
            def run(values: Any, leaves: Any) -> tuple[Any, Any]:
                seeds = values if program.forward is None else program.outputs(values, leaves)
                return numbers_at(sites_of(found), program.loss, [*seeds, *leaves])

            return run

        run = self.compiled((batch.key, "loss"), make)
        loss, numbers = run(self.parameters.values, batch.leaves)
        weight = None if self._weight is None else checked_count(self._weight(batch.raw))
        return BatchLoss(float(loss), terms_of(found, numbers), weight, data.shapes)

    def _readings(self, data: LossData) -> tuple[Reading, ...]:
        forward = data.program.forward
        n_seeds = len(self.parameters.values) if forward is None else len(forward.out_avals)
        return readings(data.program.loss, n_seeds, data.length)

    def _data(self, index: int) -> LossData:
        """Return what the loss of a batch is a function of."""
        batch = next(islice(self.one_pass(), index, None))
        program, values = batch.program, self.parameters.values
        if program.forward is None:
            return LossData(values, [], batch.leaves, batch.key[0], program)
        run = self.compiled((batch.key, "outputs"), lambda: program.outputs)
        return LossData([], run(values, batch.leaves), batch.leaves, batch.key[0], program)

    def _loss_of(self, data: LossData) -> BatchLoss:
        """Return the loss of a part of a batch, traced for its shapes."""
        arrays = [*data.outputs, *data.leaves]
        found, run = self.once(
            ("part", *signature(arrays, data.structure)), lambda: self._traced_loss(data)
        )
        loss, numbers = run([*data.values, *arrays])
        return BatchLoss(float(loss), terms_of(found, numbers))

    def _traced_loss(self, data: LossData) -> tuple[tuple[Reading, ...], Compiled]:
        """Return the readings of a loss, and what computes it and their numbers."""
        program = data.program
        if program.forward is None:
            traced = trace(self.loss_fn, self.parameters, data.leaves, data.structure).loss
        else:
            traced = trace_loss(
                self.loss_fn[1], program.structure, data.outputs,  # type: ignore[index]
                data.leaves, data.structure,
            )  # fmt: skip
        found = self._readings(replace(data, program=replace(program, loss=traced)))
        return found, compile_exactly(partial(numbers_at, sites_of(found), traced))


def _counts(read: BatchLoss) -> bool:
    """Say whether any term of a batch counts."""
    return not read.empty and read.weight != 0


def _check_counts(terms: Sequence[LossTerms]) -> None:
    for index, each in enumerate(terms):
        if not 0 <= each.count < float("inf"):
            raise InputError(
                f"weight: batch {index} is divided by {each.count!r}, which is no number of "
                "terms; pass weight=lambda batch: <number of samples or tokens that the loss "
                "averages>."
            )


def batch_gradient(batch: Batch) -> Compiled:
    """Return the gradient of a batch's loss as a function of values, arrays and a factor."""

    def run(values: Any, leaves: Any, scale: Any) -> Any:
        found = jax.grad(batch.program.total)(values, leaves)
        return [g * scale for g in found]

    return run


def _compare(first: list[float], second: list[float], eps: float) -> None:
    same = len(first) == len(second) and np.allclose(first, second, rtol=1000 * eps, atol=0)
    if same:
        return
    if len(first) == len(second) and np.allclose(
        sorted(first), sorted(second), rtol=1000 * eps, atol=0
    ):
        raise NonDeterministicError(
            "batches: they come in another order each time; build the loader with shuffle=False."
        )
    raise NonDeterministicError(
        f"the losses change between two passes over the batches, {first[:3]} and then "
        f"{second[:3]}: a loader that shuffles, augments or resamples; pass a list of batches."
    )


_WHY = (
    "the batch holds no NaN and the parameters are finite, so look for an overflow, a logarithm of "
    "zero, a division by zero, or an infinite input"
)
