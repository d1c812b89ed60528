"""The examples of the documentation run on the shared data."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import spectral_core as sc

pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@pytest.mark.parametrize(
    ("example", "layer", "kind"),
    [
        ("resnet20_cifar10", "layer3.2.conv2", "conv2d"),
        ("stories260k_llama", "layers.4.feed_forward.w2", "linear"),
    ],
)
def test_example(example, layer, kind, shared, monkeypatch):
    from spectral_adapters.cli.factory import load_factory
    from spectral_adapters.cli.weights import load_weights

    monkeypatch.setitem(os.environ, "SPECTRAL_DATA", str(shared / "data"))
    factory = load_factory(f"{EXAMPLES / example}.py:problem")
    problem = factory(load_weights(shared / "data" / f"{example}.safetensors"), count=8)
    report = sc.measure(problem, layer, top_k=3)
    assert list(report) == [layer] and report[layer].kind == kind
    assert report[layer].alpha.n == 3


@pytest.mark.parametrize("data", ["digits", "clusters"])
@pytest.mark.parametrize("library", ["heavyball", "optax", "pytorch_optimizer"])
def test_precondition_inside_other_optimizers(library, data, request, tmp_path):
    """Each in a process of its own: the libraries set global options of PyTorch and JAX."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: nox -s embedding")
    folder = request.getfixturevalue("shared") / "data" if data == "digits" else tmp_path
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"inside_{library}.py"],
        env=os.environ | {"SPECTRAL_DATA": str(folder), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "steps: loss" in done.stdout
