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


STACK = {"blocks.up.kernel": array(3, 6, 9), "blocks.down.kernel": array(3, 9, 6)}
BLOCKS = report_of({"blocks.0.up": 0.5, "blocks.1.up": 1.5, "blocks.2.up": 0.5, "blocks.0.down": 1.0,
                    "blocks.1.down": 1.0, "blocks.2.down": 1.0})  # fmt: skip


def unstacked(stacks):
    return {f"{name}.{i}": own for name, stack in stacks.items() for i, own in enumerate(stack)}


def test_steps_of_a_stack_are_those_of_its_blocks():
    alphas = {"blocks.up.kernel.[02]": 0.5, "blocks.up.kernel.1": 1.5, "blocks.down.*": 1.0}
    apart, own = unstacked(STACK), SpectralNewton(alpha=alphas, damping=0.1)
    together = SpectralNewton(alpha=BLOCKS, damping=0.1, route={"*": {"matrices": "stack"}})
    params, state, own_state = STACK, together.init(STACK), own.init(apart)
    for _ in range(3):
        gradients = {name: np.cos(value + 1) for name, value in params.items()}
        params, state = together.update(params, gradients, state)
        apart, own_state = own.update(apart, unstacked(gradients), own_state)
    for name, value in unstacked(params).items():
        np.testing.assert_allclose(value, apart[name], rtol=0, atol=1e-6)


def test_optax_makes_the_steps_of_arrays():
    jax = pytest.importorskip("jax", reason="needs jax: nox -s 'tests(jax)'")
    pytest.importorskip("optax", reason="needs the extra optax: nox -s 'tests(jax)'")
    from spectral_adapters.optax import (
        SpectralDimensionNumbers,
        scale_by_spectral_newton,
        spectral_newton,
    )

    ours = SpectralNewton(1.0, alpha=BLOCKS, damping=0.1, route={"*": {"matrices": "stack"}})
    params = {name: jax.numpy.asarray(value) for name, value in STACK.items()}
    gradients = jax.tree.map(lambda value: jax.numpy.cos(value + 1), params)
    moved, _ = ours.update(params, gradients, ours.init(params))
    for axes in ("stack", SpectralDimensionNumbers(1, 2)):
        options = {"damping": 0.1, "weight_dimension_numbers": axes}
        for optimizer in (
            spectral_newton(1.0, BLOCKS, **options),
            jax_chain(scale_by_spectral_newton(BLOCKS, **options)),
        ):
            step = jax.jit(lambda g, p, o=optimizer: o.update(g, o.init(p), p))
            updates, _ = step(gradients, params)
            for name, value in updates.items():
                expected = moved[name] - params[name]
                np.testing.assert_allclose(value, expected, rtol=0, atol=2e-6)


def jax_chain(transformation):
    import optax

    return optax.chain(transformation, optax.scale_by_learning_rate(1.0))


def test_the_table_says_where_each_alpha_comes_from():
    partly = report_of({"blocks.0.up": 0.5, "blocks.2.up": 4.5, "blocks.down": 1.3})
    optimizer = SpectralNewton(alpha=partly, route={"*": {"matrices": "stack"}})
    rows = rows_of(optimizer, STACK)
    up, down = rows["blocks.up.kernel"], rows["blocks.down.kernel"]
    assert up["alpha"] == (0.5, 1.0, 4.0) and down["alpha"] == 1.3
    assert "α measured for 2 of 3 slices, α of type 'linear' for slice 1: no such" in up["reason"]
    assert down["reason"].endswith("α measured on 9×6")  # one matrix stands for the three
    assert "0.5, 1, 4" in str(optimizer.routing(STACK))
    many = {"blocks": array(6, 4, 5)}
    known = report_of({f"blocks.{i}": i / 4 for i in range(6)}, (5, 4))
    table = SpectralNewton(alpha=known, route={"*": {"matrices": "stack"}}).routing(many)
    assert "0 … 1.25" in str(table) and "α measured for each of 6 slices" in str(table)


def test_a_fit_that_says_too_little_leaves_a_slice_to_its_type():
    wide = report_of({"blocks.0.up": 0.5, "blocks.1.up": 1.5}, interval=3.0)
    rows = rows_of(SpectralNewton(alpha=wide, route={"*": {"matrices": "stack"}}), STACK)
    reason = rows["blocks.up.kernel"]["reason"]
    assert rows["blocks.up.kernel"]["alpha"] == (1.0, 1.0, 1.0)
    assert "0 of 3 slices" in reason and "its fit says too little" in reason and "2 more" in reason


def test_parts_of_a_stack_that_their_names_do_not_order_count_by_their_mean():
    report = report_of({"experts.part0": 1.0, "experts.part1": 2.0, "experts.part2": 3.0}, (8, 12))
    row = rows_of(SpectralNewton(alpha=report, route={"*": {"matrices": "stack"}}),
                  {"experts": array(3, 8, 12)})["experts"]  # fmt: skip
    assert row["alpha"] == 2.0 and "α measured, mean of 3 matrices" in row["reason"]


def test_one_report_drives_all_three():
    torch = pytest.importorskip("torch", reason="needs torch")
    from spectral_adapters.torch_optim import SpectralNewton as TorchSpectralNewton

    report = report_of({"layers.0.up": 0.7, "layers.0.down": 1.4})
    wanted = [0.7, 1.4]
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([
        torch.nn.ModuleDict({"up": torch.nn.Linear(6, 9), "down": torch.nn.Linear(9, 6)})
    ]), "head": torch.nn.Linear(6, 2)})  # fmt: skip
    rows = TorchSpectralNewton(model, alpha=report).routing_table()
    assert [row["alpha"] for row in rows if row["alpha"]] == wanted
    for names in ("layers.0.{}.kernel", "params.layers_0.{}.kernel", "layers_0/~/{}.w"):
        params = {names.format("up"): array(6, 9), names.format("down"): array(9, 6)}
        rows = rows_of(SpectralNewton(alpha=report), params).values()
        assert [row["alpha"] for row in rows] == wanted
        assert all(row["reason"].endswith("α measured") for row in rows)
    if pytest.importorskip("optax"):
        from spectral_adapters.optax import routing_table

        for tree in ({"params": {"layers_0": {"up": {"kernel": array(6, 9)}}}},
                     {"layers": [{"up": {"kernel": array(6, 9)}}]}):  # fmt: skip
            assert routing_table(tree, alpha=report).rows()[0]["alpha"] == 0.7


@pytest.mark.parametrize("block", ["{}", "group{}"])
def test_a_stack_of_torch_has_the_mean_of_its_blocks(block):
    torch = pytest.importorskip("torch", reason="needs torch")
    from spectral_adapters.torch_optim import SpectralNewton as TorchSpectralNewton

    report = report_of({f"experts.{block.format(i)}": 1.0 + i for i in (0, 1)}, (8, 12))
    model = torch.nn.ParameterDict({"experts": torch.as_tensor(array(2, 8, 12))})
    (row,) = TorchSpectralNewton(model, alpha=report).routing_table()
    assert row["alpha"] == 1.5 and "mean of 2 matrices" in row["reason"]


@pytest.mark.parametrize(
    ("names", "layers", "found"),
    [
        (["a.weight", "a.kernel"], ["a"], [None, None]),
        (["a.weight", "a.kernel"], ["a.kernel"], [None, 0.0]),
        (["kernel", "kernel.kernel"], ["kernel"], [0.0, None]),
        (["0", "1"], ["1", "0"], [1.0, 0.0]),
        (["", "up"], ["up"], [None, 0.0]),
        (["w"], ["v", ""], [None]),
    ],
)
def test_names_that_are_hard_to_tell_apart(names, layers, found):
    report = report_of({layer: 2.0 + number for number, layer in enumerate(layers)})
    params = {name: array(9, 6) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = rows_of(SpectralNewton(alpha=report), params)
    expected = [1.0 if each is None else 2.0 + each for each in found]
    assert [rows[name]["alpha"] for name in names] == expected
    for name, each in zip(names, found, strict=True):
        assert ("no such layer in the report" in rows[name]["reason"]) == (each is None)
    if found == [None, None]:
        assert "'a' may be another parameter's" in rows["a.weight"]["reason"]


def test_a_list_of_arrays_has_the_layers_of_its_numbers():
    report = report_of({"0": 0.5, "2": 1.5})
    rows = rows_of(SpectralNewton(alpha=report), [array(9, 6), array(6), array(9, 6)])
    assert [row["alpha"] for row in rows.values()] == [0.5, None, 1.5]


def test_a_report_of_another_model_is_said(tmp_path):
    report = report_of({"encoder.0": 1.3})
    with pytest.warns(UserWarning, match=r"\['encoder.0'\] is one of the parameters \['up.kernel'"):
        rows = rows_of(SpectralNewton(alpha=report), MLP)
    assert "no such layer in the report" in rows["up.kernel"]["reason"]
    with pytest.raises(sc.ReportError):
        SpectralNewton(alpha=tmp_path / "nothing.json")
    same_names = report_of({"up": 1.3}, shape=(30, 20))
    row = rows_of(SpectralNewton(alpha=same_names), MLP)["up.kernel"]
    assert row["alpha"] == 1.3 and row["reason"].endswith("α measured on 30×20")
