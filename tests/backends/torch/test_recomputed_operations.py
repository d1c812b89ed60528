"""Parts of a forward pass that are run again for a backward pass, or whose tensors are put away.

The oracle is the same network without any of it.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from engine_helpers import (
    expected_of,
    findings,
    function_case,
    given_by,
    wrong_values,
)
from factor_helpers import problem_of
from layer_cases import classes, identity, random, third
from test_functions_on_the_way import Cube
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

WIDTH = 4


# Blocks ``(x, weight) → x``, of operations that engines run as others, cut, or read from


def attention(x, w):
    return F.layer_norm(x + F.scaled_dot_product_attention(*F.linear(x, w).chunk(3, -1)), (WIDTH,))


def causal_attention(x, w):
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in F.linear(x, w).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return x + y.transpose(1, 2).flatten(2)


def multi_head_attention(x, w):
    t = x.transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        t, t, t, WIDTH, 2, w, None, None, None, False, 0.0, torch.eye(WIDTH).double() * 2, None,
        need_weights=False,
    )  # fmt: skip
    return x + y.transpose(0, 1)


def batch_norm(x, w):
    y = F.linear(x, w).chunk(3, -1)[0].transpose(1, 2)
    ones = torch.arange(1.0, WIDTH + 1).double()
    return torch.tanh(F.batch_norm(y, ones, ones, ones, ones)).transpose(1, 2) + x


def products(x, w):
    q, k, v = F.linear(x, w).chunk(3, -1)
    return x + torch.bmm(torch.softmax(q @ k.mT, -1), v).tanh_()


def functions(x, w):
    q, k, v = F.linear(x, w).chunk(3, -1)
    return F.silu(q) * Cube.apply(k) + F.gelu(v) + torch.sin(x)


BLOCKS = [attention, causal_attention, multi_head_attention, batch_norm, products, functions]


# Ways to run a block again, or to put away what it saves


def nested(block, x, w):
    def inner(x, w):
        return checkpoint(block, x, w, use_reentrant=False)

    return checkpoint(inner, x, w, use_reentrant=False)


def selective(block, x, w):
    def policy(ctx, op, *args, **kwargs):
        keep = op in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, x, w, use_reentrant=False, context_fn=contexts)


def to_the_end(block, x, w):
    with set_checkpoint_early_stop(False):
        return checkpoint(block, x, w, use_reentrant=False)


def in_sequence(block, x, w):
    return checkpoint_sequential([lambda x: block(x, w), nn.Identity()], 2, x, use_reentrant=False)


def in_half(block, x, w):
    with saved_tensors_hooks(lambda t: (t.dtype, t.half()), lambda p: p[1].to(p[0])):
        return block(x, w)


def offloaded(block, x, w):
    with save_on_cpu():
        return block(x, w)


def in_a_list(block, x, w):
    kept = []

    def pack(tensor):
        kept.append(tensor.detach().clone())
        return len(kept) - 1

    with saved_tensors_hooks(pack, kept.__getitem__):
        return block(x, w)


WAYS = {
    "checkpoint": partial(checkpoint, use_reentrant=False),
    "by keyword": lambda block, x, w: checkpoint(block, x, w=w, use_reentrant=False),
    "unchecked": partial(checkpoint, use_reentrant=False, determinism_check="none"),
    "random as it comes": partial(checkpoint, use_reentrant=False, preserve_rng_state=False),
    "contexts": partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), nullcontext())
    ),
    "nested": nested,
    "selective": selective,
    "to the end": to_the_end,
    "in sequence": in_sequence,
    "offloaded": offloaded,
    "in a list": in_a_list,
    "in half precision": in_half,
}


def plainly(block, x, w):
    return block(x, w)


def case_of(block, way=plainly):
    torch.manual_seed(0)
    params = {"first": 2 * random(3 * WIDTH, WIDTH), "second": 2 * random(3 * WIDTH, WIDTH)}
    layers = {name: (name, identity) for name in params}
    if block is multi_head_attention:  # its packed projections are matrices of their own
        layers = {f"{n}.{q}": (n, third(i)) for n in params for i, q in enumerate("qkv")}

    def model(p, x):
        for w in p.values():
            x = way(block, x, w)
        return x.sum(1)

    x, y = 2 * random(5, 3, WIDTH), classes(5, WIDTH)
    return function_case(model, params, x, y, layers=layers)


@pytest.fixture(scope="module")
def oracles():
    return {block: expected_of(case_of(block)) for block in BLOCKS}


PAIRS = {(block, "checkpoint") for block in BLOCKS}
PAIRS |= {(block, way) for block in (attention, functions) for way in WAYS}


@pytest.mark.parametrize(
    ("block", "way"), sorted(PAIRS, key=lambda pair: (pair[0].__name__, pair[1]))
)
def test_what_is_recomputed_is_what_was_recorded(block, way, oracles):
    problem, expected = problem_of(case_of(block, WAYS[way]), 3), oracles[block]
    assert {layer.name for layer in problem.layers()} == expected.keys()
    wrong = []
    for kind, engine in [
        ("hessian", "auto"), ("hessian", "double-backward"), ("ggn", "tangents"),
        ("ggn", "double-backward"), ("ggn", "columns"),
    ]:  # fmt: skip
        found = findings(problem, given_by(expected), kind, engine=engine)
        wrong += wrong_values(found, expected, kind)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [attention, multi_head_attention, batch_norm])
def test_factors_are_those_of_the_network_without(block, way):
    for delta in ("ggn", "empirical"):
        found, expected = (
            problem.kronecker_factors([layer.name for layer in problem.layers()], fisher_type=delta)
            for problem in (problem_of(case_of(block, w), 3) for w in (WAYS[way], plainly))
        )
        for name, factors in expected.items():
            assert found[name].notes == factors.notes
            assert torch.equal(found[name].output_covariance, factors.output_covariance)
            assert torch.equal(found[name].input_covariance, factors.input_covariance)


def relu(x, w):
    return F.relu_(F.linear(x, w)).chunk(3, -1)[0] + x


def test_piecewise_linear_networks_keep_their_engine():
    """The probe for a second-order part runs on the network as it is, too."""
    expected = expected_of(case_of(relu))
    for way in ("checkpoint", "nested", "in half precision"):
        problem = problem_of(case_of(relu, WAYS[way]), 3)
        found = findings(problem, given_by(expected))
        assert not (wrong := wrong_values(found, expected)), "\n".join(wrong)
        assert all(f.certificate.engine == "columns" for f in found.values())
        assert all(f.certificate.piecewise_linear for f in found.values())


class Encoder(nn.Module):
    """Packed attention, in modules."""

    def __init__(self, again):
        super().__init__()
        layer = partial(nn.TransformerEncoderLayer, 8, 2, 12, 0.0, batch_first=True)
        self.layers = nn.ModuleList([layer(), layer(activation="gelu", norm_first=True)])
        self.again = again

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return x.mean(1)


def test_a_report_is_that_of_the_network_without():
    """In float32, to the bit; in training mode, where modules run their fused operations."""
    torch.manual_seed(0)
    plain, again = Encoder(False), Encoder(True)
    again.load_state_dict(plain.state_dict())
    data = [(torch.randn(6, 3, 8), classes(6, 8))]
    expected, found = (
        sc.measure(CurvatureProblem(model, F.cross_entropy, data), top_k=5, decompose=True)
        for model in (plain, again)
    )
    assert list(found) == list(expected) and len(found) == 12
    for name, spectrum in expected.items():
        for what in ("sigma", "curvature", "ggn"):
            assert list(getattr(found[name], what)) == list(getattr(spectrum, what)), (name, what)
        assert found[name].notes == spectrum.notes
        assert found[name].certificate.engine == spectrum.certificate.engine
