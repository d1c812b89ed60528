"""The same weights and data give the same report in every framework, to 1e-8 in float64."""

import math
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from parity_networks import SHARED, SMALL, STORED, network, parts_of, problem_of

import spectral_core as sc
from spectral_core.arrays.namespace import to_numpy
from spectral_core.errors import LayerError

TOLERANCE = 1e-8
OTHERS = ("jax",)

# Each layer is compiled by itself; a few of a kind are enough. Samples meet in the positions ("wpe")
# of a transformer, whose factors are therefore drawn, and in torch those of all that go with it.
MEASURED = {
    "mlp": "*",
    "regression": ("0", "4"),
    "cnn": "*",
    "transformer": ("wte", "h.0.attn.c_attn"),
    "masked transformer": ("wte", "h.1.attn.c_proj"),
    "resnet20": ("conv1", "layer1.2.conv2", "layer2.0.conv1", "linear"),
    "llama": ("tok_embeddings", "layers.1.attention.wk", "layers.4.feed_forward.w2"),
}


@pytest.fixture(params=OTHERS)
def other(request, double_jax):
    pytest.importorskip(f"spectral_backends.{request.param}")
    return request.param


@pytest.fixture(params=MEASURED)
def name(request):
    if request.param in STORED:
        pytest.importorskip("safetensors")
        if not SHARED.is_dir():
            pytest.skip("the shared data folder is not beside the checkout")
    return request.param


def test_every_network_is_measured():
    assert MEASURED.keys() == SMALL.keys() | STORED.keys()


@cache
def problem(backend, name):
    return problem_of(backend, network(name))


def relative(found, expected):
    scale = np.max(np.abs(expected))
    return (
        float(np.max(np.abs(found - expected)) / scale) if scale else float(np.max(np.abs(found)))
    )


def test_the_functions_agree(other, name):
    """First of all the outputs and losses, by the frameworks alone."""
    net = network(name)
    z = net.outputs(net.state, net.inputs).detach()
    loss = float(net.loss(z, net.targets))
    ((forward, loss_of), params, ((inputs, targets),)), _ = parts_of(other, net)
    outputs = pytest.importorskip("jax").jit(forward)(params, inputs)
    assert str(outputs.dtype) == "float64"
    assert relative(np.asarray(outputs), z.numpy()) < 1e-12
    assert float(loss_of(outputs, targets)) == pytest.approx(loss, rel=1e-11)


def test_layers_and_gradients(other, name):
    """Gradients, to the sign that an SVD leaves open: U and V follow from them."""
    ours, theirs = problem("torch", name), problem(other, name)
    assert theirs.layers() == ours.layers()  # names, kinds and shapes, in the same order
    assert theirs.skipped() == ours.skipped()
    for key in ("n_terms", "n_batches", "dtype"):
        assert theirs.describe()[key] == ours.describe()[key]
    assert theirs.describe()["loss"] == pytest.approx(ours.describe()["loss"], rel=1e-11)
    layers = [layer.name for layer in ours.layers()]
    expected, found = ours.gradients(layers), theirs.gradients(layers)
    for layer in layers:
        assert relative(to_numpy(found[layer]), to_numpy(expected[layer])) < 1e-10, layer


def differences(found, expected, path=""):
    """Yield what differs between two reports, values by more than the tolerance."""
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            yield f"{path}: {sorted(found)}, not {sorted(expected)}"
            return
        # How well a slope of zero explains what does not vary is rounding.
        slope = expected.get("exponent")  # None where there is no fit
        flat = slope is not None and abs(slope) < TOLERANCE
        for key in expected.keys() - ({"r_squared"} if flat else set()) - {"condition"}:
            yield from differences(found[key], expected[key], f"{path}.{key}")
        if expected.get("condition") is not None:
            # Its smallest eigenvalue is known to rounding of the largest.
            rounding = 100 * np.finfo(float).eps * expected["condition"]
            if not math.isclose(
                found["condition"], expected["condition"], rel_tol=max(TOLERANCE, rounding)
            ):
                yield f"{path}.condition: {found['condition']}, not {expected['condition']}"
    elif isinstance(expected, list):
        if len(found) != len(expected):
            yield f"{path}: {len(found)} values, not {len(expected)}"
            return
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif isinstance(expected, float) and isinstance(found, float):
        # Differences of like numbers (closures, defects) are rounding where they should be zero.
        if not math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-3 * TOLERANCE):
            yield f"{path}: {found!r}, not {expected!r}"
    elif found != expected:
        yield f"{path}: {found!r}, not {expected!r}"


def layer_values(report):
    """Return all that a report says of its layers, but how it was found and what was drawn."""
    found = report.to_dict()
    for spectrum in found["spectra"]:
        del spectrum["certificate"]
        if any("Monte-Carlo" in note for note in spectrum["notes"]):
            for drawn in ("alignment", "decomposition", "notes"):
                del spectrum[drawn]
    return {spectrum["name"]: spectrum for spectrum in found["spectra"]}


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_reports(other, name, curvature):
    """σ, h, h^GGN, every fit and its interval, and the decomposition where factors are exact."""
    decompose = curvature == "hessian" and name != "llama"  # 512 classes: drawn, not exact
    reports = [
        sc.measure(
            problem(backend, name), MEASURED[name], top_k=6, curvature=curvature,
            decompose=decompose, progress=False,
        )
        for backend in ("torch", other)
    ]  # fmt: skip
    expected, found = (layer_values(report) for report in reports)
    assert expected.keys() == found.keys() and len(expected) >= 2
    assert reports[1].skipped == reports[0].skipped
    for layer, spectrum in expected.items():
        sigma = np.array(spectrum["sigma"])
        # Singular vectors are as sharp as the gaps between singular values, in rounding.
        assert (1 - sigma[1:] / sigma[:-1]).min() > 1e-3 and sigma[-1] > 1e-4 * sigma[0], layer
        for key in ("sigma", "curvature", *(["ggn"] if decompose else [])):
            assert relative(np.array(found[layer][key]), np.array(spectrum[key])) < TOLERANCE
    wrong = list(differences(found, expected))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("network_name", "delta", "sharing"),
    [
        ("cnn", "empirical", "expand"),
        ("cnn", "ggn", "reduce"),
        ("masked transformer", "ggn", "expand"),
        ("masked transformer", "empirical", "reduce"),
    ],
)
def test_factors(other, network_name, delta, sharing):
    """Whole factors; those of ``"ggn"`` and ``"expand"`` are in the reports of the others."""
    ours, theirs = problem("torch", network_name), problem(other, network_name)
    layers = [layer.name for layer in sc.select_layers(ours.layers(), MEASURED[network_name])]
    expected, found = (
        p.kronecker_factors(layers, fisher_type=delta, kfac_approx=sharing) for p in (ours, theirs)
    )
    assert expected.keys() == found.keys() == set(layers)
    for layer, right in expected.items():
        assert right.output_noise is None and found[layer].output_noise is None
        for key in ("output_covariance", "input_covariance"):
            factor = to_numpy(getattr(right, key))
            assert relative(to_numpy(getattr(found[layer], key)), factor) < 1e-10, (layer, key)


def test_errors_are_of_one_kind(other):
    """What cannot be done is the same in both: a layer whose columns are no second derivative."""
    net = network("mlp")
    m, n = net.shapes["0"]
    u, v = (torch.linalg.qr(torch.ones(k, 1, dtype=torch.float64))[0].numpy() for k in (m, n))
    for backend in ("torch", other):
        found = list(problem(backend, "mlp").layer_curvatures({"0": (u, v)}, engine="columns"))
        assert len(found) == 1 and isinstance(found[0], LayerError)
        assert "'columns'" in found[0].reason and "engine='auto'" in found[0].reason
