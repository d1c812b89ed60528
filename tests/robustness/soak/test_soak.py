"""Nothing grows with steps and measurements, and what counts it sees the smallest leak."""

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from growth import growth, heap
from soaks import SOAKS, in_own_process

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="memory is read from Linux"
)


@pytest.fixture
def host_session(request):
    """Skip where NumPy's session, which runs the test, is another."""
    asked = request.config.getoption("--namespaces")
    if asked and "numpy" not in asked.split(","):
        pytest.skip("the session of NumPy runs it")


LIBRARIES = {"torch": ["torch"], "jax": ["jax"], "optax": ["jax", "optax"], "array": ["numpy"]}


@pytest.mark.parametrize("name", SOAKS)
def test_nothing_grows(name, request):
    """A tenth of what `nox -s soak` runs."""
    if name.startswith("array"):
        request.getfixturevalue("host_session")
    for library in LIBRARIES[name.split()[0]]:
        pytest.importorskip(library)
    figures = in_own_process(name, steps=1000, measurements=20)
    assert figures["leaks"] == []
    assert figures.get("compilations", 0) == 0


def leaking_tensor() -> Callable[[int], Any]:
    torch = importlib.import_module("torch")
    kept = []
    return lambda index: kept.append(torch.zeros(1))


def leaking_graph() -> Callable[[int], Any]:
    """Of a loss that is added up without `item`."""
    torch = importlib.import_module("torch")
    weight, total = torch.zeros(3, requires_grad=True), [torch.zeros(())]

    def run(index: int) -> None:
        total[0] = total[0] + (weight**2).sum()

    return run


def leaking_module_hook() -> Callable[[int], Any]:
    torch = importlib.import_module("torch")
    layer = torch.nn.Linear(2, 2)
    return lambda index: layer.register_forward_hook(print)


def leaking_tensor_hook() -> Callable[[int], Any]:
    torch = importlib.import_module("torch")
    weight = torch.zeros(3, requires_grad=True)
    return lambda index: weight.register_hook(print)


def leaking_rare_object() -> Callable[[int], Any]:
    """Once in 25 runs."""
    kept: list[Any] = []
    return lambda index: kept.append([index]) if index % 25 == 0 else None


def leaking_array() -> Callable[[int], Any]:
    kept = []
    return lambda index: kept.append(np.zeros(1))


def leaking_jax_array() -> Callable[[int], Any]:
    jax = importlib.import_module("jax")
    kept = []
    return lambda index: kept.append(jax.numpy.float32(index))


LEAKS = {
    "tensor": (leaking_tensor, "more torch.Tensor"),
    "graph": (leaking_graph, "more nodes of graphs"),
    "module hook": (leaking_module_hook, "more hooks"),
    "tensor hook": (leaking_tensor_hook, "more hooks"),
    "rare object": (leaking_rare_object, "more builtins.list"),
    "array": (leaking_array, "more blocks of Python"),
    "jax array": (leaking_jax_array, "more arrays of JAX"),
}


@pytest.mark.parametrize("name, runs", [*((name, 1000) for name in LEAKS), ("tensor", 20)])
def test_a_leak_is_seen(name, runs, request):
    make, said = LEAKS[name]
    if name in ("array", "rare object"):
        request.getfixturevalue("host_session")
    else:
        pytest.importorskip("jax" if name == "jax array" else "torch")
    found = growth(make(), runs, 5).leaks()
    assert any(said in leak for leak in found), found


@pytest.mark.usefixtures("host_session")
@pytest.mark.skipif(not heap(), reason="the memory of C code is read from glibc")
def test_what_leaks_memory_of_c_alone_is_seen():
    """Python sees none of it."""
    ctypes = importlib.import_module("ctypes")
    allocate = ctypes.CDLL(None).malloc
    found = growth(lambda index: allocate(200), 1000, 5).leaks()
    assert len(found) == 1 and "more bytes in use by C code" in found[0]


@pytest.mark.usefixtures("host_session")
def test_what_keeps_nothing_or_fills_a_cache_passes():
    cache: dict[int, Any] = {}

    def run(index: int) -> None:
        cache[index % 7] = np.zeros(index % 100)

    assert growth(run, 1000, 5).leaks() == []
