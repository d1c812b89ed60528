"""Options and the array namespaces that every core function is tested in."""

import gc
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings

pytest_plugins = ("item_selection", "statement_records")

SHARED = Path(__file__).resolve().parents[2] / "shared"

LIBRARIES = ("numpy", "array-api-strict", "torch", "jax", "cupy")
VARIANTS = (
    ("numpy", "float64"), ("numpy", "float32"), ("numpy", "read-only"),
    ("array-api-strict", "float64"), ("array-api-strict", "restricted"),
    ("array-api-strict", "device"),
    ("torch", "float64"), ("torch", "float32"),
    ("jax", "x64"), ("jax", "x32"), ("jax", "jit"),
    ("cupy", "float64"),
)  # fmt: skip
# The precision that each lacks, where a statement of the theory is checked; see `properties.holds`.
OTHER_PRECISIONS = (("array-api-strict", "float32"), ("jax", "jit-x32"), ("cupy", "float32"))

# Of the variants that compile, two have both precisions, traced and not: these of a property, whose
# errors are bounded in float32 too, and those of any other test.
LEFT_OUT = {
    (("jax", "x64"), ("jax", "x32"), ("jax", "jit"), ("jax", "jit-x32")): (
        ("jax", "x32"), ("jax", "jit"),
    ),
    (("jax", "x64"), ("jax", "x32"), ("jax", "jit")): (("jax", "x64"),),
}  # fmt: skip

# For `nox -s mutants`: the same examples for each mutant, and none is shrunk.
settings.register_profile(
    "mutants", phases=(Phase.explicit, Phase.generate), database=None, derandomize=True
)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_forgotten() -> Iterator[None]:
    """Let JAX forget the programs of a file: with thousands of them each takes longer to compile."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


def pytest_collection_finish() -> None:
    """Spare the collector of garbage what lives to the end, and let it run seldom: JAX traces much."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_precisions: in float32 and float64 of every library")
    config.addinivalue_line("markers", "not_in(*variants): has no meaning in these variants")
    config.addinivalue_line("markers", "only_in(*variants): has a meaning in these variants alone")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--namespaces",
        default="",
        help=f"array libraries to test, of {','.join(LIBRARIES)}; one named here must be there",
    )
    parser.addoption(
        "--write-messages",
        action="store_true",
        help="write what errors say into tests/robustness/hostile/messages.json instead of comparing",
    )
    parser.addoption(
        "--device",
        default="",
        help="where PyTorch's arrays lie in tests of namespaces: cpu, cuda; one named must be there",
    )


@dataclass(frozen=True)
class Namespace:
    """One array library in one configuration."""

    library: str
    variant: str
    device: str = ""  # of PyTorch
    combinations: str = "numpy"

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def dtype(self) -> type:
        return np.float32 if self.variant.endswith("32") else np.float64

    @property
    def compiles(self) -> bool:
        """Whether each new shape costs a compilation."""
        return self.library == "jax"

    @property
    def examples(self) -> int:
        """How many examples of a property take about a second, a third of it or a tenth."""
        if self.device == "cuda":
            return 15
        from item_selection import is_whole  # a plugin, which must be imported as such first

        whole = is_whole((self.library, self.variant), self.combinations)
        many = {"numpy": 100, "array-api-strict": 30, "torch": 50}.get(self.library, 10)
        return many if whole else many // (10 if self.combinations == "few" else 3)

    def precise(self, values: Any) -> Any:
        """Return in float64 what the dtype leaves of values."""
        return np.asarray(values, dtype=self.dtype).astype(np.float64)

    def integers(self, values: Any) -> Any:
        """Convert whole numbers to an array of this namespace."""
        return self._converted(np.array(values, dtype=np.int64))

    def array(self, values: Any) -> Any:
        """Convert to an array of this namespace."""
        return self._converted(np.array(values, dtype=self.dtype))

    def _converted(self, data: Any) -> Any:
        if self.library == "numpy":
            data.flags.writeable = self.variant != "read-only"
            return data
        if self.library == "array-api-strict":
            strict = importlib.import_module("array_api_strict")
            device = strict.Device("device1" if self.variant == "device" else "CPU_DEVICE")
            return strict.asarray(data, device=device)
        if self.library == "torch":
            return importlib.import_module("torch").asarray(data, device=self.device or None)
        return importlib.import_module({"jax": "jax.numpy"}.get(self.library, "cupy")).asarray(data)

    def numpy(self, array: Any) -> Any:
        """Convert a result back."""
        if self.library == "array-api-strict" and self.variant == "device":
            strict = importlib.import_module("array_api_strict")
            array = array.to_device(strict.Device("CPU_DEVICE"))
        if self.library == "torch" and self.device and not isinstance(array, np.ndarray):
            array = array.cpu()
        return array.get() if hasattr(array, "get") else np.asarray(array)

    def run(self, function: Any, *arrays: Any) -> Any:
        """Call, through ``jax.jit`` in that variant; the function returns arrays or tuples."""
        if self.variant.startswith("jit"):
            return importlib.import_module("jax").jit(function)(*arrays)
        return function(*arrays)

    def check_kind(self, array: Any, like: Any) -> None:
        """Assert that a floating result is of the caller's library, dtype and device."""
        assert type(array) is type(like)
        assert array.dtype == like.dtype
        assert getattr(array, "device", None) == getattr(like, "device", None)


def _missing(library: str) -> str | None:
    """Say why a library cannot be tested here, or None."""
    try:
        module = importlib.import_module(library.replace("-", "_"))
    except ImportError:
        return f"{library} is not installed"
    if library != "cupy":
        return None
    try:
        count = module.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"cupy has no GPU here ({type(error).__name__})"
    return None if count else "cupy has no GPU here"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "xp" in metafunc.fixturenames:
        asked = [n for n in metafunc.config.getoption("--namespaces").split(",") if n]
        if unknown := set(asked) - set(LIBRARIES):
            raise pytest.UsageError(f"--namespaces: unknown {sorted(unknown)}")
        marker = metafunc.definition.get_closest_marker
        variants = [*VARIANTS, *(OTHER_PRECISIONS if marker("both_precisions") else ())]
        if without := marker("not_in"):
            variants = [v for v in variants if v[1] not in without.args]
        if only := marker("only_in"):
            variants = [v for v in variants if v[1] in only.args]
        if metafunc.config.getoption("--combinations") != "all":
            left_out = LEFT_OUT.get(tuple(v for v in variants if v[0] == "jax"), ())
            variants = [v for v in variants if v not in left_out]
        if metafunc.config.getoption("--combinations") == "few":
            variants = [v for v in variants if v[1] != "read-only"]
        chosen = [v for v in variants if not asked or v[0] in asked]
        metafunc.parametrize("xp", chosen, ids="-".join, indirect=True)


@pytest.fixture
def xp(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    device = request.config.getoption("--device")
    combinations = request.config.getoption("--combinations")
    namespace = Namespace(
        *request.param, device if request.param[0] == "torch" else "", combinations
    )
    asked = request.config.getoption("--namespaces").split(",")
    if reason := _missing(namespace.library):
        if namespace.library in asked and "GPU" not in reason:
            pytest.fail(reason)
        pytest.skip(reason)
    if namespace.variant == "restricted":
        strict = importlib.import_module("array_api_strict")
        with strict.ArrayAPIStrictFlags(
            boolean_indexing=False, data_dependent_shapes=False, api_version="2024.12"
        ):
            yield namespace
    elif namespace.library == "jax":
        jax = importlib.import_module("jax")
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", not namespace.variant.endswith("x32"))
        yield namespace
        jax.config.update("jax_enable_x64", before)
    elif namespace.library == "torch":
        torch = importlib.import_module("torch")
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, namespace.variant))
        yield namespace
        torch.set_default_dtype(before)
    else:
        yield namespace


@pytest.fixture
def double_jax() -> Iterator[None]:
    """Double precision in JAX, for one test."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def shared() -> Path:
    """The folder of shared data, outside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside the checkout")
    return SHARED
