"""Kronecker factors of every kind of layer, recomputed from first principles.

The oracle shares no code with the library. An operation ``y = f(W)`` is linear in its weight, so
inputs and output gradients at each position are told by W alone: the gradient of a sample's loss is
``Σ_t δ_t a_tᵀ``. Where one position is active the gradient has rank one, and the factors follow from
per-sample gradients; elsewhere the cases below write a and δ out by hand.
"""

import pytest
import torch
from layer_cases import CASES

from spectral_backends.torch import CurvatureProblem

FUSED = ("lstm", "gru", "cells")
"""Cases whose operations hide their positions."""


def problem_of(case):
    return CurvatureProblem(
        case.model, case.loss, [(*case.inputs, case.target)], params=case.params
    )


@pytest.mark.parametrize("name", [n for n in CASES if n not in FUSED and n != "tied"])
def test_passages_make_the_gradient(name):
    """Σ δ aᵀ over all positions is the gradient of a sum, whatever the layer."""
    from functools import partial

    from spectral_backends.torch.factor_capture import FactorCapture

    torch.manual_seed(0)
    case = CASES[name]()
    problem = problem_of(case)
    layers = [problem._layers[layer] for layer in case.matrices]
    objective = problem._objective
    with objective.one_pass(0) as batches:
        leaves = objective.matrix_leaves()
        capture = FactorCapture(layers, leaves)

        def run(batch):
            with capture:
                loss, _ = objective.loss(leaves, batch)
            edges = [p.edge for found in capture.passages.values() for p in found]
            return torch.autograd.grad(loss, edges)

        found = iter(objective.model.hold(leaves, partial(run, next(batches))))
    gradients = problem.gradients(list(case.matrices))
    for layer in layers:
        total = 0
        for passage in capture.passages[layer.info.name]:
            a, delta = passage.inputs(), passage.outputs(next(found))
            total = total + torch.einsum("bsm,bsn->mn", delta, a)
        torch.testing.assert_close(total, gradients[layer.info.name], rtol=1e-10, atol=1e-13)
