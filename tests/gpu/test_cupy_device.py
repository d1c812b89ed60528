"""CuPy's arrays: nothing goes to the host in a step or a fit, DLPack shares memory, NumPy's numbers.

Without a GPU array-api-strict's second device stands in, from which nothing reaches the host
unasked, or NumPy where memory is shared with PyTorch.
"""

import importlib

import numpy as np
import pytest
from fits import FITS
from host_copies import believed, by_methods, by_profiler
from watched_problem import WatchedProblem

import spectral_core as sc
from spectral_adapters.array_optim import SpectralNewton
from spectral_backends.arrays import CurvatureProblem, DenseNetwork, through_dlpack

pytestmark = pytest.mark.framework("cupy")

READS = ("__float__", "__bool__", "__int__", "__index__", "__complex__", "__array__")
NETWORK = DenseNetwork((6, 200, 180, 5), "tanh")
RNG = np.random.default_rng(0)
BATCH = (RNG.standard_normal((40, 6)), RNG.integers(0, 5, 40))


class Library:
    """An array library: how arrays get in and out of it, and what counts copies to the host."""

    def __init__(self, on_gpu):
        self.on_gpu = on_gpu
        if on_gpu:
            self.module = importlib.import_module("cupy")
            counters = {
                "ndarray.get": by_methods(self.module.ndarray, ("get",)),
                "profiler": by_profiler,
            }
        else:
            self.module = pytest.importorskip("array_api_strict")
            self.place = self.module.Device("device1")
            counters = {"reads": by_methods(type(self.array(0.0)), READS)}
        # A method that cannot be replaced counts nothing, and is not believed.
        self.counters = believed(counters, lambda: float(self.array(1.0)))

    def array(self, values, dtype=np.float64):
        data = np.asarray(values, dtype=dtype)
        if self.on_gpu:
            return self.module.asarray(data)
        return self.module.asarray(data, device=self.place)

    def numpy(self, array):
        if self.on_gpu:
            return array.get()
        return np.asarray(array.to_device(self.module.Device("CPU_DEVICE")))

    def copies(self, run):
        """Copies to the host in a second call, by each counter."""
        run()
        assert self.counters, "no counter counted a copy that was made on purpose"
        return {name: counter(run) for name, counter in self.counters.items()}


@pytest.fixture
def library(on_gpu):
    return Library(on_gpu)


def moved(library, arrays, dtype=np.float64):
    return {name: library.array(array, dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.5, "damping": 0.1}, {"alpha": 1.0, "damping": 0.1, "method": "eigh"},
     {"alpha": 1.0, "damping": 0.1, "method": "svd"}, {"damping": 0.1, "method": "polynomial"},
     {"alpha": 1.0, "damping": 0.0, "method": "polar"}],
    ids=str,
)  # fmt: skip
def test_a_step_copies_nothing_to_the_host(library, options, dtype):
    params = moved(library, NETWORK.init(0), dtype)
    optimizer = SpectralNewton(lr=0.01, **options)
    gradients = moved(library, NETWORK.gradient(NETWORK.init(0), BATCH), dtype)
    state = optimizer.init(params)
    copies = library.copies(lambda: optimizer.update(params, gradients, state))
    if (method := options.get("method")) in ("eigh", "svd"):  # CuPy reads cuSOLVER's status
        assert copies.pop("profiler", 0) <= {"eigh": 1, "svd": 4}[method]
    assert set(copies.values()) <= {0}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_copies_nothing_to_the_host(library, name):
    sigma = library.array(np.sort(RNG.random((3, 20)))[:, ::-1] + 0.1)
    assert set(library.copies(lambda: FITS[name](sigma)).values()) == {0}


def test_steps_are_numpys(library):
    # Sums of 10³ products in float64, over three steps, and the roundings of σ_max.
    params, optimizer = NETWORK.init(0), SpectralNewton(lr=0.01, method="closed")
    own = moved(library, params)
    state, own_state = optimizer.init(params), optimizer.init(own)
    for _ in range(3):
        gradients = NETWORK.gradient(params, BATCH)
        params, state = optimizer.update(params, gradients, state)
        own, own_state = optimizer.update(own, moved(library, gradients), own_state)
    for name, array in own.items():
        assert type(array) is type(library.array(0.0))
        expected = params[name]
        difference = np.max(np.abs(library.numpy(array) - expected))
        assert difference <= 1e5 * np.finfo(np.float64).eps * np.max(np.abs(expected))


def test_a_curvature_problem_is_numpys(library):
    network, batch = DenseNetwork((5, 7, 4), "tanh", "squared"), RNG.standard_normal((9, 5))
    targets = RNG.standard_normal((9, 4))
    # Its results are brought to the host, which the stand-in's second device does not allow.
    to = library.array if library.on_gpu else library.module.asarray
    found = []
    for into, back in (
        (np.asarray, np.asarray),
        (to, library.numpy if library.on_gpu else np.asarray),
    ):
        params = {name: into(array) for name, array in network.init(0).items()}
        data = [(into(batch), into(targets))]
        problem = CurvatureProblem(network.gradient, params, data, method="differences")
        name = problem.layers()[0].name
        u, v = np.linalg.qr(np.ones((7, 1)))[0], np.linalg.qr(np.ones((5, 1)))[0]
        found.append(back(problem.curvatures(name, into(u), into(v))))
    assert found[1] == pytest.approx(found[0], rel=1e-6)  # of extrapolated differences


def test_a_problem_of_pytorch_is_driven_on_its_own_memory(on_gpu, device):
    torch = pytest.importorskip("torch")
    torch_backend = importlib.import_module("spectral_backends.torch")
    module = importlib.import_module("cupy") if on_gpu else np
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    batch = (torch.randn(30, 6).to(device), torch.randint(5, (30,)).to(device))
    problem = torch_backend.CurvatureProblem(
        model.to(device), torch.nn.functional.cross_entropy, [batch], dtype=torch.float64
    )

    def address(array):
        return array.data.ptr if on_gpu else array.__array_interface__["data"][0]

    spy = WatchedProblem(problem)
    seen = through_dlpack(spy, module.empty(0))
    gradient = seen.gradients(["0"])["0"]
    assert isinstance(gradient, module.ndarray)
    assert address(gradient) == spy.gradient["0"].data_ptr()
    u = module.asarray(np.linalg.qr(np.ones((8, 1)))[0])
    v = module.asarray(np.linalg.qr(np.ones((6, 1)))[0])
    values = seen.curvatures("0", u, v)
    assert address(values) == spy.values.data_ptr()
    assert spy.taken.data_ptr() == address(u) and spy.taken.device.type == device.type
    report = sc.measure(seen, top_k=3)
    expected = sc.measure(problem, top_k=3)
    # Singular vectors are of two libraries: the rounding of theirs moves h by √ε at the most.
    assert report["0"].curvature == pytest.approx(expected["0"].curvature, rel=1e-8)
