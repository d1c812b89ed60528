"""The parts of the engines, each against torch or against a plain computation."""

import gc

import pytest
import torch
from engine_helpers import expected_of, problem_from
from layer_cases import CASES, random
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch.allocation import AllocationPeak
from spectral_backends.torch.attention import multi_head_attention, scaled_dot_product_attention
from spectral_backends.torch.batch_norm import affine_batch_norm
from spectral_backends.torch.call_observer import CallObserver
from spectral_backends.torch.column_pass import output_curvature
from spectral_backends.torch.linearity import Alias
from spectral_backends.torch.passage_capture import PassageCapture
from spectral_backends.torch.tangent_rules import _Elementwise, _LayerNorm, _Softmax, tangent_rule
from spectral_backends.torch.tape import Segment
from spectral_backends.torch.work_counter import WorkCounter

CLOSE = {"rtol": 1e-10, "atol": 1e-12}

# Attention

SHUT = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
SDPA = {
    "plain": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.3},
    "boolean": {"attn_mask": ~SHUT}, "boolean by sample": {"attn_mask": (~SHUT).expand(2, 4, 4, 5)},
    "numbers": {"attn_mask": torch.arange(20.0).reshape(4, 5).double() / 9},
    "minus infinity": {"attn_mask": torch.zeros(4, 5).double().masked_fill(SHUT, -torch.inf)},
    "grouped": {"enable_gqa": True}, "grouped and causal": {"enable_gqa": True, "is_causal": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention(name):
    torch.manual_seed(0)
    options = SDPA[name]
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = random(2, 4, 4, 6), random(2, heads, 5, 6), random(2, heads, 5, 3)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, **options), expected, **CLOSE)


def key_padding(samples):
    return torch.arange(5) >= torch.tensor([[5], [3], [2]])[:samples]


MHA = {
    "plain": {}, "without weights": {"need_weights": False},
    "weights of heads": {"average_attn_weights": False}, "boolean": {"attn_mask": SHUT},
    "numbers": {"attn_mask": torch.arange(20.0).reshape(4, 5).double() / 9},
    "by head": {"attn_mask": torch.stack([SHUT, SHUT.roll(1, 1)]).repeat(3, 1, 1)},
    "numbers by head": {"attn_mask": torch.arange(120.0).reshape(6, 4, 5).double() / 50},
    "padding": {"key_padding_mask": key_padding(3)},
    "padding in numbers": {"key_padding_mask": key_padding(3).double() * -2},
    "padding and boolean": {"key_padding_mask": key_padding(3), "attn_mask": SHUT.roll(2, 0) & False},
    "padding and by head": {
        "key_padding_mask": key_padding(3),
        "attn_mask": torch.eye(4, 5).bool()[None].repeat(6, 1, 1) & ~key_padding(3)[0]},
    "causal": {"attn_mask": torch.ones(4, 5).triu(1).bool(), "is_causal": True},
    "no bias": {"bias": False}, "extra keys": {"add_bias_kv": True}, "zero key": {"add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 3},
    "padding, heads": {"key_padding_mask": key_padding(3), "average_attn_weights": False},
}  # fmt: skip
BUILT_WITH = ("bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", MHA)
def test_multi_head_attention(name, single):
    torch.manual_seed(0)
    options = dict(MHA[name])
    made = {key: options.pop(key) for key in BUILT_WITH if key in options}
    module = nn.MultiheadAttention(8, 2, **made).double()
    q, k, v = random(4, 3, 8), random(5, 3, made.get("kdim", 8)), random(5, 3, made.get("vdim", 8))
    if single:
        q, k, v = q[:, 1], k[:, 1], v[:, 1]
        if "key_padding_mask" in options:
            options["key_padding_mask"] = options["key_padding_mask"][1]
        if options.get("attn_mask", SHUT).ndim == 3:
            options["attn_mask"] = options["attn_mask"][2:4]
    expected = module(q, k, v, **options)

    class Written(CallObserver):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.multi_head_attention_forward:
                Written.calls += 1
                return multi_head_attention(torch.no_grad(), args, dict(kwargs or {}))
            return super().__torch_function__(func, types, args, kwargs)

        def observe(self, *call):
            pass

    with Written():
        found = module(q, k, v, **options)
    assert Written.calls == 1
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], **CLOSE)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("scaled", [(True, True), (True, False), (False, True), (False, False)])
def test_affine_batch_norm(dims, scaled):
    torch.manual_seed(0)
    x, mean, var = random(3, 4, *[2] * dims), random(4), random(4) ** 2
    weight, bias = (random(4) if given else None for given in scaled)
    for eps in (1e-5, 2.0):
        given = (x, mean, var, weight, bias, False, 0.1, eps)
        affine = affine_batch_norm(*given)
        found = torch.addcmul(affine.shift, affine.x, affine.scale)
        torch.testing.assert_close(found, F.batch_norm(*given), **CLOSE)
    assert affine_batch_norm(x, mean, var, training=True) is None
    assert affine_batch_norm(x, None, None) is None
    assert affine_batch_norm(x, mean, var, mean.clone().requires_grad_()) is None


# Rows


@pytest.mark.parametrize("name", CASES)
def test_projected_rows(name):
    """``a v`` without the rows, and rows that make the gradient: ``Σ δ aᵀ``."""
    torch.manual_seed(0)
    case = CASES[name]()
    problem = problem_from(case)
    layers = [problem._layers[layer] for layer in case.matrices]
    leaves = problem._objective.leaves(layers)
    slopes = problem.gradients(list(case.matrices))
    with problem._objective.one_pass(0) as batches:
        batch = next(batches)
        with PassageCapture(layers, leaves) as capture:
            loss, _ = problem._objective.loss(leaves, batch)
    for layer in layers:
        passages = capture.passages[layer.info.name]
        if layer.info.name in capture.hidden:
            continue
        assert passages
        total = torch.zeros(layer.info.shape, dtype=torch.float64)
        for passage in passages:
            a, v = passage.inputs(), random(layer.info.shape[1], 3)
            torch.testing.assert_close(passage.project(v), a @ v, **CLOSE)
            (g,) = torch.autograd.grad(loss, passage.edge, retain_graph=True)
            total += torch.einsum("bsm,bsn->mn", passage.outputs(g), a.detach())
        if name != "tied":  # its lookups use the matrix the other way around
            torch.testing.assert_close(total, slopes[layer.info.name], rtol=1e-9, atol=1e-12)


# The root of the loss


def root_of(logits, loss=F.cross_entropy, target=None):
    target = torch.zeros(len(logits), dtype=torch.int64) if target is None else target
    return output_curvature(
        logits, lambda z: loss(z, target), float(len(logits)), 64, logistic=False
    )


LOGITS = {
    "ordinary": torch.linspace(-2, 2, 20).reshape(4, 5), "equal": torch.zeros(3, 5),
    "spread": torch.tensor([[0.0, 200, 100, -100, 50], [200, 199, -200, 198, 0], [0, 0, 0, 0, 200.0]]),
    "last wins": torch.tensor([[0.0, 0, 0, 0, 40], [-90, -80, -70, -60, 60]]),
    "first wins": torch.tensor([[40.0, 0, 0, 0, 0], [60, -80, -70, -60, -90]]),
    "two left": torch.tensor([[-200.0, 3, -200, 2, -200], [1, -200, -200, -200, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOGITS)
def test_softmax_columns(name, dtype):
    logits = LOGITS[name].to(dtype)
    root = root_of(logits)
    columns = torch.stack(list(root.columns()), 2).double()
    assert columns.shape[2] == root.n_columns == logits.shape[1] - 1
    assert columns.isfinite().all()
    p = logits.double().softmax(1)
    exact = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    error = (columns @ columns.mT - exact).abs()
    eps = torch.finfo(dtype).eps
    # Logits of 200 are known to 200 eps, and with them the probabilities.
    assert (error <= 4 * eps * max(1.0, float(logits.abs().max()))).all()
    assert (columns.sum(1).abs() <= 8 * eps).all()
    # On the diagonal also relatively, where p itself is not rounded to zero.
    diagonal, own = (part.diagonal(dim1=1, dim2=2) for part in (columns @ columns.mT, exact))
    normal = own > 1e4 * torch.finfo(dtype).tiny
    assert ((diagonal - own).abs()[normal] <= 500 * eps * own[normal]).all()


def test_softmax_columns_at_positions_and_weights():
    torch.manual_seed(0)
    logits, target = random(3, 4, 2), torch.randint(4, (3, 2))
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()

    def loss(z, t):
        return F.cross_entropy(z, t, weights)

    count = float(weights[target].sum())
    root = output_curvature(logits, lambda z: loss(z, target), count, 64, logistic=False)
    columns = torch.stack(list(root.columns())).flatten(2)
    assert len(columns) == root.n_columns == 3 * 2
    hessian = torch.autograd.functional.hessian(lambda z: count * loss(z, target), logits)
    hessian = hessian.reshape(3, 8, 3, 8)
    for i in range(3):
        torch.testing.assert_close(columns[:, i].T @ columns[:, i], hessian[i, :, i], **CLOSE)


# What is counted


def test_allocation_peak():
    unit = 1000 * 8
    there = torch.zeros(1000, dtype=torch.float64)
    with AllocationPeak() as peak:
        a = there + 1
        view = a[:10]  # no memory of its own
        a.add_(1)
        assert peak.bytes == unit
        b = a + 1
        c = b + 1
        assert peak.bytes == 3 * unit
        del b, c
        gc.collect()
        d = a + 1
        assert peak.bytes == 3 * unit  # room was given back
        e, f = torch.cat([d, d]), there.exp()
        assert peak.bytes == (1 + 1 + 2 + 1) * unit
        del a
        assert view.sum() > 0  # its memory lives as long as a view of it
        g = there + 1
        assert peak.bytes >= 6 * unit
    assert peak.bytes < 7 * unit and len(e) + len(f) + len(g) == 4000


def test_work_counter():
    x, w = torch.randn(7, 5), torch.randn(5, 3, requires_grad=True)
    with WorkCounter() as counter:
        y = x @ w
        assert counter.work == 7 * 5 * 3
        torch.tanh(y) * 2
        assert counter.work == 7 * 5 * 3
        y.sum().backward()
        assert counter.work == 2 * 7 * 5 * 3  # only w has a gradient
    with WorkCounter() as counter:
        F.conv2d(torch.randn(2, 4, 8, 8), torch.randn(6, 2, 3, 3), groups=2)
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    assert counter.work == 2 * 6 * 36 * (2 * 9) + 2 * 3 * 4 * 5


# Short forms of tangents


def piece(function, x):
    leaf = x.detach().new_empty(()).expand(x.shape).requires_grad_()
    output = function(Alias.apply(leaf, (x.detach(),)))
    return Segment([output], [output.detach()], [leaf])


def both_rules(function, x):
    """Return the short form and the general rule of one operation, with the same adjoint."""
    one, two = piece(function, x), piece(function, x)
    adjoint = random(*one.outputs[0].shape)
    short, pulled = tangent_rule(one, one.inputs, [adjoint], shortcuts=True)
    general, expected = tangent_rule(two, two.inputs, [adjoint], shortcuts=False)
    torch.testing.assert_close(pulled, expected, **CLOSE)
    return short, general


def check_rules(short, general, shape):
    for count in (1, 3):
        tangents = random(count, *shape)
        (moved,), second = short([tangents])
        (expected,), curvature = general([tangents])
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-11)
        assert second.shape == (count,)
        size = float(curvature.abs().max())
        torch.testing.assert_close(second, curvature, rtol=1e-9, atol=1e-9 * size)
        assert size > 0


ELEMENTWISE = {
    "Celu": lambda x: F.celu(x, 0.7), "Cos": torch.cos, "Elu": lambda x: F.elu(x, 0.7), "Erf": torch.erf,
    "Exp": torch.exp, "Expm1": torch.expm1, "Gelu": F.gelu, "Gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "Hardswish": lambda x: F.hardswish(x), "Log": lambda x: torch.log(x), "Log1P": lambda x: torch.log1p(x),
    "LogSigmoid": F.logsigmoid, "Mish": F.mish, "Pow": lambda x: x**3, "Pow of a fraction": lambda x: x**2.5,
    "Reciprocal": torch.reciprocal, "Rsqrt": torch.rsqrt, "Sigmoid": torch.sigmoid, "Silu": F.silu, "Sin": torch.sin,
    "Softplus": lambda x: F.softplus(x, 2.0, 1.0), "Sqrt": torch.sqrt, "Tanh": torch.tanh, "Selu": F.selu,
}  # fmt: skip
POSITIVE = ("Log", "Pow of a fraction", "Rsqrt", "Sqrt", "Log1P")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_short_forms(name):
    torch.manual_seed(0)
    x = 2 * random(3, 4)
    x = x.abs() + 0.1 if name in POSITIVE else x
    short, general = both_rules(ELEMENTWISE[name], x)
    assert isinstance(short, _Elementwise)
    check_rules(short, general, x.shape)


def test_every_elementwise_name_is_tested():
    from spectral_backends.torch.tangent_rules import _ELEMENTWISE

    names = set()
    for name, function in ELEMENTWISE.items():
        x = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
        names.add(function(x).grad_fn.name())
        assert names <= _ELEMENTWISE, name
    assert names == _ELEMENTWISE


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_softmax_short_forms(axis, logarithm, spread):
    torch.manual_seed(0)
    function = torch.log_softmax if logarithm else torch.softmax
    x = spread * random(3, 4, 2)
    short, general = both_rules(lambda x: function(x, axis), x)
    assert isinstance(short, _Softmax)
    check_rules(short, general, x.shape)


@pytest.mark.parametrize("eps", [1e-5, 3.0])
@pytest.mark.parametrize("scaled", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_layer_norm_short_forms(shape, scaled, eps):
    torch.manual_seed(0)
    weight, bias = (random(6) if given else None for given in scaled)
    x = 2 * random(*shape) + 1
    short, general = both_rules(lambda x: F.layer_norm(x, (6,), weight, bias, eps), x)
    assert isinstance(short, _LayerNorm)
    check_rules(short, general, x.shape)


def test_pieces_that_look_like_a_short_form():
    """More than one operation on the way, or two axes: the general rule, not a wrong short one."""
    torch.manual_seed(0)
    x = 2 * random(3, 4)
    for function in (
        lambda x: torch.sin(x).mul_(2), lambda x: torch.tanh(x.t()), lambda x: torch.exp(x[:, :2]),
        lambda x: F.layer_norm(x, (3, 4)), lambda x: torch.softmax(2 * x, 1),
        lambda x: F.softmax(x.reshape(4, 3), 1), lambda x: torch.tanh(x)[:2],
        lambda x: torch.pow(x.abs() + 1, x), lambda x: torch.sin(x) + x,
    ):  # fmt: skip
        short, general = both_rules(function, x)
        check_rules(short, general, x.shape)


def test_products_short_form():
    """Two leaves: half the derivatives give the whole."""
    torch.manual_seed(0)
    values = random(3, 4), random(4, 2)
    rules = []
    adjoint = random(3, 2)
    for shortcuts in (True, False):
        leaves = [v.new_empty(()).expand(v.shape).requires_grad_() for v in values]
        x, y = (Alias.apply(leaf, (v.clone(),)) for leaf, v in zip(leaves, values, strict=True))
        segment = Segment([x @ y], [], leaves)
        rules.append(tangent_rule(segment, leaves, [adjoint], shortcuts=shortcuts)[0])
    a, b = random(3, 3, 4), random(3, 4, 2)
    for tangents in ([a, b], [a, None], [None, b]):
        (one, second), (two, curvature) = (rule(tangents) for rule in rules)
        torch.testing.assert_close(one[0], two[0], **CLOSE)
        if curvature is None or second is None:
            assert None in tangents
            assert all(part is None or not part.abs().max() for part in (second, curvature))
        else:
            torch.testing.assert_close(second, curvature, **CLOSE)


def test_helper_slopes_are_those_of_the_problem():
    """The helpers' oracle is one: its slopes are the singular values."""
    torch.manual_seed(0)
    case = CASES["linear"]()
    for layer, e in expected_of(case, ()).items():
        sigma = torch.linalg.svdvals(problem_from(case).gradients([layer])[layer])
        count = min(4, len(sigma))
        torch.testing.assert_close(e.slope[:count], sigma[:count], **CLOSE)
