"""Input that must meet a clear error or an honest result."""

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(0)
X, Y = torch.randn(12, 4), torch.randint(3, (12,))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def poisoned():
    model = net()
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    return model


def with_buffer(value):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    model[1].running_mean[0] = value
    return model


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.a(x).float()


def build(model=None, loss=F.cross_entropy, batches=None, **options):
    return CurvatureProblem(
        model or net(), loss, [(X, Y)] if batches is None else batches, **options
    )


class OnTwoDevices(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3, device="meta")


REFUSED = {
    "empty loader": (lambda: build(batches=[]), "batches: it is empty"),
    "generator": (lambda: build(batches=iter([(X, Y)])), "exhausted after one pass"),
    "generator function": (lambda: build(batches=((X, Y) for _ in range(2))), "list\\(batches\\)"),
    "no iterable": (lambda: build(batches=5), "a int cannot be iterated"),
    "tensor": (lambda: build(batches=X), "an array was passed, a Tensor"),
    "dict without forward": (lambda: build(batches=[{"x": X, "y": Y}]), "batch is a dict.*forward="),
    "single tensor batches": (lambda: build(batches=[X]), "batch is a Tensor.*forward="),
    "nan weights": (lambda: build(poisoned()), "parameter '2.weight' holds 1 NaN or infinite"),
    "nan data": (lambda: build(batches=[(X, Y), (X * float("nan"), Y)]), "batch 1 holds 48 NaN"),
    "infinite data": (
        lambda: build(batches=[(X * float("inf"), Y)]), "loss of batch 0 is nan; the batch holds 48",
    ),
    "nan buffer": (
        lambda: build(with_buffer(float("nan"))), "buffer '1.running_mean' of the model holds NaN",
    ),
    "infinite loss": (
        lambda: build(loss=lambda y, t: (y - y).log().mean()), "loss of batch 0 is -inf.*overflow",
    ),
    "autocast inside": (lambda: build(Autocast()), "under torch.autocast.*take the autocast out"),
    "no model": (lambda: CurvatureProblem(None, F.cross_entropy, [(X, Y)]), "a NoneType is neither"),
    "arrays as params": (
        lambda: build(lambda p, x: x, params={"w": np.ones((4, 3))}), "'w' is a ndarray",
    ),
    "nested params": (lambda: build(lambda p, x: x, params={"w": {}}), "'w' is a dict; pass a flat"),
    "weight none": (lambda: build(weight=lambda b: None), "weight: it returned None"),
    "negative seed": (lambda: build(seed=-1), "seed: -1"),
    "huge seed": (lambda: build(seed=2**32), "seed: 4294967296"),
    "loss not scalar": (
        lambda: build(loss=lambda y, t: F.cross_entropy(y, t, reduction="none")),
        r"tensor of shape \(12,\); reduce it",
    ),
    "loss a float": (lambda: build(loss=lambda y, t: 1.0), "returned a float"),
    "loss ignores the model": (
        lambda: build(loss=lambda y, t: t.double().mean()), "does not depend on the model",
    ),
    "argmax": (
        lambda: build(loss=lambda y, t: (y.argmax(1) == t).double().mean()), "argmax",
    ),
    "detached": (lambda: build(loss=lambda y, t: F.cross_entropy(y.detach(), t)), "detach"),
    "complex loss": (lambda: build(loss=lambda y, t: y.mean() * 1j), "complex"),
    "two devices": (lambda: build(OnTwoDevices()), "meta"),
    "no parameters": (lambda: build(nn.ReLU()), "no parameters"),
    "only vectors": (lambda: build(nn.LayerNorm(4)), "no parameter with two or more axes"),
    "function without params": (lambda: build(lambda p, x: x), "params="),
    "params beside a module": (lambda: build(params={}), "params: a module brings"),
    "no loss": (lambda: build(loss=None), "loss_fn: None"),
    "forward without targets": (
        lambda: build(forward=lambda m, b: m(b[0])), r"must return \(outputs, targets\)",
    ),
    "half dtype asked for": (lambda: build(dtype=torch.float16), "too coarse"),
    "chunk of zero": (lambda: build(chunk_size=0), "chunk_size: 0"),
    "negative weight": (lambda: build(weight=lambda b: -1), "weight: it returned -1"),
    "everything ignored": (
        lambda: build(batches=[(X, torch.full((12,), -100))]), "every target is ignored",
    ),
    "complex parameters": (
        lambda: build(lambda p, x: x, params={"w": torch.ones(2, 2, dtype=torch.complex64)}),
        "'w' is complex",
    ),
    "lazy": (lambda: build(nn.LazyLinear(3)), "is lazy"),
    "reduction": (lambda: build(reduction="batchmean"), "reduction: 'batchmean'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name):
    call, words = REFUSED[name]
    with pytest.raises(sc.InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k: 0"),
        ({"top_k": 2.5}, "top_k: 2.5"),
        ({"curvature": "fisher"}, "'hessian' or 'ggn'"),
        ({"confidence": 95}, "confidence: 95"),
        ({"layers": "conv*"}, "'conv\\*' matches none"),
    ],
)
def test_measure_refuses(options, words):
    with pytest.raises(sc.InputError, match=words):
        sc.measure(build(), **options)


def test_top_k_may_be_any_integer():
    assert len(sc.measure(build(), top_k=np.int64(2))["0"].sigma) == 2


def test_unknown_kind_of_curvature():
    with pytest.raises(sc.InputError, match="kind: 'fisher'"):
        build().curvatures("0", torch.ones(6, 2), torch.ones(4, 2), kind="fisher")


def test_directions_as_arrays_and_none_at_all():
    problem = build()
    found = problem.curvatures("0", np.eye(6)[:, :2], np.eye(4)[:, :2])
    assert torch.equal(found, problem.curvatures("0", torch.eye(6)[:, :2], torch.eye(4)[:, :2]))
    assert problem.curvatures("0", torch.ones(6, 0), torch.ones(4, 0)).shape == (0,)


class Encoding(UserDict):
    """As tokenizers return it: a mapping whose items are attributes too."""

    def __getattr__(self, name):
        return self.data[name]


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("kind", [Encoding, Batch, Pair])
def test_batches_keep_their_type(kind):
    batch = kind(x=X.double(), y=Y)
    problem = build(batches=[batch], forward=lambda m, b: (m(b.x), b.y))
    assert len(problem.layers()) == 2 and problem.describe()["dtype"] == "float32"
    assert batch.x.dtype == torch.float64


def test_an_infinite_mask_is_no_bad_data():
    mask = torch.zeros(12, 3)
    mask[:, 2] = -torch.inf
    data = [(X, mask, Y % 2)]
    problem = build(batches=data, forward=lambda m, b: (m(b[0]) + b[1], b[2]))
    assert np.isfinite(sc.measure(problem, top_k=3)["0"].curvature).all()


def test_integer_and_eight_bit_parameters_are_carried_along():
    model = net()
    model.steps = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    model.codes = nn.Parameter(torch.ones(3, 3).to(torch.float8_e4m3fn), requires_grad=False)
    problem = build(model)
    assert [layer.name for layer in problem.layers()] == ["0", "2"]
    assert problem.skipped().keys() == {"codes"} and problem.describe()["dtype"] == "float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tensors_of_the_loss_are_cast_with_the_model(dtype):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).to(dtype))
    model, data = net().to(dtype), [(X.to(dtype), Y)]
    wide = torch.float64 if dtype == torch.float32 else None
    assert len(sc.measure(build(model, loss, data, dtype=wide), top_k=3)) == 2
    assert loss.weight.dtype == dtype


def test_errors_of_the_users_own_code_stay_their_own():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.calls = nn.Linear(4, 3), []

        def forward(self, x):
            self.calls.append(1)
            if len(self.calls) >= 5:
                raise RuntimeError("my own: file not found")
            return self.a(x)

    with pytest.raises(RuntimeError, match="^my own: file not found"):
        sc.measure(build(Fails()), top_k=3)


def test_overwritten_activations_are_no_number():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            return torch.sigmoid(self.a(x)).mul_(2)

    problem = build(InPlace())
    with pytest.raises(sc.LayerError, match="'a'.*inplace"):
        problem.curvatures("a", torch.eye(3), torch.eye(4)[:, :3])


def test_a_layer_that_failed_is_tried_again(tmp_path, monkeypatch):
    """A resumed run may have the memory that the first had not."""
    expected = sc.measure(build(), top_k=3)
    problem = build()
    together = problem.layer_curvatures

    def out_of_memory(directions, *args, **options):
        for found in together(directions, *args, **options):
            short = getattr(found, "name", None) == "2"
            yield sc.LayerError("2", "its graph does not fit into memory") if short else found

    monkeypatch.setattr(problem, "layer_curvatures", out_of_memory)
    first = sc.measure(problem, top_k=3, resume=tmp_path / "journal")
    assert list(first) == ["0"] and "memory" in first.skipped["2"]
    resumed = sc.measure(build(), top_k=3, resume=tmp_path / "journal")
    assert resumed.to_dict() == expected.to_dict()


def test_directions_of_the_wrong_shape():
    with pytest.raises(sc.InputError, match=r"6×4 matrix pass \(6, K\) and \(4, K\)"):
        build().curvatures("0", torch.ones(4, 2), torch.ones(6, 2))


def test_masked_directions():
    with pytest.raises(sc.InputError, match=r"u: a numpy.MaskedArray has masked values"):
        build().curvatures("0", np.ma.masked_equal(np.eye(6)[:, :2], 1), np.eye(4)[:, :2])


def test_batch_of_one():
    report = sc.measure(build(batches=[(X[:1], Y[:1])]), top_k=5)
    assert len(report["0"].sigma) == 1  # the gradient of one sample has rank one
    assert "fewer than 3" in report["0"].alpha.reason
    assert any("rank" in note for note in report["0"].notes)


def test_window_beyond_the_rank():
    report = sc.measure(build(), top_k=50)
    assert len(report["2"].sigma) == 2  # the rows of a softmax head's gradient add up to zero
    assert any("2 of 50" in note for note in report["2"].notes)


def test_zero_gradient_is_skipped_and_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.zeros_(model[2].weight)  # nothing flows back to the first layer
    report = sc.measure(build(model), top_k=3)
    assert list(report) == ["2"] and "gradient is zero" in report.skipped["0"]
    with pytest.raises(KeyError, match="gradient is zero"):
        report["0"]
    with pytest.raises(sc.SpectralError, match="none of the 1 selected layers.*gradient is zero"):
        sc.measure(build(model), "0")


def test_infinite_gradient_is_skipped_and_named():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = nn.Linear(4, 3, bias=False), nn.Linear(4, 3)
            nn.init.zeros_(self.bad.weight)

        def forward(self, x):
            return self.good(x) + self.bad(x).abs().sqrt()

    report = sc.measure(build(Root()), top_k=3)
    assert list(report) == ["good"] and "NaN or infinite" in report.skipped["bad"]


def test_only_negative_curvature():
    report = sc.measure(build(loss=lambda y, t: -((y - 9) ** 2).mean()), "2", top_k=3)
    spectrum = report["2"]
    assert (spectrum.curvature < 0).all() and "fewer than 3" in spectrum.alpha.reason
    assert spectrum.alpha.n_dropped == 3 and spectrum.participation.count == 0
    assert "3 with h <= 0" in " ".join(spectrum.notes)
    assert "nan" in str(report)


def test_linear_loss_has_zero_curvature():
    report = sc.measure(build(loss=lambda y, t: y.mean()), "2", top_k=3)
    assert (report["2"].curvature == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    model = net().to(dtype)
    report = sc.measure(build(model, batches=[(X.to(dtype), Y)]), top_k=3)
    problem = report.provenance.problem
    assert problem["dtype"] == "float32" and problem["model_dtype"] == str(dtype).split(".")[1]
    assert model[0].weight.dtype == dtype
    upcast = sc.measure(build(net().to(dtype).float(), batches=[(X.to(dtype).float(), Y)]), top_k=3)
    assert list(report["0"].curvature) == list(upcast["0"].curvature)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


def test_no_second_derivative_is_said_of_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.before(x)
            return self.after(x + OnceOnly.apply(x))  # the sum would hide the missing part

    report = sc.measure(build(Net()), top_k=3)
    assert list(report) == ["after"]
    assert "twice" in report.skipped["before"] and "second derivative" in report.skipped["before"]


def test_step_functions_have_zero_curvature():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    h = build(model, loss=lambda y, t: y.abs().mean()).curvatures(
        "0", torch.eye(6)[:, :3], torch.eye(4)[:, :3]
    )
    assert (h == 0).all()


def test_integer_inputs_are_the_models_business():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    tokens = torch.randint(5, (12, 2))
    assert list(sc.measure(build(model, batches=[(tokens, Y)]), top_k=3)) == ["0", "2"]


def test_operations_without_a_batching_rule_fall_back():
    class NoVmap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            if torch._C._functorch.is_batchedtensor(grad):
                raise RuntimeError("no batching rule")
            return grad * 3 * x**2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(NoVmap.apply(self.a(x)))

    model = Net().double()
    data = [(X.double(), Y)]
    u, v = torch.eye(6).double()[:, :4], torch.eye(4).double()
    found = build(model, batches=data, chunk_size=4).curvatures("a", u, v)
    expected = build(model, batches=data, chunk_size=1).curvatures("a", u, v)
    torch.testing.assert_close(found, expected)


def test_ggn_needs_outputs():
    problem = build(loss=None, forward=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    with pytest.raises(sc.InputError, match="'ggn' needs"):
        sc.measure(problem, curvature="ggn")
    assert len(sc.measure(problem, top_k=3)) == 2
