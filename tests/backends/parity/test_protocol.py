"""Whole networks through the protocol: one module drives PyTorch and JAX.

The numbers that they are held against come from torch's autograd, from dense derivatives that share
no code with any backend. What every backend owes besides is in `test_conformance`.
"""

from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")  # the networks are torch's; their twins are made from them
import torch
from parity_networks import network, parts_of, problem_of
from torch.nn import functional as F

import spectral_core as sc
from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.problem import CurvatureProblem, ManyLayers

# Names of layers: some of each network keep the suite cheap, where each is compiled by itself.
LAYERS = {
    "mlp": ("0", "2", "4"),
    "regression": ("2",),
    "cnn": ("0", "2.group1", "6"),
    "masked transformer": ("wpe", "h.0.attn.c_proj"),
}
CASES = [(name, layer) for name, layers in LAYERS.items() for layer in layers]
TOLERANCE = 1e-10


@cache
def problem(backend, name):
    return problem_of(backend, network(name))


def numbers(array):
    return to_numpy(array).astype(np.float64)


def unit(seed, *shape):
    columns = np.random.default_rng(seed).normal(size=shape)
    return columns / np.linalg.norm(columns, axis=0)


# By torch's autograd


def parameter_gradient(net, name):
    leaf = net.state[name].clone().requires_grad_()
    loss = net.loss(net.outputs({**net.state, name: leaf}, net.inputs), net.targets)
    return torch.autograd.grad(loss, leaf)[0]


def dense_gradient(net, layer):
    name, read = net.place(layer)
    return read(parameter_gradient(net, name)).numpy()


@cache
def dense_forms(case):
    """Return Hessian and Gauss-Newton matrix in the parameter that holds the layer."""
    net = network(case[0])
    name, _ = net.place(case[1])
    weight = net.state[name]

    def outputs(w):
        return net.outputs({**net.state, name: w}, net.inputs)

    z = outputs(weight)
    size, width = weight.numel(), z.numel()
    hessian = torch.autograd.functional.hessian(lambda w: net.loss(outputs(w), net.targets), weight)
    jacobian = torch.autograd.functional.jacobian(outputs, weight).reshape(width, size)
    inner = torch.autograd.functional.hessian(lambda z: net.loss(z, net.targets), z)
    ggn = jacobian.T @ inner.reshape(width, width) @ jacobian
    return {"hessian": hessian.reshape(size, size).numpy(), "ggn": ggn.numpy()}


def written_out(net, layer, u, v):
    """Lay ``u_k v_kᵀ`` into zeros of the parameter, one row for each k: the transpose of reading."""
    name, read = net.place(layer)
    zero = torch.zeros_like(net.state[name], requires_grad=True)
    matrix = read(zero)
    rows = [
        torch.autograd.grad(matrix, zero, torch.outer(*pair), retain_graph=True)[0].flatten()
        for pair in zip(torch.from_numpy(u.T.copy()), torch.from_numpy(v.T.copy()), strict=True)
    ]
    return torch.stack(rows).numpy()


def directions(net, layer):
    """Return singular directions of the gradient, and two that have nothing to do with it."""
    u, _, vh = np.linalg.svd(dense_gradient(net, layer), full_matrices=False)
    m, n = net.shapes[layer]
    return np.hstack([u[:, :4], unit(1, m, 2)]), np.hstack([vh[:4].T, unit(2, n, 2)])


def is_near(found, expected, scale, tolerance=TOLERANCE):
    """Compare, relatively to the value or, where that is small, to a thousandth of the scale."""
    error = np.abs(numbers(found) - expected) / (np.abs(expected) + 1e-3 * scale)
    return bool(error.max() <= tolerance)  # NaN is not


# Layers


@pytest.mark.parametrize("name", LAYERS)
def test_layers(backend, name):
    p, net = problem(backend, name), network(name)
    assert isinstance(p, CurvatureProblem)
    found = {layer.name: layer for layer in p.layers()}
    assert list(found) == list(net.shapes) and len(found) == len(p.layers())
    assert {n: layer.shape for n, layer in found.items()} == net.shapes
    assert {n: found[n].kind for n in net.kinds} == net.kinds
    assert not p.skipped()


@pytest.mark.parametrize("name", LAYERS)
def test_description(backend, name):
    net = network(name)
    found = problem(backend, name).describe()
    assert found["backend"] == backend and backend in found["versions"]
    assert found["loss"] == pytest.approx(
        float(net.loss(net.outputs(net.state, net.inputs), net.targets)), rel=1e-12
    )
    terms = {"mlp": 23, "regression": 115, "cnn": 12, "masked transformer": 21}
    assert found["n_terms"] == terms[name]


# Values


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(backend, name):
    net = network(name)
    found = problem(backend, name).gradients(list(net.shapes))
    assert list(found) == list(net.shapes)
    for layer, gradient in found.items():
        expected = dense_gradient(net, layer)
        assert gradient.shape == net.shapes[layer]
        np.testing.assert_allclose(
            numbers(gradient), expected, rtol=1e-11, atol=1e-13 * np.abs(expected).max()
        )


def test_gradients_are_what_differences_show(backend):
    """Central differences: their error is O(step²) in the loss, O(ε / step) in its rounding."""
    net, layer, step = network("mlp"), "2", 1e-5
    gradient = numbers(problem(backend, "mlp").gradients([layer])[layer])
    for seed in range(3):
        d = torch.from_numpy(np.outer(unit(seed, 7, 1), unit(seed + 9, 8, 1)))
        shifted = [{**net.state, "2.weight": net.state["2.weight"] + t * d} for t in (step, -step)]
        up, down = (float(net.loss(net.outputs(s, net.inputs), net.targets)) for s in shifted)
        difference = (up - down) / (2 * step)
        assert np.vdot(gradient, d.numpy()) == pytest.approx(difference, abs=1e-9)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_curvatures(backend, name, layer, kind):
    net, dense = network(name), dense_forms((name, layer))[kind]
    u, v = directions(net, layer)
    d = written_out(net, layer, u, v)
    expected = np.einsum("ki,ij,kj->k", d, dense, d)
    found = problem(backend, name).curvatures(layer, u, v, kind)
    assert found.shape == (6,)
    assert is_near(found, expected, np.linalg.norm(dense, 2))


@pytest.mark.parametrize("engine", ["auto", "columns", "tangents", "double-backward"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_engines(backend, name, engine):
    p, net = problem(backend, name), network(name)
    if not isinstance(p, ManyLayers):
        pytest.skip(f"{backend} computes one layer at a time")
    for kind in ("hessian", "ggn"):
        # Columns give no second derivative of a nonlinear layer; the last layer is linear.
        flat = engine == "columns" and kind == "hessian"
        given = {layer: directions(net, layer) for layer in LAYERS[name][-1 if flat else 0 :]}
        found = {f.name: f for f in p.layer_curvatures(given, kind, engine=engine)}
        assert found.keys() == given.keys()
        for layer, (u, v) in given.items():
            dense, d = dense_forms((name, layer)), written_out(net, layer, u, v)
            values = {k: np.einsum("ki,ij,kj->k", d, b, d) for k, b in dense.items()}
            scale = {k: np.linalg.norm(b, 2) for k, b in dense.items()}
            f = found[layer]
            assert f.certificate.engine in {engine, "double-backward"} or engine == "auto"
            assert is_near(f.values, values[kind], scale[kind])
            if f.ggn is not None:
                assert is_near(f.ggn, values["ggn"], scale["ggn"])
            if f.derivative is not None:
                slopes = d @ parameter_gradient(net, net.place(layer)[0]).flatten().numpy()
                assert is_near(f.derivative, slopes, np.abs(slopes).max())
    rest = list(given)[1:]
    again = p.layer_curvatures(given, "ggn", engine=engine, done=list(given)[:1])
    again = {f.name: f for f in again}
    assert again.keys() == set(rest)
    for layer in rest:  # to the bit
        np.testing.assert_array_equal(numbers(again[layer].values), numbers(found[layer].values))


# Kronecker factors


def rows_and_jacobian(net, layer):
    """Return inputs (B, S, n), Jacobian (outputs, B, S, m), and the outputs, by a probe."""
    base, _, group = layer.partition(".group")
    module, (m, n), index = net.model.get_submodule(base), net.shapes[layer], int(group or 0)
    seen = {}

    def forward(probe):
        def hook(module, inputs, output):
            seen["a"], seen["y"] = inputs[0].detach(), output.detach()
            return output + probe

        handle = module.register_forward_hook(hook)
        try:
            return net.outputs(net.state, net.inputs)
        finally:
            handle.remove()

    z = forward(0.0)
    jacobian = torch.autograd.functional.jacobian(forward, torch.zeros_like(seen["y"]))
    a, shape = seen["a"], seen["y"].shape
    jacobian = jacobian.reshape(z.numel(), *shape)
    if isinstance(module, torch.nn.Conv2d):
        options = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding")}
        a = F.unfold(a, **options).mT[..., n * index : n * (index + 1)]
        jacobian = jacobian.flatten(3).mT[..., m * index : m * (index + 1)]
    else:
        a = a.reshape(len(a), -1, n)
        jacobian = jacobian.reshape(z.numel(), len(a), -1, m)
    return a, jacobian, z.detach()


def dense_factors(net, layer, delta, sharing):
    """Theory 4, literally: over samples, root vectors and positions."""
    a, jacobian, z = rows_and_jacobian(net, layer)
    count = {"mlp": 23, "cnn": 12, "regression": 115}[net_name(net)]
    if delta == "ggn":
        inner = torch.autograd.functional.hessian(lambda z: net.loss(z, net.targets), z)
        inner = inner.reshape(z.numel(), z.numel()) * count
    else:
        z.requires_grad_()
        gradient = torch.autograd.grad(net.loss(z, net.targets), z)[0].flatten() * count
        inner = torch.outer(gradient, gradient)  # crossed samples are cut off below
    if sharing == "reduce":
        a, jacobian = a.mean(1, keepdim=True), jacobian.sum(2, keepdim=True)
    c_delta = torch.einsum("oism,op,pisl->ml", jacobian, inner, jacobian) / count
    return c_delta.numpy(), torch.einsum("isn,isk->nk", a, a).numpy() / a[..., 0].numel()


def net_name(net):
    return next(name for name in LAYERS if network(name) is net)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", ["ggn", "empirical"])
@pytest.mark.parametrize(
    ("name", "layer"), [("mlp", "0"), ("mlp", "4"), ("cnn", "0"), ("cnn", "2.group1")]
)
def test_factors(backend, name, layer, delta, sharing):
    net = network(name)
    expected = dense_factors(net, layer, delta, sharing)
    found = problem(backend, name).kronecker_factors(
        [layer], fisher_type=delta, kfac_approx=sharing
    )[layer]
    assert found.output_noise is None
    for factor, right in zip(
        (found.output_covariance, found.input_covariance), expected, strict=True
    ):
        np.testing.assert_allclose(
            numbers(factor), right, rtol=1e-10, atol=1e-11 * np.abs(right).max()
        )


# Weighting


@pytest.mark.parametrize(
    ("name", "layer", "sizes"),
    [
        ("regression", "2", ([20, 3],)),
        ("masked transformer", "h.0.attn.c_proj", ([3, 1, 3], [1] * 7)),  # one batch has no term
    ],
)
def test_batching_changes_nothing(backend, name, layer, sizes):
    net, whole = network(name), problem(backend, name)
    u, v = directions(net, layer)

    def values(p):
        found = [p.gradients([layer])[layer]]
        found += [p.curvatures(layer, u, v, kind) for kind in ("hessian", "ggn")]
        # their positions are tokens: what a masked one counts differs from backend to backend
        if name != "masked transformer":
            factors = p.kronecker_factors([layer])[layer]
            found += [factors.output_covariance, factors.input_covariance]
        return [numbers(each) for each in found]

    expected = values(whole)
    for cut in sizes:
        p = problem_of(backend, net, net.batches(cut)[::-1])
        assert p.describe()["n_terms"] == whole.describe()["n_terms"]
        assert p.describe()["n_batches"] == len(cut)
        assert p.describe()["loss"] == pytest.approx(whole.describe()["loss"], rel=1e-12)
        for a, b in zip(values(p), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())


def test_single_precision(backend):
    """Rounding of float32 through some hundred operations, against the largest value."""
    net = network("mlp")
    p = problem_of(backend, net, dtype=torch.float32 if backend == "torch" else "float32")
    assert p.describe()["dtype"] == "float32" and p.describe()["model_dtype"] == "float64"
    u, v = directions(net, "2")
    pairs = [(p.gradients(["2"])["2"], dense_gradient(net, "2"))]
    pairs += [(p.curvatures("2", u, v), numbers(problem(backend, "mlp").curvatures("2", u, v)))]
    for found, expected in pairs:
        assert str(found.dtype).endswith("float32")
        error = np.abs(numbers(found) - expected).max() / np.abs(expected).max()
        assert error < 100 * np.finfo(np.float32).eps


# Errors


def spoiled(net, value):
    """Put a value into the second batch."""
    ((x, y),) = net.batches()
    x[0, 0] = value
    return [(net.inputs, net.targets), (x, y)]


def with_weight(backend, net, layer, change):
    """Return the problem's parts with another weight: ``change(matrix)`` alters it in place."""
    arguments, keywords = parts_of(backend, net)
    if backend == "torch":
        state = {name: value.clone() for name, value in net.state.items()}
        change(state[f"{layer}.weight"])
        return (net.outputs, *arguments[1:]), {"params": state}
    change(arguments[1][layer]["kernel"].T)
    return arguments, keywords


def poison(matrix):
    matrix[1, 2] = float("nan")


def clear(matrix):
    matrix[:] = 0


REFUSED_DATA = {
    "iterator": (lambda net: iter(net.batches()), "exhausted after one pass.*list\\(batches\\)"),
    "generator": (lambda net: (b for b in net.batches()), "exhausted after one pass"),
    "number": (lambda net: 5, "a int cannot be iterated"),
    "nan": (lambda net: spoiled(net, float("nan")), "batch 1 holds 1 NaN"),
}


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_data_refused_with_a_sentence(backend, name):
    make, words = REFUSED_DATA[name]
    net = network("mlp")
    with pytest.raises(sc.InputError, match=words):
        problem_of(backend, net, make(net))


def test_weights_refused_with_a_sentence(backend):
    arguments, keywords = with_weight(backend, network("mlp"), "0", poison)
    with pytest.raises(sc.InputError, match="'0.*' holds 1 "):
        type(problem(backend, "mlp"))(*arguments, **keywords)


def test_losses_refused_with_a_sentence(backend):
    """Infinite data may be meant; a loss of NaN is not."""
    net = network("cnn")
    with pytest.raises(sc.InputError, match="loss of batch 1 is nan"):
        problem_of(backend, net, spoiled(net, float("inf")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk_size": 0}, "chunk_size: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"reduction": "median"}, "reduction: 'median'.*'mean'.*'sum'"),
        ({"weight": lambda batch: -1}, "weight: .*-1"),
    ],
)
def test_options_refused_with_a_sentence(backend, options, words):
    with pytest.raises(sc.InputError, match=words):
        problem_of(backend, network("mlp"), **options)


def some(m, n):
    return unit(0, m, 3), unit(1, n, 3)


def test_engines_refused_with_a_sentence(backend):
    p = problem(backend, "mlp")
    with pytest.raises(sc.InputError, match="engine: 'magic'"):
        sc.measure(p, engine="magic", progress=False)
    if isinstance(p, ManyLayers):
        with pytest.raises(sc.InputError, match="engine: 'magic'"):
            list(p.layer_curvatures({"2": some(7, 8)}, engine="magic"))


def test_a_layer_without_gradient_is_skipped(backend):
    """Behind weights of zero, gradients are zero: a reason in the report, no exception."""
    arguments, keywords = with_weight(backend, network("mlp"), "4", clear)
    p = type(problem(backend, "mlp"))(*arguments, **keywords)
    found = sc.measure(p, top_k=3, progress=False)
    assert list(found) == ["4"] and found.skipped.keys() == {"0", "2"}
    assert all("zero" in reason for reason in found.skipped.values())
