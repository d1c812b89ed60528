"""T does not see what surrounds the call: autocast, default dtype and device, modes of a framework."""

import contextlib

import numpy as np
import pytest

import spectral_core as sc

REQUESTS = {
    "closed": {"alpha": 2.0, "damping": 1e-3},
    "shifts": {"alpha": 1.0, "damping": 0.1},
    "eigh": {"alpha": 1.3, "damping": 1e-3},
    "svd": {"alpha": 1.3, "damping": 1e-3},
    "polar": {"alpha": 1.0, "damping": 0.0},
    "polynomial": {"alpha": 2.0, "damping": 0.1},
    "auto": {"alpha": 2.0, "damping": 0.1, "precision": "bfloat16", "normalize": "rms"},
}


@contextlib.contextmanager
def put_back(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def default_dtype(name):
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    return put_back(
        lambda: torch.set_default_dtype(getattr(torch, name)),
        lambda: torch.set_default_dtype(before),
    )


def deterministic():
    torch = pytest.importorskip("torch")
    return put_back(
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    )


def autocast(name):
    torch = pytest.importorskip("torch")
    return torch.autocast("cpu", dtype=getattr(torch, name))


def on_meta():
    return pytest.importorskip("torch").device("meta")


SURROUNDINGS = {
    "autocast to bfloat16": lambda: autocast("bfloat16"),
    "autocast to float16": lambda: autocast("float16"),
    "default float64": lambda: default_dtype("float64"),
    "default bfloat16": lambda: default_dtype("bfloat16"),
    "default float16": lambda: default_dtype("float16"),
    "default device": on_meta,
    "deterministic": deterministic,
    "inference": lambda: pytest.importorskip("torch").inference_mode(),
    "no gradients": lambda: pytest.importorskip("torch").no_grad(),
}


def gradients(shape=(24, 40), dtype="float32"):
    """Matrices of a wide spectrum."""
    torch = pytest.importorskip("torch")
    draws = np.random.default_rng(0).standard_normal(shape) * np.geomspace(1, 1e-2, shape[-1])
    return torch.asarray(draws, dtype=getattr(torch, dtype))


def request_of(method):
    return {"method": method, **REQUESTS[method]}


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_torch_finds_the_same_bits(around, method, dtype):
    torch = pytest.importorskip("torch")
    g = gradients((2, 24, 40), dtype)
    expected = sc.precondition(g, **request_of(method))
    with SURROUNDINGS[around]():
        found = sc.precondition(g, **request_of(method))
    assert found.dtype == g.dtype and found.device == g.device
    assert torch.equal(found, expected)


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_a_step_of_torch_has_the_same_bits(around):
    torch = pytest.importorskip("torch")
    g = gradients()
    arguments = (g.flip(0).bfloat16(), g, torch.ones_like(g))
    options = {"lr": 0.01, "alpha": 2.0, "damping": 1e-3, "weight_decay": 0.1}
    expected = sc.spectral_newton_step(*arguments, **options)
    with SURROUNDINGS[around]():
        found = sc.spectral_newton_step(*arguments, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Dynamo's, on caches of array-api-compat
@pytest.mark.parametrize("method", REQUESTS)
def test_autocast_around_what_is_compiled_or_mapped(method):
    torch = pytest.importorskip("torch")
    g = gradients((2, 24, 40))

    def run(gradient):
        return sc.precondition(gradient, **request_of(method))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    plain, maps = compiled(g), method not in ("polynomial", "auto")  # which work in place
    mapped = torch.vmap(run)(g) if maps else plain
    with autocast("bfloat16"):
        assert torch.equal(compiled(g), plain)
        assert not maps or torch.equal(torch.vmap(run)(g), mapped)
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == torch.bfloat16  # as it was


def test_torch_derivatives_do_not_see_an_autocast():
    torch = pytest.importorskip("torch")

    def slope(around):
        leaf = gradients().requires_grad_()
        with around:
            value = sc.precondition(leaf, 2.0, 1e-3, method="closed")
        return torch.autograd.grad(value.pow(2).sum(), leaf)[0]

    assert torch.equal(slope(autocast("bfloat16")), slope(contextlib.nullcontext()))


def test_alignments_do_not_see_an_autocast():
    torch = pytest.importorskip("torch")
    g = gradients((30, 20))
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    factors = (torch.cov(gradients((30, 100))), torch.cov(gradients((20, 100))))
    expected = sc.spectral_alignment(u[:, :5], vh.mT[:, :5], *factors)
    with autocast("bfloat16"):
        found = sc.spectral_alignment(u[:, :5], vh.mT[:, :5], *factors)
    for name in ("rho_delta", "rho_a", "phi", "lam", "kron"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("default", [None, "bfloat16", "tensorfloat32"])
def test_jax_multiplies_in_the_highest_precision(method, default):
    """On a GPU or TPU the default has fewer bits, so that what is traced must say it."""
    jax = pytest.importorskip("jax")
    g = jax.numpy.asarray(gradients().numpy())

    def run(gradient):
        return sc.precondition(gradient, **request_of(method))

    around = contextlib.nullcontext() if default is None else jax.default_matmul_precision(default)
    with around:
        traced = jax.make_jaxpr(jax.grad(lambda gradient: run(gradient).sum()))(g)
    products = list(equations(traced.jaxpr, "dot_general"))
    highest = jax.lax.Precision.HIGHEST
    assert products and all(p.params["precision"] == (highest, highest) for p in products)


def equations(jaxpr, name):
    """Every equation of a kind, also inside others."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, name)


def test_jax_keeps_to_float32_whatever_the_defaults():
    jax = pytest.importorskip("jax")
    g = jax.numpy.asarray(gradients().numpy())
    expected = sc.precondition(g, 2.0, 1e-3, method="closed")
    before = jax.config.jax_enable_x64
    x64 = put_back(
        lambda: jax.config.update("jax_enable_x64", True),
        lambda: jax.config.update("jax_enable_x64", before),
    )
    for around in (x64, jax.numpy_dtype_promotion("strict")):
        with around:
            found = sc.precondition(g, 2.0, 1e-3, method="closed")
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
