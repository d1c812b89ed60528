"""The reference network against PyTorch's autograd in float64, which shares no code with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_backends.arrays import DenseNetwork
from spectral_core import InputError, measure

ACTIVATIONS = ("relu", "tanh", "gelu-tanh", "identity")
LOSSES = ("cross-entropy", "squared")


def batch_of(network, count, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, network.widths[0]))
    if network.loss == "cross-entropy":
        return x, generator.integers(0, network.widths[-1], count)
    return x, generator.standard_normal((count, network.widths[-1]))


def directions_of(params, seed=2, lead=()):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal((*lead, *p.shape)) for name, p in params.items()}


def with_biases(params, seed=3):
    generator = np.random.default_rng(seed)
    return {
        name: 0.3 * generator.standard_normal(p.shape) if name.endswith("bias") else p
        for name, p in params.items()
    }


def flat(tree):
    return np.concatenate([np.asarray(tree[name]).ravel() for name in sorted(tree)])


def torch_loss(network, batch):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    act = {
        "relu": torch.relu, "tanh": torch.tanh, "identity": lambda z: z,
        "gelu-tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }[network.activation]  # fmt: skip
    x, y = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])

    def outputs(params):
        a = x
        for name in network.layers:
            z = functional.linear(a, params[f"{name}.weight"], params.get(f"{name}.bias"))
            a = act(z)
        return z

    def loss(z):
        if network.loss == "cross-entropy":
            return functional.cross_entropy(z, y)
        return 0.5 * ((z - y) ** 2).sum(1).mean()

    return torch, outputs, loss


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_and_products_are_those_of_autograd(activation, loss, bias):
    network = DenseNetwork((4, 5, 6, 3), activation, loss, bias)
    batch, params = batch_of(network, 7), with_biases(network.init(0))
    directions = directions_of(params)
    torch, outputs, loss_of = torch_loss(network, batch)
    tensors = {name: torch.as_tensor(p) for name, p in params.items()}
    tangents = {name: torch.as_tensor(d) for name, d in directions.items()}

    def total(p):
        return loss_of(outputs(p))

    gradient, image = torch.func.jvp(torch.func.grad(total), (tensors,), (tangents,))
    np.testing.assert_allclose(
        np.mean(network.losses(params, batch)), total(tensors).item(), rtol=1e-14
    )
    scale = np.linalg.norm(flat(gradient))
    np.testing.assert_allclose(
        flat(network.gradient(params, batch)), flat(gradient), atol=1e-13 * scale
    )
    scale = np.linalg.norm(flat(image))
    found = network.hessian_product(params, batch, directions)
    np.testing.assert_allclose(flat(found), flat(image), atol=1e-13 * scale)

    z, moved = torch.func.jvp(outputs, (tensors,), (tangents,))
    _, bent = torch.func.jvp(torch.func.grad(loss_of), (z,), (moved,))
    _, pull = torch.func.vjp(outputs, tensors)
    ggn = pull(bent)[0]
    found = network.ggn_product(params, batch, directions)
    np.testing.assert_allclose(flat(found), flat(ggn), atol=1e-13 * np.linalg.norm(flat(ggn)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_leading_axes_are_many_directions(activation):
    network = DenseNetwork((3, 4, 5, 2), activation)
    batch, params = batch_of(network, 6), with_biases(network.init(0))
    many = directions_of(params, lead=(2, 3))
    for product in (network.hessian_product, network.ggn_product):
        together = product(params, batch, many)
        for i in range(2):
            for j in range(3):
                one = product(params, batch, {name: d[i, j] for name, d in many.items()})
                np.testing.assert_allclose(
                    flat({name: d[i, j] for name, d in together.items()}), flat(one), atol=1e-14
                )


@settings(max_examples=25, deadline=None)
@given(
    activation=st.sampled_from(ACTIVATIONS),
    loss=st.sampled_from(LOSSES),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_hessian_is_symmetric_and_ggn_is_not_negative(activation, loss, widths, seed):
    network = DenseNetwork(tuple(widths), activation, loss)
    batch, params = batch_of(network, 4, seed), with_biases(network.init(seed))
    one, two = directions_of(params, seed), directions_of(params, seed + 1)
    for product in (network.hessian_product, network.ggn_product):
        left = flat(two) @ flat(product(params, batch, one))
        right = flat(one) @ flat(product(params, batch, two))
        size = np.linalg.norm(flat(two)) * np.linalg.norm(flat(product(params, batch, one)))
        assert abs(left - right) <= 1e-12 * (size + 1e-300)
    image = network.ggn_product(params, batch, one)
    assert flat(one) @ flat(image) >= -1e-13 * np.linalg.norm(flat(image))


def test_a_closed_form():
    # One layer and squared error: H[D] = D C_A, whatever the targets.
    network = DenseNetwork((4, 3), loss="squared", bias=False)
    batch, params = batch_of(network, 9), network.init(5)
    direction = directions_of(params)
    second_moment = batch[0].T @ batch[0] / 9
    found = network.hessian_product(params, batch, direction)["head.weight"]
    np.testing.assert_allclose(found, direction["head.weight"] @ second_moment, rtol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_library_gives_the_same(xp, activation, loss):
    network = DenseNetwork((4, 5, 3), activation, loss)
    x, y = batch_of(network, 6)
    params, direction = network.init(0), directions_of(network.init(0))
    like = xp.array([0.0])
    if xp.library == "array-api-strict":
        import array_api_strict as module

        targets = module.asarray(y, device=like.device) if y.dtype.kind == "i" else xp.array(y)
    elif xp.library == "numpy":
        targets = y
    else:
        import array_api_compat

        module = array_api_compat.array_namespace(like)
        targets = module.asarray(y) if y.dtype.kind == "i" else xp.array(y)
    names = list(params)

    def product(x, targets, *arrays):  # positional, as jit takes them
        given = dict(zip(names, arrays[: len(names)], strict=True))
        moved = dict(zip(names, arrays[len(names) :], strict=True))
        return tuple(network.hessian_product(given, (x, targets), moved).values())

    own = network.init(0, like=like)
    moved = [xp.array(direction[name]) for name in names]
    images = xp.run(product, xp.array(x), targets, *own.values(), *moved)
    found = dict(zip(names, images, strict=True))
    wanted = network.hessian_product(params, (x, y), direction)
    for name, array in found.items():
        xp.check_kind(array, like)
        scale = np.linalg.norm(wanted[name])
        np.testing.assert_allclose(xp.numpy(array), wanted[name], atol=200 * xp.eps * scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (4,)}, "widths"),
        ({"widths": (4, 0)}, "widths"),
        ({"widths": (4, 2), "activation": "gelu"}, "error function"),
        ({"widths": (4, 2), "activation": "sine"}, "none of relu"),
        ({"widths": (4, 2), "loss": "hinge"}, "none of cross-entropy"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        DenseNetwork(**arguments)


def test_wrong_parameters_and_shapes_are_named():
    network = DenseNetwork((4, 3, 2))
    params, batch = network.init(0), batch_of(network, 5)
    with pytest.raises(InputError, match="this network has"):
        network.gradient({"0.weight": params["0.weight"]}, batch)
    with pytest.raises(InputError, match=r"'0.weight' has shape \(4, 3\)"):
        network.gradient(params | {"0.weight": params["0.weight"].T}, batch)
    with pytest.raises(InputError, match=r"inputs have shape \(5, 3\)"):
        network.gradient(params, (batch[0][:, :3], batch[1]))
    with pytest.raises(InputError, match="no parameters"):
        network.hessian_product(params, batch, {"1.weight": params["0.weight"]})


def test_no_positions_share_a_weight_so_all_of_kappa_is_dependence():
    network = DenseNetwork((6, 9, 5), activation="tanh")
    batches = [batch_of(network, count, seed) for seed, count in enumerate((30, 11))]
    problem = network.problem(network.init(), batches)
    report = measure(problem, top_k=5, curvature="ggn", decompose=True, progress=False)
    for layer in report.values():
        fits = layer.decomposition
        np.testing.assert_allclose(layer.diagonal, layer.ggn, rtol=1e-12)
        assert abs(fits.kappa_positions.exponent) < 1e-12
        assert abs(fits.kappa_dependence.exponent - fits.kappa.exponent) < 1e-12
