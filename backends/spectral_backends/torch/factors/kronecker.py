"""Kronecker factors of layers, streamed over batches in O(m² + n²) memory each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from spectral_backends.torch.capture.layer_io import ActivationCapture
from spectral_backends.torch.factors.factor_batch import FactorBatch
from spectral_backends.torch.factors.factor_totals import LayerTotals, Samples
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.objective import Objective
from spectral_core.curvature.factor_options import FactorOptions, check_factor_size
from spectral_core.curvature.problem import KroneckerFactors

__all__ = ["kronecker_factors"]


def kronecker_factors(
    objective: Objective,
    layers: Sequence[Layer],
    options: FactorOptions,
    seed: int,
    chunk: Callable[[int], int],
    directions: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, KroneckerFactors]:
    """Return the factors of each layer, in one pass over the data.

    Parameters
    ----------
    chunk : callable
        ``chunk(bytes_of_one)`` returns the number of columns to send back together.
    directions : mapping of str to (Tensor, Tensor)
        The directions of layers that get ``h^diag`` along them, of shapes (m, K) and (n, K).
    """
    for layer in layers:
        check_factor_size(layer.info)
    device = objective.model.device
    totals = {
        layer.info.name: LayerTotals(layer, device, directions.get(layer.info.name))
        for layer in layers
    }
    count, exact, incomplete = 0.0, True, set[str]()
    generator = torch.Generator(device).manual_seed(seed)
    samples: Samples | None = None  # found on the first batch with several samples
    with objective.one_pass(seed) as batches:
        for batch in batches:
            leaves = objective.matrix_leaves()
            capture = ActivationCapture(layers, leaves)
            run = partial(FactorBatch.run, objective, leaves, batch, capture, options)
            made: FactorBatch | None = objective.model.hold(leaves, run)
            if made is None:
                continue
            work = partial(made.add_to, totals, options, generator, chunk, samples)
            seen, whole = objective.model.hold(leaves, work)
            samples = samples or (seen if made.n_samples > 1 else None)
            count += made.terms.count
            exact &= whole
            check = partial(made.incomplete, layers, leaves, generator)
            incomplete |= objective.model.hold(leaves, check)
    return {
        name: total.factors(count, exact, options, name in incomplete)
        for name, total in totals.items()
    }
