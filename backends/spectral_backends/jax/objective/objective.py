"""The mean loss of a model over its batches, as a function of its parameters."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.devices.batches import common_length, flat_batch, signature
from spectral_backends.jax.devices.placement import Placed, Placement
from spectral_backends.jax.objective.compiled import Batch, CompileCache, Compiled
from spectral_backends.jax.objective.narrowing import narrowest
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss, Program, trace
from spectral_backends.jax.objective.terms import TermReader, counts
from spectral_core.errors import InputError, NonDeterministicError
from spectral_core.losses.terms import BatchLoss, LossTerms, Reduction

__all__ = ["Objective"]


class Objective:
    """``L = (1/N) Σ_i l_i`` as a function of the model's parameters, batch by batch.

    Each batch brings the parameters that it is to be run with, where it needs them: a pass over the
    data rewrites nothing that others see, so that several may go on at once.

    Parameters
    ----------
    loss_fn : callable or pair of callables
        The loss, or the forward and the loss, as given to `CurvatureProblem`.
    parameters : Parameters
        The parameters of the model.
    batches, weight, reduction, seed
        The arguments of `CurvatureProblem`.

    Attributes
    ----------
    raw_batches : iterable
        The batches as the user gave them.
    cache : CompileCache
        The place for what is compiled for the batches.
    loss : float
        The mean over all terms; set by `evaluate`, as are those that follow.
    terms : list of LossTerms
        The terms of each batch.
    n_terms : float
        The number of terms of all batches.
    known : bool
        Whether the terms were read off the loss, or given.
    work_of_a_pass : float
        The multiply-adds of one forward pass over all batches that have terms.
    precision : dtype
        The narrowest type that what depends on the parameters is cast to.
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
        self.loss_fn, self.parameters, self.seed = loss_fn, parameters, seed
        self.raw_batches, self._placed = batches, Placed(parameters.values)
        self.cache = CompileCache()
        self._reader = TermReader(loss_fn, parameters, weight, reduction, self.cache)
        self.terms: list[LossTerms] = []
        self.known = True
        self.loss = self.n_terms = self.work_of_a_pass = 0.0
        self.precision = parameters.dtype

    @property
    def eps(self) -> float:
        """Return the spacing of numbers at one, in `precision`."""
        finfo: Any = jnp.finfo  # NumPy's finfo does not know bfloat16
        return float(finfo(self.precision).eps)

    @property
    def placement(self) -> Placement | None:
        """Return the placement of all batches on devices, once `evaluate` has seen them."""
        return self._placed.placement

    def on_batches(self, batches: Iterable[Any]) -> "Objective":
        """Return the same mean over other batches, weighted by the same rule."""
        found = copy.copy(self)
        found.raw_batches, found.terms = batches, []
        found._take([found._read_finite(batch) for batch in found.one_pass()])
        return found

    # Passes over the data

    def one_pass(self) -> Iterator[Batch]:
        """Yield the batches, on the device."""
        count, placed = 0, self._placed
        for index, raw in enumerate(self.raw_batches):
            leaves, structure = flat_batch(index, raw, self.parameters.dtype)
            placed = placed.beside(leaves)
            leaves = placed.batch(leaves)
            program = self._program(leaves, structure)
            yield Batch(index, signature(leaves, structure), program, leaves, raw, placed)
            count += 1
        if self.terms and count != len(self.terms):
            raise NonDeterministicError(
                f"batches: the first pass had {len(self.terms)} batches, a later one {count}; pass "
                "a list, or a loader that repeats itself."
            )

    def _program(self, leaves: list[jax.Array], structure: Any) -> Program:
        """Return the program for batches like this one."""
        key = ("program", signature(leaves, structure))
        return self.cache.once(key, lambda: trace(self.loss_fn, self.parameters, leaves, structure))

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
        leaves, structure = batch.placed.first_samples(batch.leaves, count), batch.key[0]
        try:
            program = self._program(leaves, structure)
        except Exception:  # the model takes batches of one size only
            return batch
        same = list(program.layers) == list(batch.program.layers)
        key = signature(leaves, structure)
        few = Batch(batch.index, key, program, leaves, batch.raw, batch.placed)
        return few if same else batch

    # Means over the data

    def check_differentiable(self, batch: Batch) -> None:
        """Raise `InputError` if the loss has no gradient in the parameters."""
        try:
            jax.eval_shape(_gradient(batch.program), batch.values, batch.leaves, 1.0)
        except (TypeError, ValueError, NotImplementedError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"loss_fn: JAX has no gradient of it ({first}); write lax.while_loop as lax.scan, "
                "and replace operations without a derivative."
            ) from error

    def gradient(self, batch: Batch, scale: float) -> list[jax.Array]:
        """Return the gradient of a batch's loss in each parameter, times a number."""
        run = self.cache.compiled(batch, "gradient", partial(_gradient, batch.program))
        return list(run(batch.values, batch.leaves, scale))

    def gradient_sums(self) -> list[jax.Array]:
        """Return the gradient of the sum of all terms in each parameter."""
        totals: list[jax.Array] = []
        for batch, terms in self.weighted():
            found = self.gradient(batch, terms.scale)
            totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
        return totals

    def evaluate(self, *, check: bool) -> None:
        """Go through all data once for the loss and its terms, and again to see it repeated.

        Raises
        ------
        InputError
            If data or loss are not finite, or batches cannot be weighted by their terms.
        NonDeterministicError
            If the second pass gives other losses.
        """
        self.precision = narrowest(self.first().program, self.parameters.dtype)
        found: list[BatchLoss] = []
        placed = self._placed
        for batch in self.one_pass():
            found.append(self._read_finite(batch))
            self.work_of_a_pass += batch.program.work if counts(found[-1]) else 0.0
            placed = batch.placed
        self._placed = placed
        if not any(map(counts, found)):
            raise InputError("batches: no term counts, their weights are zero; check the targets.")
        losses = _losses(found)
        if check and not isinstance(self.raw_batches, list | tuple):
            again = [self._reader.read(batch) for batch in self.one_pass()]
            _compare(losses, _losses(again), self.eps)
        self._reader.settle(found, self._at, self.placement, self.eps)
        self._take(found)

    def _take(self, found: Sequence[BatchLoss]) -> None:
        """Take terms and loss from what was read of all batches."""
        self.terms = self._reader.terms(found)
        self.n_terms = sum(each.count for each in self.terms)
        self.known = all(each.known for each in self.terms)
        parts = zip(self.terms, _losses(found), strict=True)
        self.loss = sum(t.scale * loss for t, loss in parts) / (self.n_terms or 1.0)

    def _read_finite(self, batch: Batch) -> BatchLoss:
        read = self._reader.read(batch)
        if counts(read) and not np.isfinite(read.loss):
            raise InputError(f"batches: the loss of batch {batch.index} is {read.loss}; {_WHY}.")
        return read

    def _at(self, index: int) -> Batch:
        return next(islice(self.one_pass(), index, None))


def _gradient(program: Program) -> Compiled:
    """Return the gradient of a batch's loss as a function of values, arrays and a factor."""

    def run(values: Any, leaves: Any, scale: Any) -> Any:
        found = jax.grad(program.total)(values, leaves)
        return [g * scale for g in found]

    return run


def _losses(found: Sequence[BatchLoss]) -> list[float]:
    """Return the losses of batches, zero where no term counts."""
    return [read.loss if counts(read) else 0.0 for read in found]


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
