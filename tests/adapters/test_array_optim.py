"""`SpectralNewton` for arrays: PyTorch's over 50 steps, the textbook, every library, what is refused."""

from types import ModuleType, SimpleNamespace

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_core as sc
from spectral_adapters.array_optim import SpectralNewton
from spectral_backends.arrays import DenseNetwork
from spectral_core.newton import batched
from spectral_core.newton.adamw import adamw_step

RNG = np.random.default_rng(0)
NETWORK = DenseNetwork((6, 8, 8, 8, 5), "tanh")
BATCH = (RNG.standard_normal((40, 6)), RNG.integers(0, 5, 40))


def close(one, two, tolerance):
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 1.0, "weight_decay": 0.1},
        {"alpha": 2.0, "nesterov": False, "momentum": 0.9, "damping": 0.01},
        {"alpha": {"linear": 0.5}, "scale": "spectral"},
        {"alpha": 1.3, "method": "eigh", "adamw": {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6}},
    ],
)
def test_fifty_steps_are_those_of_the_torch_optimizer(options):
    torch = pytest.importorskip("torch")
    from spectral_adapters.torch_optim import SpectralNewton as TorchSpectralNewton

    params = NETWORK.init(0)
    tensors = {name: torch.nn.Parameter(torch.as_tensor(p.copy())) for name, p in params.items()}
    head = [("head.weight", tensors["head.weight"])]
    rest = [(n, p) for n, p in tensors.items() if n != "head.weight"]
    theirs = TorchSpectralNewton(
        [{"params": rest}, {"params": head, "rule": "adamw"}], lr=0.01, **options
    )
    ours = SpectralNewton(lr=0.01, **options)
    state = ours.init(params)
    for _ in range(50):
        gradients = NETWORK.gradient(params, BATCH)
        given = NETWORK.gradient({n: p.detach().numpy() for n, p in tensors.items()}, BATCH)
        for name, tensor in tensors.items():
            tensor.grad = torch.as_tensor(given[name])
        theirs.step()
        params, state = ours.update(params, gradients, state)
    close(params, {n: p.detach().numpy() for n, p in tensors.items()}, 1e-10)
    before, after = (np.mean(NETWORK.losses(p, BATCH)) for p in (NETWORK.init(0), params))
    assert after < before


def test_a_list_is_torchs_group_without_names():
    torch = pytest.importorskip("torch")
    from spectral_adapters.torch_optim import SpectralNewton as TorchSpectralNewton

    arrays = [RNG.standard_normal(shape) for shape in ((4, 3, 2, 2), (5, 6), (7,), (1, 8), (5, 6))]
    tensors = [torch.nn.Parameter(torch.as_tensor(a.copy())) for a in arrays]
    theirs, ours = TorchSpectralNewton(tensors, lr=0.01), SpectralNewton(lr=0.01)
    state = ours.init(arrays)
    for _ in range(50):
        gradients = [RNG.standard_normal(a.shape) for a in arrays]
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = torch.as_tensor(gradient)
        theirs.step()
        arrays, state = ours.update(arrays, gradients, state)
    assert isinstance(arrays, list)
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=0, atol=1e-10)


def test_the_textbook_step():
    # Two matrices of one shape and a vector; everything written out.
    params = {"a": RNG.standard_normal((4, 6)), "b": RNG.standard_normal((4, 6)), "c": np.ones(3)}
    optimizer = SpectralNewton(lr=0.1, alpha=1.5, damping=0.1, weight_decay=0.01)
    state = optimizer.init(params)
    wanted = {name: p.copy() for name, p in params.items()}
    momentum = {name: np.zeros((4, 6)) for name in "ab"}
    mean = square = np.zeros(3)
    for t in range(1, 4):
        gradients = {name: RNG.standard_normal(p.shape) for name, p in params.items()}
        params, state = optimizer.update(params, gradients, state)
        for name in "ab":
            g = gradients[name]
            momentum[name] = 0.95 * momentum[name] + 0.05 * g
            u, s, vh = np.linalg.svd(0.95 * momentum[name] + 0.05 * g, full_matrices=False)
            update = u @ np.diag(s / (s**1.5 + 0.1 * s[0] ** 1.5)) @ vh
            update *= 0.2 / np.sqrt(np.mean(update**2))
            wanted[name] = wanted[name] - 0.1 * (update + 0.01 * wanted[name])
        g = gradients["c"]
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        adam = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        wanted["c"] = wanted["c"] - 0.1 * (adam + 0.01 * wanted["c"])
        # The method that "auto" takes may be 1e-10 off in float64; see `precondition`.
        close(params, wanted, 1e-8)


def test_matrices_of_one_shape_are_updated_together(monkeypatch):
    calls = []
    step = batched.newton_step

    def counted(weight, *args, **kwargs):
        calls.append(tuple(weight.shape))
        return step(weight, *args, **kwargs)

    monkeypatch.setattr(batched, "newton_step", counted)
    params = NETWORK.init(0)
    optimizer = SpectralNewton()
    together, _ = optimizer.update(params, NETWORK.gradient(params, BATCH), optimizer.init(params))
    assert sorted(calls) == [(1, 8, 6), (2, 8, 8)]
    for name in ("1.weight", "2.weight"):
        one = {name: params[name]}
        gradient = {name: NETWORK.gradient(params, BATCH)[name]}
        alone, _ = optimizer.update(one, gradient, optimizer.init(one))
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-13)


def test_every_library_makes_the_same_steps(xp):
    params, like = NETWORK.init(0), xp.array([0.0])
    names = list(params)
    optimizer = SpectralNewton(lr=0.01, alpha=2.0, weight_decay=0.1)

    def steps(*arrays):
        own, state = dict(zip(names, arrays, strict=True)), None
        state = optimizer.init(own)
        for _ in range(2):
            own, state = optimizer.update(own, {n: 0.3 * p + 0.1 for n, p in own.items()}, state)
        return tuple(own.values())

    found = xp.run(steps, *(xp.array(p) for p in params.values()))
    for name, array, wanted in zip(names, found, steps(*params.values()), strict=True):
        xp.check_kind(array, like)
        np.testing.assert_allclose(xp.numpy(array), wanted, atol=2000 * xp.eps, err_msg=name)


def test_under_jit_with_a_traced_state_and_learning_rate():
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        params = {n: jax.numpy.asarray(p) for n, p in NETWORK.init(0).items()}
        optimizer = SpectralNewton(lr=0.01, alpha=2.0)
        jitted = jax.jit(lambda p, g, s, lr: optimizer.update(p, g, s, lr=lr))
        state = plain_state = optimizer.init(params)
        plain = params
        for rate in (0.1, 0.01, 0.001):
            gradients = {n: jax.numpy.sin(p + 1) for n, p in params.items()}
            params, state = jitted(params, gradients, state, rate)
            plain, plain_state = optimizer.update(plain, gradients, plain_state, lr=rate)
        close(params, plain, 1e-12)
        assert int(state.count) == plain_state.count == 3
    finally:
        jax.config.update("jax_enable_x64", before)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_leaves_parameter_and_state(seed, bad):
    generator = np.random.default_rng(seed)
    params = {"a": generator.standard_normal((3, 4)), "b": generator.standard_normal((3, 4)),
              "c": generator.standard_normal(3)}  # fmt: skip
    optimizer = SpectralNewton(weight_decay=0.1)
    good = {name: generator.standard_normal(p.shape) for name, p in params.items()}
    params, state = optimizer.update(params, good, optimizer.init(params))
    poisoned = {name: g.copy() for name, g in good.items()}
    poisoned["a"][0, 0] = poisoned["c"][1] = bad
    after, new = optimizer.update(params, poisoned, state)
    for name in ("a", "c"):
        assert np.array_equal(after[name], params[name])
    assert np.array_equal(new.momentum["a"], state.momentum["a"])
    assert np.array_equal(new.mean["c"], state.mean["c"])
    assert np.array_equal(new.square["c"], state.square["c"])
    assert not np.array_equal(after["b"], params["b"])


def test_nothing_is_written_to():
    params = NETWORK.init(0)
    gradients = NETWORK.gradient(params, BATCH)
    for array in (*params.values(), *gradients.values()):
        array.flags.writeable = False
    optimizer = SpectralNewton()
    state = optimizer.init(params)
    for array in (*state.momentum.values(), *state.mean.values()):
        array.flags.writeable = False
    new, _ = optimizer.update(params, gradients, state)
    assert not np.array_equal(new["0.weight"], params["0.weight"])


def test_a_parameter_without_a_gradient_stays():
    params = NETWORK.init(0)
    gradients = NETWORK.gradient(params, BATCH)
    optimizer = SpectralNewton()
    state = optimizer.init(params)
    partly = {n: g for n, g in gradients.items() if n != "head.bias"} | {"0.weight": None}
    new, after = optimizer.update(params, partly, state)
    for name in ("0.weight", "head.bias"):
        assert np.array_equal(new[name], params[name])
    assert np.array_equal(after.momentum["0.weight"], state.momentum["0.weight"])
    assert not np.array_equal(new["1.weight"], params["1.weight"])


def test_what_gets_zeros_for_a_gradient_stops(xp):
    params = {
        "a": xp.array(RNG.standard_normal((4, 6))),
        "b": xp.array(RNG.standard_normal((4, 6))),
    }
    optimizer = SpectralNewton(lr=0.01, weight_decay=0.1)
    state = optimizer.init(params)._replace(momentum=dict(params))
    zeros = params | {"a": xp.array(np.zeros((4, 6)))}
    after, new = optimizer.update(params, zeros, state)
    expected = (1 - 0.01 * 0.1) * xp.numpy(params["a"])
    np.testing.assert_allclose(xp.numpy(after["a"]), expected, rtol=4 * xp.eps)
    held = 0.95 * xp.numpy(state.momentum["a"])
    np.testing.assert_allclose(xp.numpy(new.momentum["a"]), held, rtol=4 * xp.eps)
    moved = xp.numpy(after["b"]) - (1 - 0.01 * 0.1) * xp.numpy(params["b"])
    assert abs(np.sqrt(np.mean(moved**2)) / (0.01 * 0.2) - 1) < 1e-4


def test_half_precision_keeps_a_wide_momentum():
    params = {"w": RNG.standard_normal((4, 5)).astype(np.float16), "b": np.ones(4, np.float16)}
    optimizer = SpectralNewton(lr=0.1)
    new, state = optimizer.update(params, params, optimizer.init(params))
    assert new["w"].dtype == new["b"].dtype == np.float16
    assert state.momentum["w"].dtype == state.mean["b"].dtype == np.float32


def test_routing():
    shapes = {
        "embed.weight": (50, 8), "blocks.0.attn.q_proj.weight": (8, 8),
        "blocks.0.mlp.up_proj.weight": (32, 8), "blocks.0.norm": (8,), "conv": (4, 3, 3, 3),
        "thin": (1, 8), "lm_head.weight": (50, 8),
    }  # fmt: skip
    params = {name: np.ones(shape) for name, shape in shapes.items()}
    table = {route.name: route for route in SpectralNewton(alpha="per-type").routing(params)}
    assert [r.rule for r in table.values()] == [
        "adamw", "spectral", "spectral", "adamw", "spectral", "adamw", "adamw"
    ]  # fmt: skip
    assert table["blocks.0.attn.q_proj.weight"].alpha == 1.2
    assert table["blocks.0.mlp.up_proj.weight"].alpha == 0.8 and table["conv"].alpha == 2.0
    changed = SpectralNewton(
        route={"lm_head*": {"alpha": 1.1, "matrices": "matrix rows=2"}, "blocks.*": "adamw"}
    ).routing(params)
    rows = {route.name: route for route in changed}
    assert (
        rows["lm_head.weight"].alpha == 1.1 and rows["lm_head.weight"].matrices == "matrix rows=2"
    )
    assert rows["blocks.0.mlp.up_proj.weight"].rule == "adamw"
    assert "output head" in str(SpectralNewton().routing(params))


def test_alpha_from_a_report():
    params = NETWORK.init(0)
    report = sc.measure(NETWORK.problem(params, [BATCH]), top_k=6, curvature="ggn")
    routes = {r.name: r for r in SpectralNewton(alpha=report).routing(params)}
    layers = [n for n in ("0", "1", "2") if "measured" in routes[f"{n}.weight"].alpha_reason]
    assert layers
    for name in layers:
        assert routes[f"{name}.weight"].alpha == pytest.approx(report[name].alpha.exponent)


class Foreign:
    """An array without a namespace of the standard."""

    shape, dtype = (2, 2), "float32"


class Incomplete:
    """An array as MLX's are: with a namespace of the standard that lacks linear algebra."""

    shape, ndim, dtype = (2, 2), 2, "float32"
    size, T, device = 4, None, "cpu"

    def __array_namespace__(self, api_version=None):
        return INCOMPLETE


INCOMPLETE = ModuleType("incomplete")
INCOMPLETE.linalg = SimpleNamespace(eigh=0, svd=0, solve=0, inv=0)
INCOMPLETE.isdtype = lambda dtype, kind: True
W = np.ones((3, 4))
MASKED = np.ma.array(W, mask=np.eye(3, 4) > 0)
REFUSED = {
    "lr": (lambda: SpectralNewton(lr=-1), "lr"),
    "momentum": (lambda: SpectralNewton(momentum=1.0), "beta"),
    "scale": (lambda: SpectralNewton(scale="big"), "scale"),
    "method": (lambda: SpectralNewton(method="magic"), "method"),
    "damping": (lambda: SpectralNewton(damping=-1), "damping"),
    "adamw": (lambda: SpectralNewton(adamw={"beta": 1}), "none of lr"),
    "betas": (lambda: SpectralNewton(adamw={"betas": (0.9, 1.0)}), "betas"),
    "eps": (lambda: SpectralNewton(adamw={"eps": 0}), "eps"),
    "alpha": (lambda: SpectralNewton(alpha=5).init({"w": W}), r"\[0, 4\]"),
    "auto": (lambda: SpectralNewton(alpha="auto").init({"w": W}), "pass the report"),
    "glob": (lambda: SpectralNewton(route={"x": "adamw"}).init({"w": W}), "matches none"),
    "rule": (lambda: SpectralNewton(route={"w": "sgd"}).init({"w": W}), "'spectral', 'adamw'"),
    "vector": (lambda: SpectralNewton(route={"b": "spectral"}).init({"b": W[0]}), "no matrix"),
    "nothing": (lambda: SpectralNewton().init({}), "there is none"),
    "an array": (lambda: SpectralNewton().init(W), "a ndarray was passed"),
    "integers": (lambda: SpectralNewton().init([np.ones((2, 2), int)]), "dtype int"),
    "foreign": (lambda: SpectralNewton().init([Foreign()]), "a Foreign of .*numpy.asarray"),
    "incomplete": (
        lambda: SpectralNewton().init([Incomplete()]), "'0': .* lacks diagonal, trace .*numpy.asarray"
    ),
    "incomplete gradient": (
        lambda: sc.precondition(Incomplete(), 2.0), "gradient: .* lacks diagonal, trace .*numpy.asarray"
    ),
    "numbers": (lambda: SpectralNewton().init([[1.0, 2.0]]), "a list of builtins"),
    "masked": (lambda: SpectralNewton().init({"w": MASKED}), "params: 'w': .*masked values"),
    "masked gradient": (
        lambda: SpectralNewton().update([W], [MASKED], SpectralNewton().init([W])),
        "gradients: '0': .*masked values",
    ),
    "shape": (
        lambda: SpectralNewton().update([W], [W.T], SpectralNewton().init([W])), r"shape \(4, 3\)"
    ),
    "unknown gradient": (
        lambda: SpectralNewton().update({"w": W}, {"v": W}, SpectralNewton().init({"w": W})),
        "none of the parameters",
    ),
    "another state": (
        lambda: SpectralNewton().update({"w": W}, {"w": W}, SpectralNewton().init({"v": W})),
        "call init",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(sc.InputError, match=message):
        make()


def test_a_mask_without_a_masked_value_is_no_mask():
    optimizer, start = SpectralNewton(lr=0.1), {"w": np.diag([3.0, 2.0, 1.0]), "b": np.ones(3)}
    expected, _ = optimizer.update(start, start, optimizer.init(start))
    bare = {name: np.ma.array(array) for name, array in start.items()}
    found, state = optimizer.update(bare, bare, optimizer.init(bare))
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray and np.array_equal(found[name], array)
    assert type(state.momentum["w"]) is np.ndarray


def test_tensors_with_a_graph_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(sc.InputError, match="pass detached tensors"):
        SpectralNewton().init([torch.ones(2, 2, requires_grad=True)])


def test_adamw_refuses_other_shapes():
    said = (
        r"^weight, gradient, mean and square have shapes \(3, 4\), \(3, 4\), \(4, 3\), \(3, 4\); pass "
        r"four of one shape, zeros as the first moments\.$"
    )
    with pytest.raises(sc.InputError, match=said):
        adamw_step(W, W, W.T, W, 1, lr=0.1)


def test_adamw_without_momentum_is_a_step_by_the_sign():
    step, mean, square = adamw_step(0 * W, W, 0 * W, 0 * W, 1, lr=0.1, betas=(0, 0), eps=1e-300)
    np.testing.assert_allclose(step, -0.1 * np.sign(W), rtol=1e-14)
    assert np.array_equal(mean, W) and np.array_equal(square, W * W)


def test_adamw_decays_no_weight_unless_told():
    zero = np.zeros_like(W)
    step, _, _ = adamw_step(W, zero, zero, zero, 1, lr=0.1)
    assert np.all(step == 0)
    step, _, _ = adamw_step(W, zero, zero, zero, 1, lr=0.1, weight_decay=0.5)
    np.testing.assert_allclose(step, -0.05 * W, rtol=1e-15)


def test_arrays_of_the_strict_library_meet_in_one_namespace():
    xp = pytest.importorskip("array_api_strict")
    params = [xp.asarray(W), xp.asarray(W[0])]
    new, _ = SpectralNewton().update(params, params, SpectralNewton().init(params))
    assert array_api_compat.array_namespace(*new) is xp


def test_mlx_is_refused_by_name():
    mx = pytest.importorskip("mlx.core")
    weight = mx.array([[1.0, 2.0], [3.0, 4.0]])
    for call in (lambda: SpectralNewton().init([weight]), lambda: sc.precondition(weight, 2.0)):
        with pytest.raises(sc.InputError, match="an array of mlx, which lacks diagonal, trace"):
            call()
