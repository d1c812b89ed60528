"""What a step and a fit do on a device: nothing that makes the host wait, as far as a CPU can tell.

PyTorch's "meta" device has shapes and no numbers. To the library it is a device that is no CPU, so
the operations are those of a GPU; what reads a number back fails, and copies from the host show.
"""

import array_api_compat
import numpy as np
import pytest
from fits import FITS

import spectral_core as sc
from spectral_core.arrays import host
from spectral_core.arrays.eigen import by_squaring
from spectral_core.preconditioning.extreme_value import DIRECT_SIZE

torch = pytest.importorskip("torch")
pytree = pytest.importorskip("torch.utils._pytree")
dispatch = pytest.importorskip("torch.utils._python_dispatch")
overrides = pytest.importorskip("torch.overrides")

# They look on the host whether an iteration converged or a pivot vanished.
WAITING = ("_linalg_eigh", "_linalg_svd", "linalg_inv", "linalg_solve", "_linalg_solve", "nonzero",
           "_local_scalar_dense", "is_nonzero", "masked_select", "equal.default")  # fmt: skip


class Watch(dispatch.TorchDispatchMode):
    """Notes operations that wait for a device, and copies to it from the host."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies, self.count = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.count += 1
        tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        result = func(*args, **kwargs)
        name = func.__name__
        if "meta" in devices and name.startswith(WAITING):
            self.waits.append(name)
        moved = isinstance(result, torch.Tensor) and result.device.type == "meta"
        if "cpu" in devices and moved:
            self.copies.append(name)
        return result


class Creations(overrides.TorchFunctionMode):
    """Notes tensors that are made on a device from values of the host: "meta" takes no copy."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func in (torch.asarray, torch.tensor, torch.as_tensor)
        if made and not isinstance(args[0], torch.Tensor) and str(kwargs.get("device")) == "meta":
            self.copies.append(func.__name__)
        return func(*args, **kwargs)


def watched(run):
    """What a second call does: the first one may copy constants."""
    run()
    with Watch() as watch, Creations(watch.copies):
        run()
    assert watch.count > 5
    return watch


def test_the_watch_sees_what_waits_and_what_is_copied():
    matrix = torch.ones(3, 3, device="meta")
    with Watch() as watch:
        torch.linalg.eigvalsh(matrix)
        torch.asarray(np.ones(3), device="meta")
    assert watch.waits == ["_linalg_eigh.default"] and len(watch.copies) == 1
    with Watch() as watch, Creations(watch.copies):
        torch.asarray(2.0, device="meta")
        torch.asarray(matrix, device="meta")
    assert watch.copies == ["asarray"]
    with pytest.raises(RuntimeError, match="meta"):
        float(matrix[0, 0])


@pytest.mark.parametrize("rows", [40, DIRECT_SIZE + 1])
@pytest.mark.parametrize(
    ("alpha", "options"),
    [
        (2.0, {}),
        (4.0, {}),
        (1.0, {}),
        (1.5, {"method": "shifts"}),
        (1.0, {"damping": 0.0, "method": "polar"}),
        (2.0, {"precision": "bfloat16"}),
        (0.0, {"normalize": "spectral"}),
    ],
)
def test_precondition_neither_waits_nor_copies(rows, alpha, options):
    g = torch.ones(2, rows, 200, device="meta")
    watch = watched(lambda: sc.precondition(g, alpha, **{"damping": 0.1, **options}))
    assert watch.waits == [] and watch.copies == []


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16", "damping": 0.1}])
def test_a_step_of_the_optimizer_neither_waits_nor_copies(options):
    from spectral_adapters.torch_optim import SpectralNewton

    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 40)).to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = SpectralNewton(model, lr=0.1, **options)
    watch = watched(optimizer.step)
    assert watch.waits == [] and watch.copies == []


@pytest.mark.parametrize("name", FITS)
def test_a_fit_neither_waits_nor_copies(name):
    spectra = torch.ones(3, 20, device="meta")
    watch = watched(lambda: FITS[name](spectra))
    assert watch.waits == [] and watch.copies == []


@pytest.mark.parametrize("method", ["eigh", "svd"])
def test_decompositions_wait_which_the_guide_says(method):
    g = torch.ones(200, 200, device="meta")
    assert len(watched(lambda: sc.precondition(g, 2.0, method=method)).waits) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 16, DIRECT_SIZE])
def test_squaring_finds_the_largest_eigenvalue(rows, dtype):
    # Above by 8 ε; below by the rounding of products, √k ε of the largest, of which 1/2 + 1/4 + …
    # count, and of as many powers as there are rounds, at most 13.
    rng = np.random.default_rng(rows)
    decays = np.stack([np.ones(rows), np.arange(1, rows + 1) ** -1.0, 0.5 ** np.arange(rows)])
    g = decays[:, :, None] * rng.normal(size=(3, rows, rows + 3))
    gram = torch.asarray(g @ np.swapaxes(g, -1, -2)).to(dtype)
    exact = np.linalg.eigvalsh(gram.double().numpy())[:, -1]
    found = by_squaring(array_api_compat.array_namespace(gram), gram)
    assert found.shape == (3, 1, 1)
    error = np.abs(found[:, 0, 0].double().numpy() / exact - 1)
    assert np.max(error) <= (8 + 13 + 2 * np.sqrt(rows)) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 16, DIRECT_SIZE])
def test_squaring_is_above_an_identity_by_eight_roundings_at_most(rows, dtype):
    # Equal eigenvalues are the worst case, and nothing else rounds here.
    xp = array_api_compat.array_namespace(torch.ones(1))
    identities = torch.eye(rows, dtype=dtype).expand(2, 3, rows, rows)
    found = by_squaring(xp, identities)
    assert found.shape == (2, 3, 1, 1)
    assert torch.all((found >= 1) & (found <= 1 + 9 * torch.finfo(dtype).eps))


def test_squaring_does_not_leave_the_range_and_takes_zero():
    xp = array_api_compat.array_namespace(torch.ones(1))
    matrices = torch.stack([torch.zeros(5, 5), 1e30 * torch.eye(5), 1e-30 * torch.ones(5, 5)])
    found = by_squaring(xp, matrices)[:, 0, 0]
    expected = torch.tensor([0.0, 1e30, 5e-30])
    assert torch.allclose(found, expected, rtol=40 * torch.finfo(torch.float32).eps, atol=0)


def test_constants_on_a_device_are_copied_once_and_not_from_inside_a_transform():
    xp = array_api_compat.array_namespace(torch.ones(1))
    calls = []

    def constant(size):
        calls.append(size)
        return np.ones(size)

    like = torch.ones(3, device="meta")
    assert host.on_device(xp, constant, 3, like) is host.on_device(xp, constant, 3, like)
    assert calls == [3]
    with torch.inference_mode():
        inside = host.on_device(xp, constant, 5, torch.ones(3, device="meta"))
        beside = host.on_device(xp, constant, 5, like)
    assert inside.is_inference() and beside.is_inference()
    assert not host.on_device(xp, constant, 5, like).is_inference()
    torch.func.grad(lambda x: host.on_device(xp, constant, 7, x).sum() + x.sum())(like)
    kept = host.on_device(xp, constant, 7, like)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    assert calls == [3, 5, 5, 5, 7, 7]
    on_cpu = [host.on_device(xp, constant, 9, torch.ones(1)) for _ in range(2)]
    assert on_cpu[0] is not on_cpu[1]


def test_constants_have_the_dtype_and_device_of_the_array():
    xp = array_api_compat.array_namespace(torch.ones(1))
    for dtype in (torch.float16, torch.float64):
        for device in ("cpu", "meta"):
            like = torch.ones(1, dtype=dtype, device=device)
            found = host.on_device(xp, np.ones, 11, like)
            assert (found.dtype, found.device) == (like.dtype, like.device)
    strict = pytest.importorskip("array_api_strict")
    for device in map(strict.Device, ("CPU_DEVICE", "device1")):
        like = strict.ones(1, dtype=strict.float32, device=device)
        found = host.on_device(strict, np.ones, 11, like)
        assert (found.dtype, found.device) == (like.dtype, like.device)


def test_a_subclass_of_tensors_gets_a_copy_of_its_own():
    # It may stand for something that ends, as a trace does.
    class Own(torch.Tensor):
        pass

    xp = array_api_compat.array_namespace(torch.ones(1))
    like = torch.ones(3, device="meta").as_subclass(Own)
    assert host.on_device(xp, np.ones, 13, like) is not host.on_device(xp, np.ones, 13, like)


def test_a_host_constant_is_computed_once_and_marked_as_pytorch_marks_constants():
    calls = []

    def square(x, *, offset=0.0):
        """Return a square."""
        calls.append(x)
        return x * x + offset

    constant = host.host_constant(square)
    assert [constant(3.0), constant(3.0), constant(3.0, offset=1.0)] == [9.0, 9.0, 10.0]
    assert calls == [3.0, 3.0] and constant.__doc__ == square.__doc__
    marked = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marked and marked.items() <= vars(constant).items()
