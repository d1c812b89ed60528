"""Kronecker factors of layers, streamed over batches in O(m² + n²) memory each."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.capture.sample_axes import Samples, find_samples
from spectral_backends.jax.factors.factor_batch import SampledFamilies, input_sums, output_sums
from spectral_backends.jax.jaxprs.sizes import largest_value
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.layers.families import Family
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.output_loss import find_loss_form
from spectral_core.curvature.factor_options import FactorOptions, check_factor_size, factor_notes
from spectral_core.curvature.problem import KroneckerFactors
from spectral_core.errors import InputError, LayerError
from spectral_core.losses.form import OutputForm
from spectral_core.losses.terms import LossTerms

__all__ = ["kronecker_factors"]

Directions = Mapping[str, tuple[Any, Any]]

LEAST_CHUNK = 16
"""Columns that are sent back together at least, so that the forward pass does not matter."""


def kronecker_factors(
    objective: Objective,
    layers: Sequence[Layer],
    options: FactorOptions,
    memory_budget: int,
    directions: Directions,
) -> dict[str, KroneckerFactors]:
    """Return the factors of each layer, in one pass over the data.

    Layers that are in `directions` get ``h^diag`` along them.

    Raises
    ------
    InputError
        If the loss has no root in the outputs.
    LayerError
        If a layer has no factors.
    """
    for layer in layers:
        check_factor_size(layer.info)
    totals = {layer.info.name: _Totals(layer, directions.get(layer.info.name)) for layer in layers}
    count, forms = 0.0, _Forms(objective, options)
    for batch, terms in objective.weighted():
        form = forms.of(batch, terms)
        own = [batch.program.layers[layer.info.name] for layer in layers]
        families = list(dict.fromkeys(layer.family for layer in own))
        samples = find_samples(objective, batch, families)
        for layer in own:
            _check_samples(layer, samples[families.index(layer.family)], options)
        sampled = list(zip(families, samples, strict=True))
        few = _n_columns(batch, form, options) <= options.max_columns
        for exact in (True, False):
            chosen = [(f, s) for f, s in sampled if exact is (few and not s.problem)]
            if chosen:
                along = [_stacked(batch, family, directions) for family, _ in chosen]
                _add(
                    objective, batch, terms, chosen, form, options, memory_budget, totals, exact,
                    along,
                )  # fmt: skip
        count += terms.count
    return {name: total.factors(count, options) for name, total in totals.items()}


def _add(
    objective: Objective,
    batch: Batch,
    terms: LossTerms,
    sampled: SampledFamilies,
    form: OutputForm,
    options: FactorOptions,
    memory_budget: int,
    totals: dict[str, "_Totals"],
    exact: bool,
    along: list[tuple[jax.Array, jax.Array]],
) -> None:
    """Add one batch's part of the factors of some families, with their directions `along`."""
    families = [family for family, _ in sampled]
    key = (form, options, exact, *families)
    arguments = (batch.values, batch.leaves)
    look = objective.cache.compiled(
        batch, ("inputs", *key), partial(input_sums, batch.program, sampled, form, options)
    )
    found, misfit, uneven = look(*arguments, terms.count, terms.scale)
    eps = objective.eps
    if not form.fits(float(misfit), eps):
        raise InputError(
            f"loss_fn: batch {batch.index} has another form of curvature in the outputs than the "
            "first one; use one loss for all batches."
        )
    n_columns = int(_n_columns(batch, form, options)) if exact else options.mc_samples
    chunk = min(n_columns, max(LEAST_CHUNK, memory_budget // largest_value(batch.program.model)))
    send = objective.cache.compiled(
        batch,
        ("outputs", *key, *(u.shape[-1] for u, _ in along)),
        partial(output_sums, batch.program, sampled, form, options, chunk, exact=exact),
    )
    draw = jax.random.fold_in(jax.random.key(objective.seed), batch.index)
    numbers = terms.count, terms.scale
    sent = [send(*arguments, *numbers, draw, first, along) for first in range(0, n_columns, chunk)]
    for name, total in totals.items():
        layer = batch.program.layers[name]
        for index, (family, samples) in enumerate(sampled):
            if layer.family is family:
                total.add_inputs(found[index], layer.member, eps**0.5)
                for part in sent:
                    halves, diagonal = part[index]
                    total.add_outputs(halves[:, layer.member], diagonal[layer.member])
                total.exact &= exact
                total.uneven |= bool(samples.problem) and float(uneven) > 100 * eps


def _stacked(batch: Batch, family: Family, directions: Directions) -> tuple[jax.Array, jax.Array]:
    """Return the directions of a family's members, ``(members, m, K)`` and ``(members, n, K)``.

    Members with fewer of them than others, or with none, have zeros in their place.
    """
    found = {
        layer.member: directions[name]
        for name, layer in batch.program.layers.items()
        if layer.family is family and name in directions
    }
    width = max((u.shape[1] for u, _ in found.values()), default=0)
    members, sides = len(family.offsets), family.view.shape
    dtype = next((u.dtype for u, _ in found.values()), None)

    def side(which: int) -> jax.Array:
        none = jnp.zeros((sides[which], 0), dtype)
        each = (found[i][which] if i in found else none for i in range(members))
        return jnp.stack([jnp.pad(d, ((0, 0), (0, width - d.shape[1]))) for d in each])

    return side(0), side(1)


class _Totals:
    """Holds the running sums of one layer."""

    def __init__(self, layer: Layer, directions: tuple[Any, Any] | None) -> None:
        self._name, (m, n) = layer.info.name, layer.info.shape
        self._outputs, self._inputs = np.zeros((2, m, m)), np.zeros((n, n))
        self._diagonal = None if directions is None else np.zeros(directions[0].shape[1])
        self._weight = 0.0
        self._incomplete = bool(layer.hidden)
        self.exact, self.uneven = True, False

    def add_inputs(self, sums: Any, member: int, tolerance: float) -> None:
        """Add a batch's sums of ``a aᵀ`` of the layer's family."""
        (inputs, weight), missing = sums
        self._inputs += np.asarray(inputs[member], np.float64)
        self._weight += float(weight)
        self._incomplete |= not float(missing[member]) <= tolerance

    def add_outputs(self, halves: Any, diagonal: Any) -> None:
        """Add sums of ``δ δᵀ``, and of ``p²``, to which zeros may have been appended."""
        self._outputs += np.asarray(halves, np.float64)
        if self._diagonal is not None:
            self._diagonal += np.asarray(diagonal, np.float64)[: len(self._diagonal)]

    def factors(self, count: float, options: FactorOptions) -> KroneckerFactors:
        """Return the means."""
        if self._weight == 0:
            raise LayerError(self._name, "no operation was seen to use its matrix.")
        first, second = self._outputs / count
        # Uses that are not seen are in h^GGN: no split is better than a wrong one.
        diagonal = None if self._diagonal is None or self._incomplete else self._diagonal / count
        return KroneckerFactors(
            output_covariance=jnp.asarray(first + second),
            input_covariance=jnp.asarray(self._inputs / self._weight),
            output_noise=None if self.exact else jnp.asarray(first - second),
            notes=factor_notes(options, self.exact, not self._incomplete, not self.uneven),
            diagonal=None if diagonal is None else jnp.asarray(diagonal),
        )


class _Forms:
    """Finds the form of the loss for each shape of batch, on the first batch that has it."""

    def __init__(self, objective: Objective, options: FactorOptions) -> None:
        self._objective, self._options = objective, options

    def of(self, batch: Batch, terms: LossTerms) -> OutputForm:
        """Return the form of a batch's loss."""
        program = batch.program
        if not program.single_output:
            raise InputError(
                "Kronecker factors need the model's outputs as one array with an axis of samples "
                "in front; pass the pair (forward, loss), with forward returning that array."
            )
        convex = self._options.fisher_type != "empirical"

        def find() -> OutputForm:
            run = self._objective.cache.compiled(batch, "outputs", lambda: program.outputs)
            (z,) = run(batch.values, batch.leaves)
            return find_loss_form(
                z,
                lambda y: terms.scale * program.loss_of([y], batch.leaves),
                self._options.max_columns,
                convex=convex,
            )

        key = (batch.key, "form", convex, self._options.max_columns)
        return self._objective.cache.once(key, find)


def _n_columns(batch: Batch, form: OutputForm, options: FactorOptions) -> float:
    """Return the number of columns that make ``C_δ`` exact; infinite where it is drawn."""
    assert batch.program.forward is not None
    shape: tuple[int, ...] = batch.program.forward.out_avals[0].shape
    if options.fisher_type == "fisher-mc":
        return float("inf")
    return form.n_terms(shape) if options.fisher_type == "empirical" else form.n_columns(shape)


def _check_samples(layer: Layer, samples: Samples, options: FactorOptions) -> None:
    if samples.problem and options.kfac_approx == "reduce":
        raise LayerError(
            layer.info.name,
            f"kfac_approx 'reduce' sums over the positions of each sample, and {samples.problem}; "
            "keep the samples apart along one axis, or use kfac_approx='expand'.",
        )
