"""PyTorch on a device: the CPU's numbers, no waiting in a step or a fit, graphs, reduced precision."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from trained_networks import GPT, ResNet  # noqa: E402

import spectral_core as sc  # noqa: E402
from spectral_adapters.torch_optim import SpectralNewton  # noqa: E402
from spectral_backends.torch import CurvatureProblem  # noqa: E402
from spectral_core.preconditioning.damped_power import gram_rounding  # noqa: E402
from spectral_core.preconditioning.gram import smallest_shift  # noqa: E402

pytestmark = pytest.mark.framework("torch")

# Sums of up to 10⁴ products in float64 differ by 10⁴ ε between two orders; relative to the largest.
SAME = 1e4 * np.finfo(np.float64).eps


def images():
    model = ResNet(classes=10).double().eval()
    x, y = torch.randn(12, 3, 6, 6, dtype=torch.float64), torch.randint(10, (12,))
    return model, lambda device: [(x.to(device), y.to(device))], {}


def text():
    model = GPT(16, 13, 2, tied=False).double()
    tokens = torch.randint(13, (3, 9))

    def split(model, tokens):
        return model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()

    return model, lambda device: [tokens.to(device)], {"forward": split}


CASES = {"images": images, "text": text}


@pytest.fixture(params=CASES)
def problems(request, device):
    """One problem on the CPU, the same on the device."""
    torch.manual_seed(0)
    model, batches, options = CASES[request.param]()
    return [
        CurvatureProblem(copy.deepcopy(model).to(where), F.cross_entropy, batches(where), **options)
        for where in (torch.device("cpu"), device)
    ]


def directions_of(problem, top_k=4):
    found = {}
    names = [layer.name for layer in problem.layers()]
    for name, gradient in problem.gradients(names).items():
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        found[name] = u[:, :top_k], vh.mT[:, :top_k]
    return found


def close(found, expected, tolerance=SAME):
    found, expected = found.detach().cpu(), expected.detach().cpu()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradients_and_factors_are_those_of_the_cpu(problems, device):
    cpu, own = problems
    names = [layer.name for layer in cpu.layers()]
    assert [layer.name for layer in own.layers()] == names and len(names) > 3
    ours, theirs = own.gradients(names), cpu.gradients(names)
    for name in names:
        assert ours[name].device.type == device.type
        close(ours[name], theirs[name])
    for some in (names, names[-1:]):
        factors, expected = own.kronecker_factors(some), cpu.kronecker_factors(some)
        for name in some:
            close(factors[name].input_covariance, expected[name].input_covariance)
            if expected[name].output_noise is None:  # else of labels that are drawn on the device
                close(factors[name].output_covariance, expected[name].output_covariance)
    assert expected[names[-1]].output_noise is None


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("engine", ["auto", "double-backward"])
def test_curvatures_are_those_of_the_cpu(problems, device, kind, engine):
    cpu, own = problems
    directions = directions_of(cpu)
    moved = {name: (u.to(device), v.to(device)) for name, (u, v) in directions.items()}
    expected = {c.name: c for c in cpu.layer_curvatures(directions, kind, engine=engine)}
    found = {c.name: c for c in own.layer_curvatures(moved, kind, engine=engine)}
    assert found.keys() == expected.keys() == directions.keys()
    for name, curvature in found.items():
        assert curvature.values.device.type == device.type
        # Hessian products cancel more than gradients do: a hundred times as much is allowed.
        close(curvature.values, expected[name].values, 100 * SAME)


OPTIONS = [
    {"alpha": 2.0, "method": "closed"},
    {"alpha": 1.0, "method": "eigh", "damping": 0.1},
    {"alpha": 1.5, "method": "shifts", "damping": 0.1},
    {"alpha": 1.0, "method": "svd", "damping": 0.1, "scale": "spectral"},
    {"alpha": 1.0, "method": "polynomial", "damping": 0.1, "weight_decay": 0.1},
]


def trained(model, gradients, device, steps=4, **options):
    """The parameters after a few steps with given gradients."""
    model = copy.deepcopy(model).to(device)
    optimizer = SpectralNewton(model, lr=0.01, **options)
    for step in range(steps):
        for parameter, gradient in zip(model.parameters(), gradients[step], strict=True):
            parameter.grad = gradient.to(device)
        optimizer.step()
    return list(model.parameters())


def network_and_gradients(steps=4, dtype=torch.float64):
    torch.manual_seed(1)
    # Sides on both sides of the size from which σ_max comes from Lanczos steps.
    model = torch.nn.Sequential(torch.nn.Linear(200, 180), torch.nn.Linear(180, 30)).to(dtype)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(steps)]
    return model, gradients


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['method']}-{o['alpha']:g}")
def test_steps_are_those_of_the_cpu(device, options):
    model, gradients = network_and_gradients()
    expected = trained(model, gradients, "cpu", **options)
    found = trained(model, gradients, device, **options)
    for parameter, other in zip(found, expected, strict=True):
        assert parameter.device.type == device.type
        # σ_max is found differently, to some roundings (Lanczos vectors magnify them where
        # eigenvalues are dense); α/2 of that goes into a step of 0.2 · lr per entry.
        close(parameter, other, 100 * SAME)


def test_auto_keeps_its_tolerance_beside_the_cpu(device):
    # Other methods may be chosen, each within 1 % of T; σ_max of noise is up to 3 % low in either.
    model, gradients = network_and_gradients(1)
    start = list(model.parameters())
    for alpha in (1.0, 1.5, 2.0):
        options = {"alpha": alpha, "damping": 0.1, "steps": 1}
        pair = [trained(model, gradients, where, **options) for where in ("cpu", device)]
        for before, one, other in zip(start, *pair, strict=True):
            if before.ndim < 2:
                continue
            change = one - before
            difference = (other.detach().cpu() - one).norm() / change.norm()
            assert difference <= 2 * (0.01 + alpha / 2 * 0.03)


@contextmanager
def no_waiting():
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_debug_mode_sees_what_waits(device):
    values = torch.ones(3, device=device)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        float(values[0])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.5, "damping": 0.1}, {"precision": "bfloat16", "damping": 0.1},
     {"alpha": 1.0, "damping": 0.0, "method": "polar"}, {"capturable": True}],
    ids=str,
)  # fmt: skip
def test_a_step_never_waits(device, options):
    model, gradients = network_and_gradients(3, torch.float32)
    model.to(device)
    optimizer = SpectralNewton(model, lr=0.01, **options)
    given = [[g.to(device) for g in own] for own in gradients]
    for step, own in enumerate(given):
        for parameter, gradient in zip(model.parameters(), own, strict=True):
            parameter.grad = gradient
        if step == 0:  # makes the state, copies constants
            optimizer.step()
            continue
        with no_waiting():
            optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.gpu
def test_fits_never_wait(device):
    sigma = torch.rand(4, 20, device=device, dtype=torch.float64) + 0.1
    fits = [
        lambda: sc.fit_power_law(sigma, sigma**2),
        lambda: sc.exponent_triangle(sigma, sigma**2),
        lambda: sc.fit_rank_profiles(sigma),
        lambda: sc.certified_exponent(sigma),
        lambda: sc.transfer(sigma, 1.5, 0.1),
    ]
    for fit in fits:
        fit()
        with no_waiting():
            fit()


@pytest.mark.gpu
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_step_by_products_is_captured_in_a_graph(device, alpha):
    model, gradients = network_and_gradients(1, torch.float32)
    options = {"alpha": alpha, "damping": 0.1, "precision": "bfloat16", "capturable": True}
    expected = trained(model, gradients * 5, device, steps=5, **options)
    model = copy.deepcopy(model).to(device)
    optimizer = SpectralNewton(model, lr=0.01, **options)
    for parameter, gradient in zip(model.parameters(), gradients[0], strict=True):
        parameter.grad = gradient.to(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for parameter, other in zip(model.parameters(), expected, strict=True):
        # The same kernels; cuBLAS may pick others while it captures, which rounds bfloat16 anew.
        assert (parameter - other).abs().max() <= 5 * 0.01 * 2**-6


RECORDED = [
    {},
    {"alpha": 1.5, "damping": 0.1},
    {"damping": 0.1, "precision": "bfloat16"},
    {"alpha": 1.0, "damping": 0.0, "method": "polar"},
    {"method": "closed", "weight_decay": 0.1},
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", RECORDED, ids=str)
def test_a_recorded_step_is_the_one_that_is_not(device, options):
    # Twelve matrices of 520 rows: a batch of which PyTorch's own solvers cannot be recorded.
    torch.manual_seed(2)
    model = torch.nn.ModuleList([torch.nn.Linear(530, 520) for _ in range(12)]).to(device)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(4)]
    expected = trained(model, gradients, device, **options)
    found = trained(model, gradients, device, cuda_graph=True, **options)
    rounding = 2**-6 if "precision" in options else 1e-4
    for parameter, other in zip(found, expected, strict=True):
        # The same kernels; cuBLAS may pick others while it captures, which rounds anew.
        assert (parameter - other).abs().max() <= 4 * 0.01 * rounding


@pytest.mark.gpu
def test_a_recording_follows_the_learning_rate(device):
    model, gradients = network_and_gradients(1, torch.float32)
    model.to(device)
    optimizer = SpectralNewton(model, lr=0.0, cuda_graph=True)
    before = [p.detach().clone() for p in model.parameters()]
    for lr, moves in ((0.0, False), (0.1, True)):
        for parameter, gradient in zip(model.parameters(), gradients[0], strict=True):
            parameter.grad = gradient.to(device)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        assert all(
            torch.equal(p, b) != moves for p, b in zip(model.parameters(), before, strict=True)
        )


U_TF32 = 2.0**-11  # the largest relative error of rounding to its 11 bits


class RoundedProducts(TorchFunctionMode):
    """What TF32 does, on any device: operands of products in float32 keep 11 bits."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").strip("_")
        if name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
            self.count += 1
            args = tuple(rounded(a) if isinstance(a, torch.Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def rounded(tensor):
    if tensor.dtype != torch.float32:
        return tensor
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def tf32(on_gpu):
    """Products in TF32: the device's, or on a CPU their effect."""
    if not on_gpu:
        with RoundedProducts() as mode:
            yield
        assert mode.count > 0
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def graded(rows, columns, device):
    """A float32 matrix with singular values k^−1/2, and its decomposition in float64."""
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(n, rows, dtype=torch.float64, generator=generator) for n in (rows, columns)]
    u, v = (torch.linalg.qr(noise)[0] for noise in draw)
    sigma = torch.arange(1, rows + 1, dtype=torch.float64) ** -0.5
    matrix = ((u * sigma) @ v.T).float().to(device)
    return matrix, np.linalg.svd(matrix.cpu().double().numpy(), full_matrices=False)


def error_of(found, svd, alpha, damping):
    u, sigma, vh = svd
    exact = (u * sc.transfer(sigma, alpha, damping)) @ vh
    difference = np.linalg.norm(found.cpu().double().numpy() - exact, 2)
    return difference / np.linalg.norm(exact, 2)


@pytest.mark.parametrize("rows", [48, 200])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_tf32_errs_as_much_as_its_roundings_add_up_to(device, on_gpu, rows, alpha):
    damping, method = 0.1, {1.0: "shifts", 2.0: "closed"}[alpha]
    g, svd = graded(rows, rows + 16, device)
    sigma = svd[1] / svd[1][0]
    # Operands of the Gram matrix: ‖E‖ ≤ u ‖G‖_F, twice. Squaring or Lanczos products for σ_max²:
    # u of both operands, ‖A‖_F² at the most, halved with every squaring. The last product: u of
    # both operands again, ‖f‖_F ‖X‖_F at the most. All to first order, hence the factor.
    gram = 2 * U_TF32 * np.linalg.norm(sigma)
    top = gram + 2 * U_TF32 * np.sum(sigma**4)
    filtered = 1 / (sigma**alpha + damping)
    last = 2 * U_TF32 * np.linalg.norm(filtered) * np.linalg.norm(sigma)
    own = gram_rounding(alpha, damping, gram) + alpha / 2 * top
    bound = 1.5 * (own + last / np.max(sigma * filtered) + (0.01 if alpha == 1 else 0.0))
    with tf32(on_gpu):
        found = sc.precondition(g, alpha, damping, method=method)
    error = error_of(found, svd, alpha, damping)
    assert 10 * np.finfo(np.float32).eps < error <= bound


@pytest.mark.parametrize("rows", [48, 200])
def test_float32_is_float32_unless_asked(device, rows):
    g, svd = graded(rows, rows + 16, device)
    epsilon = float(np.finfo(np.float32).eps)
    error = error_of(sc.precondition(g, 2.0, 0.1, method="closed"), svd, 2.0, 0.1)
    assert error <= gram_rounding(2.0, 0.1, smallest_shift(rows, epsilon)) + 20 * rows * epsilon


def test_half_precision_weights_take_steps(device):
    model, gradients = network_and_gradients(2, torch.bfloat16)
    found = trained(model, gradients, device, steps=2)
    for parameter, start in zip(found, model.parameters(), strict=True):
        assert parameter.dtype == torch.bfloat16 and bool(torch.isfinite(parameter).all())
        assert not torch.equal(parameter.cpu(), start)


@pytest.mark.gpu
def test_what_waits_cannot_be_recorded_and_says_so(device):
    model, gradients = network_and_gradients(1, torch.float32)
    with pytest.raises(sc.InputError, match="method 'svd' cannot be recorded"):
        trained(model, gradients, device, steps=1, method="svd", cuda_graph=True)
    # Nothing is left half recorded: other work goes on.
    trained(model, gradients, device, steps=1, cuda_graph=True)
