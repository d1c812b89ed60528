"""Recorded arrays: factors and Gauss-Newton curvature against sums written out, and PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_core as sc
from spectral_backends.arrays import DenseNetwork, RecordedProblem, Rows

RNG = np.random.default_rng(0)


def draw(batch=6, positions=3, m=4, n=5, columns=2, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((batch, positions, n)),
        generator.standard_normal((batch, positions, m)),
        generator.standard_normal((columns, batch, positions, m)),
    )


def literal(a, deltas, u, v, sharing):
    """Theory 4.3, 5.4, term by term."""
    if sharing == "reduce":
        a, deltas = a.mean(1, keepdims=True), deltas.sum(2, keepdims=True)
    batch, positions, n = a.shape
    c_a, c_delta = np.zeros((n, n)), np.zeros((deltas.shape[-1],) * 2)
    for i in range(batch):
        for t in range(positions):
            c_a += np.outer(a[i, t], a[i, t]) / (batch * positions)
            for d in deltas[:, i, t]:
                c_delta += np.outer(d, d) / batch
    h = np.zeros(u.shape[1])
    for k in range(u.shape[1]):
        for i in range(batch):
            for d in deltas[:, i]:
                h[k] += sum((u[:, k] @ d[t]) * (v[:, k] @ a[i, t]) for t in range(positions)) ** 2
    return c_delta, c_a, h / batch


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("delta", ["ggn", "empirical"])
def test_sums_are_those_of_the_theory(delta, sharing):
    a, true, roots = draw()
    problem = RecordedProblem({"w": Rows(a, true, roots)})
    u, v = (
        np.linalg.qr(RNG.standard_normal((4, 3)))[0],
        np.linalg.qr(RNG.standard_normal((5, 3)))[0],
    )
    deltas = roots if delta == "ggn" else true[None]
    c_delta, c_a, _ = literal(a, deltas, u, v, sharing)
    factors = problem.kronecker_factors(["w"], fisher_type=delta, kfac_approx=sharing)["w"]
    np.testing.assert_allclose(factors.output_covariance, c_delta, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(factors.input_covariance, c_a, rtol=1e-13, atol=1e-15)
    along = problem.kronecker_factors(
        ["w"], fisher_type=delta, kfac_approx=sharing, directions={"w": (u, v)}
    )["w"].diagonal
    assert factors.diagonal is None
    if (delta, sharing) == ("ggn", "expand"):
        p = np.einsum("mk,cbsm,nk,bsn->cbsk", u, roots, v, a)
        np.testing.assert_allclose(along, (p**2).sum((0, 1, 2)) / len(a), rtol=1e-13)
    else:  # of other gradients, or with the positions taken together
        assert along is None
    h = literal(a, roots, u, v, "expand")[2]
    np.testing.assert_allclose(problem.curvatures("w", u, v, "ggn"), h, rtol=1e-13)
    gradient = sum(np.outer(true[i, t], a[i, t]) for i in range(6) for t in range(3)) / 6
    np.testing.assert_allclose(problem.gradients(["w"])["w"], gradient, atol=1e-14)


def test_certificates_name_the_rows():
    a, true, roots = draw()
    problem = RecordedProblem({"w": Rows(a, true, roots)})
    report = sc.measure(problem, top_k=3, curvature="ggn")
    assert report["w"].certificate == sc.Certificate("rows")


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 5), repeats=st.integers(1, 3), seed=st.integers(0, 99))
def test_batches_and_repetition_change_nothing(cut, repeats, seed):
    a, true, roots = draw(seed=seed)
    whole = RecordedProblem({"w": Rows(a, true, roots)})
    again = np.repeat(a, repeats, 0), np.repeat(true, repeats, 0), np.repeat(roots, repeats, 1)
    split = RecordedProblem(
        {
            "w": [
                Rows(again[0][p], again[1][p], again[2][:, p])
                for p in (slice(cut), slice(cut, None))
            ]
        }
    )
    u, v = np.eye(4)[:, :3], np.eye(5)[:, :3]
    one, two = (p.kronecker_factors(["w"])["w"] for p in (whole, split))
    np.testing.assert_allclose(one.output_covariance, two.output_covariance, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(one.input_covariance, two.input_covariance, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        whole.curvatures("w", u, v, "ggn"), split.curvatures("w", u, v, "ggn"), rtol=1e-12
    )
    np.testing.assert_allclose(whole.gradients(["w"])["w"], split.gradients(["w"])["w"], atol=1e-14)


def test_a_sample_of_two_terms_counts_twice():
    a, true, roots = draw(batch=2, positions=1)
    terms = np.array([2.0, 1.0])
    # Terms that are alike: their δ add up, their roots stand beside each other.
    alike = np.concatenate([roots, roots * np.array([1.0, 0.0])[:, None, None]])
    one = RecordedProblem({"w": Rows(a, true * terms[:, None, None], alike, terms)})
    order = [0, 0, 1]
    two = RecordedProblem({"w": Rows(a[order], true[order], roots[:, order])})
    u, v = np.eye(4)[:, :2], np.eye(5)[:, :2]
    for name in ("output_covariance", "input_covariance"):
        found, wanted = (getattr(p.kronecker_factors(["w"])["w"], name) for p in (one, two))
        np.testing.assert_allclose(found, wanted, rtol=1e-13)
    np.testing.assert_allclose(one.gradients(["w"])["w"], two.gradients(["w"])["w"])
    np.testing.assert_allclose(one.curvatures("w", u, v, "ggn"), two.curvatures("w", u, v, "ggn"))


def test_a_report_from_arrays_is_that_of_the_network():
    network = DenseNetwork((8, 10, 6), "relu")
    params = network.init(0)
    batches = [
        (RNG.standard_normal((n, 8)), RNG.integers(0, 6, n)) for n in (30, 17)
    ]  # fmt: skip
    recorded = RecordedProblem(
        {name: [network.rows(params, name, b) for b in batches] for name in network.layers}
    )
    ours = sc.measure(recorded, top_k=5, curvature="ggn", decompose=True)
    wanted = sc.measure(network.problem(params, batches), top_k=5, decompose=True)
    for name in network.layers:
        # ReLU: the Hessian along a direction is Gauss-Newton's (Theory 5.8).
        np.testing.assert_allclose(ours[name].sigma, wanted[name].sigma, rtol=1e-12)
        np.testing.assert_allclose(ours[name].curvature, wanted[name].curvature, rtol=1e-10)
        for term in ("alpha", "beta", "phi", "kappa", "nu"):
            one, two = (getattr(r[name].decomposition, term).exponent for r in (ours, wanted))
            assert abs(one - two) < 1e-9
        assert abs(ours[name].decomposition.nu.exponent) < 1e-12


def test_arrays_that_torch_recorded():
    torch = pytest.importorskip("torch")
    from spectral_backends.torch import CurvatureProblem

    # Two positions share the weight; hooks write down what a user of PyTorch can see.
    torch.manual_seed(0)
    first, last = torch.nn.Linear(4, 5).double(), torch.nn.Linear(5, 3).double()
    x, y = torch.randn(12, 2, 4, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            self.hidden = self.first(x)
            self.hidden.retain_grad() if self.hidden.requires_grad else None
            return self.last(torch.relu(self.hidden).sum(1))

    net = Net()

    def loss(z, t):
        return 0.5 * ((z - t) ** 2).sum(1).mean()

    def sent_back(z_grad):
        net.zero_grad()
        z = net(x)
        z.backward(z_grad(z))
        return net.hidden.grad.numpy()

    true = sent_back(lambda z: (z - y).detach())
    roots = np.stack([
        sent_back(lambda z, c=c: torch.eye(3, dtype=torch.float64)[c].expand(12, 3)) for c in range(3)
    ])  # fmt: skip
    recorded = RecordedProblem({"first": Rows(x.numpy(), true, roots)})
    ours = sc.measure(recorded, top_k=4, curvature="ggn", decompose=True)["first"]
    problem = CurvatureProblem(net, loss, [(x, y)], weight=lambda b: 12)
    wanted = sc.measure(problem, "first", top_k=4, decompose=True)["first"]
    np.testing.assert_allclose(ours.curvature, wanted.curvature, rtol=1e-10)
    for term in ("alpha", "beta", "phi", "kappa"):
        one, two = (getattr(r.decomposition, term).exponent for r in (ours, wanted))
        assert abs(one - two) < 1e-8


A, TRUE, ROOTS = draw()
REFUSED = {
    "no layer": (lambda: RecordedProblem({}), "there is none"),
    "no batch": (lambda: RecordedProblem({"w": []}), "has no rows"),
    "no gradient": (lambda: RecordedProblem({"w": Rows(A)}), "has no gradient"),
    "unknown": (lambda: RecordedProblem({"w": Rows(A, TRUE)}, {"b": A}), "not among"),
    "transposed": (
        lambda: RecordedProblem({"w": Rows(A, root_gradients=ROOTS)}, {"w": np.ones((5, 4))}),
        r"shape \(5, 4\).*4×5",
    ),
    "reduced": (
        lambda: RecordedProblem(
            {"w": Rows(A, TRUE / 6)}, RecordedProblem({"w": Rows(A, TRUE)}).gradients(["w"])
        ),
        "N times what autograd gives",
    ),
    "widths": (
        lambda: RecordedProblem({"w": [Rows(A, TRUE), Rows(A[..., :4], TRUE)]}), "other widths"
    ),
    "NaN": (lambda: Rows(A * np.nan), "inputs: holds NaN"),
    "one axis": (lambda: Rows(A[0, 0]), r"inputs: has shape \(5,\)"),
    "empty": (lambda: Rows(A[:0]), "inputs: has shape"),
    "other samples": (lambda: Rows(A, TRUE[:5]), r"output_gradients.*\(6, 3, m\)"),
    "roots": (lambda: Rows(A, root_gradients=TRUE), r"root_gradients.*\(C, 6, 3, m\)"),
    "terms": (lambda: Rows(A, TRUE, terms=np.ones(5)), r"terms.*\(6,\)"),
    "integers": (lambda: Rows(np.ones((2, 3), int)), "dtype int"),
    "delta": (
        lambda: RecordedProblem({"w": Rows(A, TRUE)}).kronecker_factors(["w"], fisher_type="mc"), "fisher_type"
    ),
    "sharing": (
        lambda: RecordedProblem({"w": Rows(A, TRUE)}).kronecker_factors(["w"], kfac_approx="mean"),
        "kfac_approx",
    ),
    "name": (lambda: RecordedProblem({"w": Rows(A, TRUE)}).gradients(["v"]), "there is none"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(sc.InputError, match=message):
        make()


def test_what_arrays_do_not_say_is_named():
    problem = RecordedProblem({"w": Rows(A, TRUE)})
    with pytest.raises(sc.SpectralError, match="curvature='ggn'"):
        sc.measure(problem, top_k=3)
    with pytest.raises(sc.SpectralError, match="without root_gradients"):
        sc.measure(problem, top_k=3, curvature="ggn")
    for delta in ("ggn", "fisher-mc"):
        with pytest.raises(sc.LayerError, match="no factors with fisher_type"):
            problem.kronecker_factors(["w"], fisher_type=delta)


@pytest.mark.not_in("jit")  # rows are checked by their values
def test_every_library_sums(xp):
    a, true, roots = draw()
    rows = Rows(xp.array(a), xp.array(true), xp.array(roots), xp.array([1, 1, 2, 1, 0, 3]))
    plain = Rows(a, true, roots, np.array([1.0, 1, 2, 1, 0, 3]))
    like = xp.array([0.0])
    u, v = np.eye(4)[:, :2], np.eye(5)[:, :2]
    found = RecordedProblem({"w": rows})
    wanted = RecordedProblem({"w": plain})
    one, two = found.kronecker_factors(["w"])["w"], wanted.kronecker_factors(["w"])["w"]
    for part in ("output_covariance", "input_covariance"):
        xp.check_kind(getattr(one, part), like)
        np.testing.assert_allclose(
            xp.numpy(getattr(one, part)), getattr(two, part), atol=300 * xp.eps
        )
    values = found.curvatures("w", xp.array(u), xp.array(v), "ggn")
    xp.check_kind(values, like)
    np.testing.assert_allclose(
        xp.numpy(values), wanted.curvatures("w", u, v, "ggn"), rtol=100 * xp.eps
    )
