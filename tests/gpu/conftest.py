"""Where the tests of this folder compute: on a GPU with ``--device cuda``, else on a CPU."""

import pytest

NEEDS_GPU = "needs a GPU"


def pytest_configure(config):
    config.addinivalue_line("markers", "framework(name): arrays of this library are under test")
    config.addinivalue_line("markers", "gpu: the concept exists on a GPU only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") == "cuda":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NEEDS_GPU))


@pytest.fixture
def on_gpu(request):
    return request.config.getoption("--device") == "cuda"


@pytest.fixture
def device(request):
    """PyTorch's device."""
    torch = pytest.importorskip("torch")
    return torch.device(request.config.getoption("--device") or "cpu")
