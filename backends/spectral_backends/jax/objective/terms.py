"""The way in which each batch's loss reduces its terms: read off it, confirmed by its parts.

`loss_terms` reads the jaxpr of a loss, `term_check` takes the data of a batch apart; here both are
run, and the core's `batch_weighting` says which reading holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from spectral_backends.jax.devices.batches import signature
from spectral_backends.jax.devices.placement import Placement
from spectral_backends.jax.jaxprs.compilation import compile_exactly
from spectral_backends.jax.objective.compiled import Batch, CompileCache, Compiled
from spectral_backends.jax.objective.loss_terms import (
    Reading,
    numbers_at,
    paths_of,
    readings,
    terms_of,
)
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss, trace, trace_loss
from spectral_backends.jax.objective.term_check import LossData, cutter_of
from spectral_core.curvature.argument_checks import checked_count
from spectral_core.errors import InputError
from spectral_core.losses.batch_weighting import Weighting, settled
from spectral_core.losses.sample_cuts import cut_batches
from spectral_core.losses.terms import BatchLoss, LossTerms, Reduction

__all__ = ["TermReader", "counts"]


class TermReader:
    """Reads how a loss reduces the terms of batches.

    Parameters
    ----------
    loss_fn : callable or pair of callables
        The loss, or the forward and the loss, as given to `CurvatureProblem`.
    parameters : Parameters
        The parameters of the model.
    weight, reduction
        The arguments of `CurvatureProblem`.
    cache : CompileCache
        The place for what is compiled.
    """

    def __init__(
        self,
        loss_fn: Loss | tuple[Loss, Loss],
        parameters: Parameters,
        weight: Callable[[Any], float] | None,
        reduction: Reduction | None,
        cache: CompileCache,
    ) -> None:
        self._loss_fn, self._parameters = loss_fn, parameters
        self._weight, self._reduction = weight, reduction
        self._cache = cache
        self._weighting = Weighting(reduction=reduction)

    def read(self, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, and what is read off it of its terms."""
        program = batch.program
        data = LossData([], [], batch.leaves, batch.key[0], program)
        found = self._cache.once((batch.key, "readings"), lambda: self._readings(data))

        def make() -> Compiled:
            def run(values: Any, leaves: Any) -> tuple[Any, Any]:
                seeds = values if program.forward is None else program.outputs(values, leaves)
                return numbers_at(paths_of(found), program.loss, [*seeds, *leaves])

            return run

        loss, numbers = self._cache.compiled(batch, "loss", make)(batch.values, batch.leaves)
        weight = None if self._weight is None else checked_count(self._weight(batch.raw))
        return BatchLoss(float(loss), terms_of(found, numbers), weight, data.shapes)

    def settle(
        self,
        found: Sequence[BatchLoss],
        batch_at: Callable[[int], Batch],
        placement: Placement | None,
        eps: float,
    ) -> None:
        """Settle how batches are weighted, by trying what was read on parts of a batch.

        Parameters
        ----------
        found : sequence of BatchLoss
            The readings of each batch.
        batch_at : callable
            ``batch_at(index)`` returns the batch with an index.
        placement : Placement or None
            The placement of samples on devices.
        eps : float
            The spacing of the losses' numbers at one.

        Raises
        ------
        InputError
            If the batches cannot be weighted by their terms.
        """
        cutter = cutter_of(lambda index: self._data(batch_at(index)), self._loss_of, placement)
        cuts = cut_batches(found, cutter)
        self._weighting = settled(found, cuts, eps, reduction=self._reduction)

    def terms(self, found: Sequence[BatchLoss]) -> list[LossTerms]:
        """Return the terms of batches, by the rule that was settled.

        Raises
        ------
        InputError
            If one is divided by what is no number of terms.
        """
        terms = [self._weighting.terms(read) for read in found]
        _check_counts(terms)
        return terms

    def _readings(self, data: LossData) -> tuple[Reading, ...]:
        forward = data.program.forward
        n_seeds = len(self._parameters.names) if forward is None else len(forward.out_avals)
        return readings(data.program.loss, n_seeds, data.length)

    def _data(self, batch: Batch) -> LossData:
        """Return the data that the loss of a batch is a function of."""
        program = batch.program
        if program.forward is None:
            return LossData(batch.values, [], batch.leaves, batch.key[0], program)
        run = self._cache.compiled(batch, "outputs", lambda: program.outputs)
        outputs = run(batch.values, batch.leaves)
        return LossData([], outputs, batch.leaves, batch.key[0], program)

    def _loss_of(self, data: LossData) -> BatchLoss:
        """Return the loss of a part of a batch, traced for its shapes."""
        arrays = [*data.outputs, *data.leaves]
        found, run = self._cache.once(
            ("part", *signature(arrays, data.structure)), lambda: self._traced_loss(data)
        )
        loss, numbers = run([*data.values, *arrays])
        return BatchLoss(float(loss), terms_of(found, numbers))

    def _traced_loss(self, data: LossData) -> tuple[tuple[Reading, ...], Compiled]:
        """Return the readings of a loss, and what computes it and their numbers."""
        program = data.program
        if program.forward is None:
            traced = trace(self._loss_fn, self._parameters, data.leaves, data.structure).loss
        else:
            traced = trace_loss(
                self._loss_fn[1], program.structure, data.outputs,  # type: ignore[index]
                data.leaves, data.structure,
            )  # fmt: skip
        found = self._readings(replace(data, program=replace(program, loss=traced)))
        return found, compile_exactly(partial(numbers_at, paths_of(found), traced))


def counts(read: BatchLoss) -> bool:
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
