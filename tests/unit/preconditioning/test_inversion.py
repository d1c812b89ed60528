"""Newton's iteration for the inverse: its table, its error in float16, and what it launches."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.preconditioning.tables.inversion import REACH, inversion_table


def matrix(sigma, columns, seed=0):
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((len(sigma), len(sigma))))[0]
    v = np.linalg.qr(rng.standard_normal((columns, len(sigma))))[0]
    return (u * sigma) @ v.T


def error(found, gradient, damping):
    """Return the spectral error of T at α = 2 against a singular value decomposition."""
    u, sigma, vh = np.linalg.svd(gradient, full_matrices=False)
    values = sigma / (sigma**2 + damping * sigma[0] ** 2)
    return np.linalg.norm(found - (u * values) @ vh, 2) / np.max(values)


def gradients(rows, columns):
    rank = np.arange(1, rows + 1.0)
    for exponent in (0.25, 0.5, 1.0, 2.0):
        yield matrix(rank**-exponent, columns)
    yield np.random.default_rng(1).standard_normal((rows, columns))
    for low in (1, 3):
        yield matrix((rank <= low).astype(float), columns)


@pytest.mark.parametrize("damping", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_the_table_is_the_shortest_chebyshev_polynomial(damping):
    table = inversion_table(damping, 0.02)
    order = 5 * 2 ** len(table.scales)
    least = 1 / np.cosh(order * np.arccosh(1 + 2 * damping / REACH))
    x = np.linspace(0, REACH, 20001)
    residual = np.abs(1 - (x + damping) * table(x))
    assert np.max(residual) <= table.error * (1 + 1e-6) <= 0.02 * (1 + 1e-6)
    assert table.error <= least * 1.05 + 1e-12  # the degree is order - 1, and nothing is lost
    assert len(table.scales) == 1 or least < 0.02 < np.sqrt(least)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 17), (200, 200)])
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_it_reaches_the_tolerance_in_working_precision(shape, damping):
    for gradient in gradients(min(shape), max(shape)):
        gradient = gradient if shape[0] <= shape[1] else gradient.T
        found = sc.precondition(gradient, 2.0, damping, method="inversion", tolerance=0.05)
        assert error(found, gradient, damping) < 0.05


def test_half_precision_keeps_t_within_six_per_cent():
    for gradient in gradients(512, 512):
        single = gradient.astype(np.float32)
        found = sc.precondition(single, 2.0, 1e-3, precision="float16")
        assert found.dtype == np.float32
        assert error(found, gradient, 1e-3) < 0.06


@pytest.mark.parametrize("normalize", ["none", "spectral", "rms"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sizes_agree_with_the_closed_form(normalize, scale):
    gradient = (scale * matrix(np.geomspace(1, 0.1, 20), 30)).astype(np.float32)
    options = {"damping": 0.1, "normalize": normalize}
    if normalize == "none":
        gradient = gradient / np.float32(scale)
    wanted = sc.precondition(gradient, 2.0, method="closed", **options)
    found = sc.precondition(gradient, 2.0, method="inversion", tolerance=1e-2, **options)
    assert np.max(np.abs(found - wanted)) < 0.02 * np.max(np.abs(wanted))


def test_zero_and_not_finite_matrices_leave_others_alone():
    good = matrix(np.geomspace(1, 0.1, 6), 8).astype(np.float32)
    bad, worse = good.copy(), good.copy()
    bad[2, 3], worse[1, 1] = np.nan, np.inf
    with np.errstate(all="ignore"):
        found = sc.precondition(
            np.stack([good, 0 * good, bad, worse]), 2.0, 0.01, method="inversion", tolerance=0.05
        )
    assert error(found[0], good.astype(float), 0.01) < 0.05
    assert np.all(found[1] == 0)
    assert np.all(np.isnan(found[2])) and np.all(np.isnan(found[3]))


def test_what_it_does_not_serve_is_refused():
    wide = np.ones((4096, 1), dtype=np.float32) @ np.ones((1, 4096), dtype=np.float32)
    with pytest.raises(sc.InputError, match="alpha = 1"):
        sc.precondition(np.eye(3), 1.0, 0.1, method="inversion")
    with pytest.raises(sc.InputError, match="range of float16"):
        sc.precondition(wide, 2.0, 5e-4, precision="float16")
    with pytest.raises(sc.InputError, match="'float16' is for"):
        sc.precondition(np.eye(3), 2.0, 0.1, method="polynomial", precision="float16")


def test_it_launches_at_most_forty_kernels():
    torch = pytest.importorskip("torch")
    mode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
    free = {"t", "transpose", "expand", "view", "_unsafe_view", "slice", "unsqueeze", "diagonal",
            "empty_like", "select", "alias", "detach", "lift_fresh"}  # fmt: skip

    class Launches(mode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket.__name__ not in free
            return function(*args, **(kwargs or {}))

    for shape in ((512, 512), (3, 512, 520)):
        gradient = torch.randn(shape, dtype=torch.float32)
        sc.precondition(gradient, 2.0, 1e-3, precision="float16")  # makes the constants
        with Launches() as launches:
            sc.precondition(gradient, 2.0, 1e-3, precision="float16")
        assert launches.count <= 40


@pytest.mark.parametrize(("columns", "share"), [(512, 0.805), (2048, 0.403)])
def test_it_multiplies_less_than_muon(columns, share):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    rows = 512
    with FlopCounterMode(display=False) as counter:
        sc.precondition(
            torch.ones((rows, columns), dtype=torch.float32), 2.0, 1e-3, precision="float16"
        )
    muon = 5 * (2 * 2 * rows**2 * columns + 2 * rows**3)
    products = counter.get_total_flops() - 2 * 6 * 8 * rows**2
    assert products <= (share - 0.003) * muon + 1
    assert counter.get_total_flops() <= 1.02 * share * muon  # with the vectors that find σ_max


@pytest.mark.parametrize(
    ("options", "half"),
    [
        ({"alpha": 2.0}, True),
        ({"alpha": 1.5}, False),
        ({"alpha": 2.0, "tolerance": 0.01}, False),
        ({"alpha": 2.0, "method": "closed"}, False),
        ({"alpha": 2.0, "damping_mode": "absolute"}, False),
        ({"alpha": 2.0, "damping": 1e-4}, False),  # out of the range of float16
    ],
)
def test_auto_is_float16_where_that_is_fast_and_serves(options, half, monkeypatch):
    options = {"damping": 0.01} | options
    gradient = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    on_cpu = sc.precondition(gradient, precision="auto", **options)
    assert np.array_equal(on_cpu, sc.precondition(gradient, **options))
    monkeypatch.setattr(
        "spectral_core.preconditioning.preconditioner.fast_half", lambda xp, array: True
    )
    wanted = sc.precondition(gradient, precision="float16" if half else "working", **options)
    assert np.array_equal(sc.precondition(gradient, precision="auto", **options), wanted)
    choice = sc.precondition_method(
        (600, 700), "float32", precision="auto", device="cuda", **options
    )
    assert (choice.name == "inversion") == half
