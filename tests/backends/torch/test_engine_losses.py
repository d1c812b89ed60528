"""Every kind of loss, however its terms are cut into batches, by columns and by tangents."""

import pytest
import torch
from engine_helpers import expected_of, findings, given_by, with_loss, wrong_values
from factor_helpers import problem_of
from layer_cases import classes, random
from piecewise_cases import PIECEWISE, relu_mlp
from torch.nn import functional as F


def no_known_form(outputs, targets):
    """Convex in all outputs of a sample together, and of no form that is known."""
    gaps = outputs - outputs.gather(1, targets[:, None])
    return (F.softplus(gaps.sum(1)) + (outputs[:, 0] * 0.5 + outputs[:, 1]) ** 2).mean()


def pseudo_huber(outputs, targets):
    return ((1 + ((outputs - targets) ** 2).sum(1)).sqrt()).mean()


def half_squared_error(outputs, targets):
    return ((outputs - targets) ** 2).sum(1).mean() / 2


WEIGHTS = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=torch.float64)
LOSSES = {
    "cross-entropy": (F.cross_entropy, None),
    "class weights": (lambda o, t: F.cross_entropy(o, t, WEIGHTS), None),
    "ignored": (lambda o, t: F.cross_entropy(o, t, ignore_index=2), None),
    "weights and ignored": (lambda o, t: F.cross_entropy(o, t, WEIGHTS, ignore_index=1), None),
    "smoothing": (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.2), None),
    "weights and smoothing": (
        lambda o, t: F.cross_entropy(o, t, WEIGHTS, label_smoothing=0.2), None),
    "soft targets": (F.cross_entropy, lambda: torch.softmax(random(7, 4), 1)),
    "weighted soft targets": (
        lambda o, t: F.cross_entropy(o, t, WEIGHTS), lambda: torch.softmax(random(7, 4), 1)),
    "summed": (lambda o, t: F.cross_entropy(o, t, reduction="sum"), None),
    "squared error": (F.mse_loss, lambda: random(7, 4)),
    "half squared error": (half_squared_error, lambda: random(7, 4)),
    "logistic": (F.binary_cross_entropy_with_logits, lambda: torch.rand(7, 4).double()),
    "logistic with weights": (
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=WEIGHTS),
        lambda: torch.rand(7, 4).double()),
    "poisson": (F.poisson_nll_loss, lambda: torch.randint(5, (7, 4)).double()),
    "general": (no_known_form, None),
    "pseudo-huber": (pseudo_huber, lambda: random(7, 4)),
}  # fmt: skip
OPTIONS = {
    "summed": {"weight": lambda batch: len(batch[0]), "reduction": "sum"},
    "half squared error": {"weight": lambda batch: len(batch[0])},
}


def case_with(loss, name="mlp"):
    function, targets = LOSSES[loss]
    case = PIECEWISE[name]()
    return with_loss(case, function, case.target if targets is None else targets())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_losses(name, loss):
    torch.manual_seed(2)
    case = case_with(loss, name)
    problem = problem_of(case, **OPTIONS.get(loss, {}))
    if loss == "summed":  # what is measured is the mean of the same terms
        function = case.loss
        case = with_loss(case, lambda o, t: function(o, t) / 7, case.target)
    expected = expected_of(case)
    for engine in ("columns", "tangents"):
        found = findings(problem, given_by(expected), engine=engine)
        assert not (wrong := wrong_values(found, expected)), "\n".join(wrong)
        assert {f.certificate.engine for f in found.values()} == {engine}


@pytest.mark.parametrize("loss", ["ignored", "class weights", "soft targets", "general"])
@pytest.mark.parametrize("engine", ["columns", "tangents"])
def test_how_data_are_cut_into_batches_changes_nothing(loss, engine):
    torch.manual_seed(3)
    case = case_with(loss)
    expected = expected_of(case)
    for size in (7, 3, 1, [1, 4, 2], [5, 1, 1]):
        problem = problem_of(case, size, chunk_size=None if size == 3 else 2)
        found = findings(problem, given_by(expected), engine=engine)
        assert not (wrong := wrong_values(found, expected)), (size, wrong)


@pytest.mark.parametrize("sizes", [[3, 4], [4, 3]])
def test_a_batch_in_which_nothing_counts(sizes):
    torch.manual_seed(3)
    case = with_loss(relu_mlp(), lambda o, t: F.cross_entropy(o, t, ignore_index=2), classes(7, 4))
    case.target[:3] = 2
    case.target[3:] = torch.tensor([0, 1, 3, 0])
    expected = expected_of(case)
    problem = problem_of(case, sizes)
    for engine, kind in (("auto", "hessian"), ("tangents", "hessian"), ("columns", "ggn")):
        found = findings(problem, given_by(expected), kind, engine=engine)
        assert not (wrong := wrong_values(found, expected, kind)), wrong
