"""What installs, under which names, and what is promised by them."""

import importlib
import importlib.util
import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import spectral_core as sc

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("spectral_core", "spectral_backends", "spectral_adapters")
MODULES = (
    "spectral_core", "spectral_core.testing", "spectral_backends.torch", "spectral_adapters.plots",
    "spectral_backends.arrays", "spectral_backends.numpy", "spectral_adapters.array_optim",
    "spectral_adapters.routing.alphas",
    "spectral_adapters.tables", "spectral_adapters.demo.run", "spectral_adapters.cli",
    "spectral_adapters.torch_optim", "spectral_adapters.routing.torch_parameters",
    "spectral_adapters.routing.torch_modules", "spectral_adapters.torch_updates.alpha_measurement",
    "spectral_adapters.torch_updates.parameter_groups", "spectral_adapters.torch_updates.batched_step",
    "spectral_adapters.routing.names", "spectral_adapters.routing.table",
    "spectral_adapters.routing.dimension_numbers", "spectral_core.newton.batched",
)  # fmt: skip


@pytest.mark.parametrize("name", ["backends", "adapters"])
def test_folders_are_no_packages(name):
    spec = importlib.util.find_spec(name)
    # Inside the checkout the folder is a namespace portion at most; nothing may live in it.
    assert spec is None or spec.origin is None
    assert not (ROOT / name / "__init__.py").exists()


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_typed(name):
    package = importlib.import_module(name)
    assert (Path(package.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_resolves(name):
    module = importlib.import_module(name)
    assert module.__all__ and sorted(set(module.__all__)) == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public).__doc__ or public.startswith("__")


def test_versions_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert latest is not None and latest.group(1) == sc.__version__ == version("spectral-core")


def test_core_dependencies_are_three():
    core = {re.split(r"[^\w-]", r)[0] for r in requires("spectral-core") if "extra ==" not in r}
    assert core == {"numpy", "array-api-compat", "array-api-extra"}
