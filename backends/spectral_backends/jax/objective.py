"""The mean loss of a model over its batches, as a function of its parameters."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.batches import Signature, common_length, flat_batch, halves, signature
from spectral_backends.jax.compilation import compile_exactly, exact_products
from spectral_backends.jax.loss_terms import Reading, Reduction, count_terms, readings
from spectral_backends.jax.narrowing import narrowest
from spectral_backends.jax.parameters import Parameters
from spectral_backends.jax.placement import Placement, find_placement, traced_under
from spectral_backends.jax.program import Loss, Program, trace, trace_loss
from spectral_backends.jax.work import multiply_adds
from spectral_core.backend_checks import checked_count
from spectral_core.errors import InputError, NonDeterministicError

__all__ = ["Batch", "Objective", "Terms", "batch_gradient"]

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


@dataclass(frozen=True)
class Terms:
    """Number of terms of a batch, and what turns its loss into their sum."""

    count: float
    scale: float


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
        As given.
    terms : list of Terms
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
        self._choice: int | None = None
        self.loss = self.n_terms = 0.0
        self.terms: list[Terms] = []
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

    def weighted(self) -> Iterator[tuple[Batch, Terms]]:
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
        self._choose(first)
        losses: list[float] = []
        terms: list[Terms] = []
        for batch in self.one_pass():
            loss, found = self._loss_and_terms(batch)
            if found.count and not np.isfinite(loss):
                raise InputError(f"batches: the loss of batch {batch.index} is {loss}; {_WHY}.")
            losses.append(loss if found.count else 0.0)
            terms.append(found)
            self.work_of_a_pass += batch.program.work if found.count else 0.0
        self.terms, self.n_terms = terms, sum(each.count for each in terms)
        if self.n_terms == 0:
            raise InputError("batches: no term counts, their weights are zero; check the targets.")
        if not self.known and len(terms) > 1:
            raise InputError(_UNKNOWN.format(len(terms)))
        self.loss = sum(t.scale * x for t, x in zip(terms, losses, strict=True)) / self.n_terms
        if check and not isinstance(self._batches, list | tuple):
            again = [self._loss_and_terms(batch)[0] for batch in self.one_pass()]
            _compare(losses, again, self.eps)

    def _loss_and_terms(self, batch: Batch) -> tuple[float, Terms]:
        program, reading = batch.program, self._reading(batch)

        def make() -> Compiled:
            def run(values: Any, leaves: Any) -> tuple[Any, Any]:
                seeds = values if program.forward is None else program.outputs(values, leaves)
                return count_terms(program.loss, reading, [*seeds, *leaves])

            return run

        run = self.compiled((batch.key, "loss"), make)
        loss, count = (float(x) for x in run(self.parameters.values, batch.leaves))
        if self._weight is not None:
            count = checked_count(self._weight(batch.raw))
        if not np.isfinite(count) or count < 0:
            raise InputError(
                f"weight: batch {batch.index} is divided by {count!r}, which is no number of "
                "terms; pass weight=lambda batch: <number of samples or tokens that the loss "
                "averages>."
            )
        return loss, Terms(count, count if reading.reduction == "mean" else 1.0)

    def _reading(self, batch: Batch) -> Reading:
        """Return how the loss reduces the terms of a batch like this one."""
        if self._choice is None:
            return Reading(self._reduction or "mean", 1.0)
        return self._readings(batch)[self._choice]

    def _readings(self, batch: Batch) -> list[Reading]:
        program = batch.program
        if program.forward is None:
            n_seeds, length = len(self.parameters.values), common_length(batch.leaves)
        else:
            avals = program.forward.out_avals
            n_seeds = len(avals)
            length = common_length([*avals, *batch.leaves])
        found = list(readings(program.loss, n_seeds, length))
        if self._reduction:
            found = [reading for reading in found if reading.reduction == self._reduction]
        return found

    def _choose(self, batch: Batch) -> None:
        """Choose the reading of the loss that its halves bear out."""
        found = self._readings(batch)
        if self._weight is not None:
            seen = found[0].reduction if found else "mean"
            if seen == "sum" and self._reduction is None:
                raise InputError(
                    "weight: it says how many terms the loss averages, but the loss ends in a sum; "
                    "pass reduction='sum' if it adds up that many terms, 'mean' if their mean."
                )
            self._choice = None
            return
        whole, parts = self._halves(batch)
        self._choice = 0 if found else None
        self.known = bool(found)
        if parts is None:
            return
        for index in range(len(found)):
            if _adds_up(whole, parts, index, self.eps):
                self._choice = index
                return
        several = sum(1 for _ in islice(iter(self._batches), 2)) > 1
        if several or not found or found[0].reduction == "sum":
            raise InputError(_NOT_ADDITIVE.format(_shown(whole, parts)))

    def _halves(self, batch: Batch) -> tuple[Any, Any]:
        """Return loss and terms of the first batch and of its halves, by reading."""
        program, structure = batch.program, batch.key[0]
        seeds = self.parameters.values
        if program.forward is not None:
            run = self.compiled((batch.key, "outputs"), lambda: program.outputs)
            seeds = run(self.parameters.values, batch.leaves)
        whole = _Piece.of(self._readings(batch), program.loss, [*seeds, *batch.leaves])
        cut = self._cut(seeds, batch.leaves, program.forward is None)
        if cut is None:
            return whole, None
        parts = []
        try:
            for inputs in cut:
                n_seeds = len(seeds)
                leaves = inputs[n_seeds:]
                if program.forward is None:
                    half = trace(self.loss_fn, self.parameters, leaves, structure).loss
                else:
                    half = trace_loss(
                        self.loss_fn[1], program.structure, inputs[:n_seeds],  # type: ignore[index]
                        leaves, structure,
                    )  # fmt: skip
                length = leaves[-1].shape[0]
                found = list(readings(half, n_seeds, length))
                if self._reduction:
                    found = [reading for reading in found if reading.reduction == self._reduction]
                parts.append(_Piece.of(found, half, inputs))
        except Exception:  # a loss for batches of one size only: nothing to compare
            return whole, None
        return whole, parts

    def _cut(
        self, seeds: list[Any], leaves: list[jax.Array], whole_seeds: bool
    ) -> list[list[Any]] | None:
        """Return what a loss takes of each half of a batch; None if it cannot be cut.

        Its seeds are cut too, unless they are the parameters.
        """
        whole, cut = (seeds, leaves) if whole_seeds else ([], [*seeds, *leaves])
        length = common_length(cut)
        if self.placement is not None and length is not None and self.placement.divides(length):
            return self.placement.halves(whole, cut)
        parts = halves(cut)
        return parts and [[*whole, *part] for part in parts]


def batch_gradient(batch: Batch) -> Compiled:
    """Return the gradient of a batch's loss as a function of values, arrays and a factor."""

    def run(values: Any, leaves: Any, scale: Any) -> Any:
        found = jax.grad(batch.program.total)(values, leaves)
        return [g * scale for g in found]

    return run


@dataclass(frozen=True)
class _Piece:
    """A loss with its terms, one for each reading."""

    loss: float
    reductions: list[Reduction]
    counts: list[float]

    @classmethod
    def of(cls, found: list[Reading], loss: Any, inputs: list[Any]) -> "_Piece":
        def run(arguments: Any) -> Any:
            return [count_terms(loss, reading, arguments) for reading in found]

        pairs = compile_exactly(run)(inputs)
        value = float(pairs[0][0]) if pairs else float("nan")
        return cls(value, [r.reduction for r in found], [float(count) for _, count in pairs])

    def total(self, index: int) -> float:
        return self.loss * (self.counts[index] if self.reductions[index] == "mean" else 1.0)


def _adds_up(whole: _Piece, parts: list[_Piece], index: int, eps: float) -> bool:
    """Say whether counts and totals of the halves are those of the whole."""
    if any(part.reductions != whole.reductions for part in parts):
        return False
    count = sum(part.counts[index] for part in parts)
    totals = [part.total(index) for part in parts if part.counts[index]]
    tolerance = eps**0.5
    same_count = abs(count - whole.counts[index]) <= tolerance * count
    off = abs(sum(totals) - whole.total(index))
    return bool(same_count and off <= tolerance * sum(map(abs, totals)))


def _shown(whole: _Piece, parts: list[_Piece]) -> str:
    if not whole.counts:
        return "no division by a number and no sum was found at its end"
    counts = "+".join(f"{part.counts[0]:g}" if part.counts else "?" for part in parts)
    losses = " and ".join(f"{part.loss:.6g}" for part in parts)
    return (
        f"a batch has {whole.counts[0]:g} terms and the loss {whole.loss:.6g}, its halves {counts} "
        f"terms and {losses}"
    )


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
_UNKNOWN = (
    "weight: the number of terms behind each batch's loss cannot be read off it, and {} batches "
    "must be weighted by it; pass weight=lambda batch: <number of samples or tokens that the loss "
    "averages>."
)
_NOT_ADDITIVE = (
    "weight: the loss is not a mean over independent terms as far as can be read off it: {}. Pass "
    "weight=lambda batch: <number of samples or tokens that the loss averages>, which is then "
    "taken as it is; reduction='sum' if it is their sum."
)
