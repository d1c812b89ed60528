"""One batch on its way into the Kronecker factors: forward once, then back column by column."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.capture.layer_io import ProbedBatch, RowsBySample, run_with_probes
from spectral_backends.jax.capture.sample_axes import Samples
from spectral_backends.jax.jaxprs.scattered import scattered
from spectral_backends.jax.layers.families import Family, Use
from spectral_backends.jax.objective.output_loss import JaxDraws, loss_curvature
from spectral_backends.jax.objective.program import Program
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.losses.base import OutputCurvature
from spectral_core.losses.form import OutputForm

__all__ = ["SampledFamilies", "input_sums", "output_sums"]

Array = jax.Array
SampledFamilies = list[tuple[Family, Samples]]


def input_sums(
    program: Program, families: SampledFamilies, form: OutputForm, options: FactorOptions
) -> Callable[..., Any]:
    """Return a function that makes one batch's part of the input factors, and all checks.

    Parameters
    ----------
    program : Program
        The program for batches of one shape.
    families : list of (Family, Samples)
        The families, each with the axes of its samples.
    form : OutputForm
        The form of the loss as a function of the outputs.
    options : FactorOptions
        The options of the caller.

    Returns
    -------
    callable
        ``(parameters, batch, count, scale)`` returns for each family the sums of ``a aᵀ``
        ``(members, n, n)`` and of its weights, and how far ``Σ δ aᵀ`` is from the gradient; and the
        misfit of the form and the unevenness of the samples' weights.
    """

    def run(values: Any, leaves: Any, count: Any, scale: Any) -> Any:
        probed = run_with_probes(program, values, leaves, [family for family, _ in families])
        root = _curvature(program, form, probed, leaves, count, scale)
        weights = root.sample_weights
        weights = weights * (count / weights.sum())
        rows = [_rows(family, samples, len(probed.outputs)) for family, samples in families]
        inputs = [_input_sums(each, probed, weights, options) for each in rows]
        missing = _missing(program, families, rows, probed, values, leaves)
        uneven = jnp.abs(weights / weights.mean() - 1).max()
        return list(zip(inputs, missing, strict=True)), root.fit().misfit, uneven

    return run


def output_sums(
    program: Program,
    families: SampledFamilies,
    form: OutputForm,
    options: FactorOptions,
    chunk: int,
    *,
    exact: bool,
) -> Callable[..., Any]:
    """Return a function that makes some columns' part of the output factors of one batch.

    Parameters
    ----------
    program, families, form, options
        The same arguments as those of `input_sums`.
    chunk : int
        The number of columns that are sent back together.
    exact : bool
        Whether to send every column. Otherwise `options.mc_samples` random combinations of all of
        them are sent.

    Returns
    -------
    callable
        ``(parameters, batch, count, scale, key, first, directions)`` returns for each family the
        sums of ``δ δᵀ`` over columns with even and with odd index, ``(2, members, m, m)``, and that
        of ``p²`` along its directions ``(members, m, K)``, ``(members, n, K)``, of shape
        ``(members, K)`` (Theory 5.3); K is 0 where there are none. The forward pass
        is made again for each chunk: XLA's loops, which would spare it, make the gradient of a
        convolution 30 times slower on a CPU.
    """

    def run(
        values: Any, leaves: Any, count: Any, scale: Any, key: Any, first: Any, directions: Any
    ) -> Any:
        probed = run_with_probes(program, values, leaves, [family for family, _ in families])
        root = _curvature(program, form, probed, leaves, count, scale)
        column, n_columns = _columns(root, options, key, exact)
        rows = [_rows(family, samples, len(probed.outputs)) for family, samples in families]

        along = [
            [use.project(probed.kept, v) for use in each] if v.shape[-1] else None
            for each, (_, v) in zip(rows, directions, strict=True)
        ]

        def sums(index: Any, each: int, deltas: list[Array]) -> tuple[Array, Array]:
            u, projected = directions[each][0], along[each]
            diagonal = jnp.zeros((len(u), u.shape[-1]), u.dtype)
            if projected is not None:
                for d, a in zip(deltas, projected, strict=True):
                    diagonal += (jnp.square((d @ u[:, None]) * a)).sum((1, 2))
            if options.kfac_approx == "reduce":
                deltas = [_sum_of_positions(deltas)[:, :, None]]
            gram: Any = sum(jnp.einsum("gbsi,gbsj->gij", d, d) for d in deltas)
            halves = jnp.arange(2) == index % 2
            return halves[:, None, None, None] * gram, diagonal

        def one(index: Any) -> list[tuple[Array, Array]]:
            gradients = probed.back(jnp.where(index < n_columns, column(index), 0))
            return [
                sums(index, i, [use.outputs(gradients) for use in each])
                for i, each in enumerate(rows)
            ]

        totals = jax.vmap(one)(first + jnp.arange(chunk))
        draws = 1 if exact else options.mc_samples
        return jax.tree.map(lambda total: total.sum(0) / draws, totals)

    return run


def _curvature(
    program: Program, form: OutputForm, probed: ProbedBatch, leaves: Any, count: Any, scale: Any
) -> OutputCurvature:
    """Return the curvature in the outputs of a batch's loss, which is the sum of its terms."""
    return loss_curvature(
        form, probed.outputs, lambda z: scale * program.loss_of([z], leaves), count
    )


def _rows(family: Family, samples: Samples, count: int) -> list[RowsBySample]:
    """Return the rows of the uses that do not transpose the matrix."""
    axes = samples.axes or (None,) * len(family.uses)
    pairs: list[tuple[Use, Any]] = list(zip(family.uses, axes, strict=True))
    return [RowsBySample(use, count, at) for use, at in pairs if not use.flipped]


def _input_sums(
    rows: list[RowsBySample], probed: ProbedBatch, weights: Array, options: FactorOptions
) -> tuple[Array, Array]:
    """Return the sum of ``a aᵀ``, each sample with the number of its terms, and of the weights."""
    each = [use.inputs(probed.kept) for use in rows]
    if options.kfac_approx == "reduce":
        positions = sum(a.shape[2] for a in each)
        whole: Any = sum(a.sum(2, keepdims=True) for a in each)
        each = [whole / positions]
    total, weight = jnp.zeros(()), jnp.zeros(())
    for a in each:
        # Rows without an axis of samples all have the same weight.
        own = weights if a.shape[1] == len(weights) else jnp.ones(a.shape[1], a.dtype)
        total = total + jnp.einsum("gbsi,b,gbsj->gij", a, own, a)
        weight = weight + own.sum() * a.shape[2]
    return total, weight


def _columns(
    root: OutputCurvature, options: FactorOptions, key: Any, exact: bool
) -> tuple[Callable[[Any], Array], int]:
    """Return a function of an index that gives the column to send back, and their number."""
    if exact and options.fisher_type == "ggn":
        return root.column, root.n_columns
    if exact:
        return root.term_column, root.n_terms
    draw = {"ggn": root.mixture, "fisher-mc": root.sampled, "empirical": root.term_mixture}

    def drawn(index: Any) -> Array:
        found: Array = draw[options.fisher_type](JaxDraws(jax.random.fold_in(key, index)))
        return found

    return drawn, options.mc_samples


def _missing(
    program: Program,
    families: SampledFamilies,
    rows: list[list[RowsBySample]],
    probed: ProbedBatch,
    values: Sequence[Any],
    leaves: Any,
) -> list[Array]:
    """Return how far ``Σ δ aᵀ`` of the uses is from the gradient, of each member.

    For any cotangent of the outputs both agree. They do not if a matrix is also transposed in some
    use, as in a tied embedding, or if an operation is no product.
    """
    z = probed.outputs
    noise = scattered(z.shape, z.dtype, 1)
    parameters = sorted({family.parameter for family, _ in families})

    def outputs(weights: Sequence[Any]) -> Any:
        whole = list(values)
        for parameter, weight in zip(parameters, weights, strict=True):
            whole[parameter] = weight
        return program.outputs(whole, leaves)[0]

    (gradients,) = jax.vjp(outputs, [values[parameter] for parameter in parameters])[1](noise)
    arrived = probed.back(noise)
    found = []
    for (family, _), each in zip(families, rows, strict=True):
        whole = gradients[parameters.index(family.parameter)]
        starts = [family.view.starts(offset) for offset in family.offsets]
        expected = jnp.stack([family.view.matrix(whole, start) for start in starts])
        shown = sum(
            jnp.einsum("gbsi,gbsj->gij", use.outputs(arrived), use.inputs(probed.kept))
            for use in each
        )
        size = jnp.sqrt((expected**2).sum((1, 2)))
        off = jnp.sqrt(((shown - expected) ** 2).sum((1, 2)))
        found.append(off / jnp.maximum(size, np.finfo(z.dtype).tiny))
    return found


def _sum_of_positions(rows: list[Array]) -> Array:
    """Add rows ``(members, B, S, m)`` over uses and positions; what cancels to rounding is zero.

    Attention does not change when all its keys move together. So the gradients of a sample's keys
    add up to zero, and the outer products of their rounding would be taken for a factor.
    """
    total: Any = sum(r.sum(2) for r in rows)
    size: Any = sum(jnp.abs(r).sum(2) for r in rows)
    return jnp.where(jnp.abs(total) > 64 * np.finfo(total.dtype).eps * size, total, 0)
