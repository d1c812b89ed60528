"""One report drives every optimizer: its layers are found among parameters by their names."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import spectral_core as sc
from spectral_adapters.array_optim import SpectralNewton
from spectral_backends.numpy import DenseNetwork

RNG = np.random.default_rng(0)


def array(*shape):
    return (RNG.standard_normal(shape) / 2).astype(np.float32)


def report_of(alphas, shape=(9, 6), interval=0.2):
    """A report of layers with these α, made of a measurement of one layer."""
    network = DenseNetwork((6, 9, 5))
    rng = np.random.default_rng(1)
    batch = (rng.standard_normal((30, 6)), rng.integers(5, size=30))
    measured = sc.measure(network.problem(network.init(0), [batch]), top_k=4)
    one = measured.spectra[0]
    layers = {}
    for name, alpha in alphas.items():
        half = interval / 2
        fit = replace(one.alpha, exponent=alpha, interval=(alpha - half, alpha + half))
        triangle = replace(one.triangle, alpha=fit)
        layers[name] = replace(one, name=name, shape=shape, triangle=triangle)
    found = replace(measured, spectra=tuple(layers.values()), skipped={})
    assert all(found[name].alpha.exponent == alpha for name, alpha in alphas.items())
    return found


def rows_of(optimizer, params):
    return {row["name"]: row for row in optimizer.routing(params).rows()}


MLP = {"up.kernel": array(6, 9), "up.bias": array(9), "down.kernel": array(9, 6)}


@pytest.fixture(scope="module")
def from_jax():
    """Reports measured in JAX, of an MLP and of scanned blocks, with their parameters."""
    jax = pytest.importorskip("jax", reason="needs jax: nox -s 'tests(jax)'")
    jnp = jax.numpy
    from spectral_backends.jax import CurvatureProblem

    def loss(outputs, targets):
        return ((outputs - targets) ** 2).mean()

    def mlp(params, x):
        hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
        return hidden @ params["down"]["kernel"]

    def scanned(params, x):
        def block(h, layer):
            return h + jnp.tanh(h @ layer["up"]["kernel"]) @ layer["down"]["kernel"], None

        return jax.lax.scan(block, x, params["blocks"])[0]

    trees = {
        "mlp": (mlp, {
            "up": {"kernel": array(6, 9), "bias": array(9)}, "down": {"kernel": array(9, 6)},
        }),
        "scanned": (scanned, {
            "blocks": {"up": {"kernel": array(3, 6, 9)}, "down": {"kernel": array(3, 9, 6)}},
        }),
    }  # fmt: skip
    found = {}
    for name, (forward, params) in trees.items():
        batches = [(array(40, 6), array(40, 6))]
        problem = CurvatureProblem((forward, loss), params, batches)
        own = dotted(params)
        for layer in problem.layers():
            number = [int(part) for part in layer.name.split(".") if part.isdigit()]
            assert own[layer.parameter].shape[-2:] == layer.shape[::-1]
            assert [layer.index] == (number or [0])
        found[name] = sc.measure(problem, top_k=5, curvature="ggn", progress=False), params
    return found


def dotted(tree, path=""):
    if not isinstance(tree, dict):
        return {path: np.asarray(tree)}
    return {k: v for key in tree for k, v in dotted(tree[key], f"{path}.{key}".strip(".")).items()}


def expected(report, layer):
    fit = report[layer].alpha
    if fit.interval[1] - fit.interval[0] > 2:
        return None
    return min(max(fit.exponent, 0.0), 4.0)


def test_a_report_of_jax_drives_arrays(from_jax):
    report, params = from_jax["mlp"]
    assert list(report) == ["up", "down"]
    rows = rows_of(SpectralNewton(alpha=report), dotted(params))
    for layer in report:
        row = rows[f"{layer}.kernel"]
        assert expected(report, layer) is not None
        assert row["alpha"] == pytest.approx(expected(report, layer)), row
        assert "α measured" in row["reason"]


def test_a_report_of_jax_drives_optax(from_jax, tmp_path):
    pytest.importorskip("optax", reason="needs the extra optax: nox -s 'tests(jax)'")
    from spectral_adapters.optax import routing_table

    report, params = from_jax["mlp"]
    report.save(tmp_path / "run.json")
    for alpha in (report, tmp_path / "run.json", str(tmp_path / "run.json")):
        rows = {row["name"]: row for row in routing_table(params, alpha=alpha).rows()}
        for layer in report:
            row = rows[f"{layer}.kernel"]
            assert row["alpha"] == pytest.approx(expected(report, layer))
            assert "α measured" in row["reason"]


def test_blocks_of_a_scan_have_each_their_own(from_jax):
    report, params = from_jax["scanned"]
    stacks = {"blocks.*": {"matrices": "stack"}}
    rows = rows_of(SpectralNewton(alpha=report, route=stacks), dotted(params))
    for part in ("up", "down"):
        row = rows[f"blocks.{part}.kernel"]
        for block, alpha in enumerate(row["alpha"]):
            wanted = expected(report, f"blocks.{block}.{part}")
            assert alpha == pytest.approx(1.0 if wanted is None else wanted)
        assert "measured" in row["reason"]
    assert len(set(rows["blocks.up.kernel"]["alpha"])) == 3


def test_blocks_of_a_scan_drive_optax(from_jax):
    pytest.importorskip("optax", reason="needs the extra optax: nox -s 'tests(jax)'")
    from spectral_adapters.optax import routing_table

    report, params = from_jax["scanned"]
    ours = rows_of(SpectralNewton(alpha=report, route={"*": {"matrices": "stack"}}), dotted(params))
    table = routing_table(params, alpha=report, weight_dimension_numbers="stack")
    for row in table.rows():
        assert row["alpha"] == pytest.approx(ours[row["name"]]["alpha"])


def test_a_stack_has_the_type_of_its_matrices_in_arrays():
    stack = {"layers.experts": {"matrices": "stack"}}
    params = {"layers.experts": array(3, 8, 12)}
    optimizer = SpectralNewton(alpha="per-type", route=stack)
    row = rows_of(optimizer, params)["layers.experts"]
    assert (row["type"], row["alpha"]) == ("linear", 1.0)


def test_a_stack_has_the_type_of_its_matrices_in_torch():
    torch = pytest.importorskip("torch", reason="needs torch")
    from spectral_adapters.torch_optim import SpectralNewton as TorchSpectralNewton

    weight = torch.nn.Parameter(torch.as_tensor(array(3, 8, 12)))
    group = {"params": [("layers.experts", weight)], "matrices": "stack"}
    row = TorchSpectralNewton([group], alpha="per-type").routing_table()[0]
    assert (row["type"], row["alpha"]) == ("linear", 1.0)
    model = torch.nn.ModuleDict({"layers": torch.nn.ParameterDict({"experts": weight})})
    for route in (None, {"layers.experts": {"matrices": "stack"}}):
        row = TorchSpectralNewton(model, alpha="per-type", route=route).routing_table()[0]
        assert (row["type"], row["alpha"]) == ("linear", 1.0)
    conv = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3), torch.nn.Linear(3, 2))
    row = TorchSpectralNewton(
        conv, alpha="per-type", route={"0.weight": {"matrices": "stack"}}
    ).routing_table()[0]
    assert (row["type"], row["alpha"]) == ("linear", 1.0)


def test_a_stack_has_the_type_of_its_matrices_in_optax():
    pytest.importorskip("optax", reason="needs the extra optax: nox -s 'tests(jax)'")
    from spectral_adapters.optax import SpectralDimensionNumbers, routing_table

    def type_of(name, shape, axes):
        table = routing_table(
            {name: np.zeros(shape, "f4")}, alpha="per-type", weight_dimension_numbers=axes
        )
        return table.rows()[0]["type"], table.rows()[0]["alpha"]

    assert type_of("layers.experts", (3, 8, 12), "stack") == ("linear", 1.0)
    assert type_of("conv.experts", (3, 8, 12), "stack") == ("linear", 1.0)
    assert type_of("conv.experts", (3, 8, 12), SpectralDimensionNumbers(1, 2)) == ("linear", 1.0)
    assert type_of("patches", (3, 3, 8, 12), "conv-last") == ("conv", 2.0)
    axes = SpectralDimensionNumbers((0, 1, 2), 3)
    assert type_of("conv.kernel", (3, 3, 8, 12), axes) == ("conv", 2.0)
