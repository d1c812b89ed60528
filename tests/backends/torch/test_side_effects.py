"""The user's model and process are as before, also after an exception."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


class Net(nn.Module):
    """Fails with `error` at the given call."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)
        self.calls, self.fail_at, self.error = [], -1, ValueError("user's own error")
        self.cached = None

    def forward(self, x):
        self.calls.append(1)  # a list, as attributes are put back after each pass
        if len(self.calls) == self.fail_at:
            raise self.error
        self.cached = self.first(x)
        self.new_attribute = True
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def snapshot(model, loader):
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "ids": [id(p) for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "loader": loader.generator.get_state(),
        "sdp": (
            torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "float32": (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "observers": len(torch.overrides._get_current_function_mode_stack()),
        "saved tensors": hooks_are_asked(),
        "autocast": torch.is_autocast_enabled("cpu"), "threads": torch.get_num_threads(),
        "attributes": sorted(vars(model)), "cached": id(model.cached),
    }  # fmt: skip


def hooks_are_asked():
    asked = []

    def pack(tensor):
        asked.append(tensor.shape)
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        torch.ones(2, requires_grad=True).exp()
    return bool(asked)


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in before:
        a, b = before[key], after[key]
        if key == "grads":
            for x, y in zip(a, b, strict=True):
                assert (x is None) == (y is None)
                assert x is None or (x[0] == y[0] and torch.equal(x[1], y[1]))
        elif key == "values":
            assert all(torch.equal(a[k], b[k]) for k in a)
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), key
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b)
        else:
            assert a == b, key


@pytest.fixture
def setting():
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    torch.backends.mha.set_fastpath_enabled(True)
    model = Net().double()
    data = TensorDataset(torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,)))
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator())
    F.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    model.last.weight.grad = None
    model.first.bias.requires_grad_(False)
    model.first.register_forward_hook(lambda *a: None)
    model.last.register_full_backward_hook(lambda *a: None)
    return model, loader


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("training", [True, False])
def test_a_measurement_leaves_no_trace(setting, training):
    model, loader = setting
    model.train(training)
    model.drop.train(not training)
    before = snapshot(model, loader)
    problem = CurvatureProblem(model, F.cross_entropy, loader, check_deterministic=False)
    sc.measure(problem, top_k=3)
    assert_same(before, snapshot(model, loader))


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("error", [ValueError("user's own error"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 3, 5, 7])
def test_neither_does_an_exception(setting, error, call):
    model, loader = setting
    model.eval()
    model.calls, model.fail_at, model.error = [], call, error
    del model.new_attribute
    before = snapshot(model, loader)
    with pytest.raises(type(error)):
        sc.measure(
            CurvatureProblem(model, F.cross_entropy, loader, check_deterministic=False), top_k=3
        )
    assert len(model.calls) == call
    assert_same(before, snapshot(model, loader))


def test_inside_no_grad():
    model = nn.Linear(3, 4)
    with torch.no_grad():
        problem = CurvatureProblem(model, F.mse_loss, [(torch.randn(9, 3), torch.randn(9, 4))])
        assert len(sc.measure(problem)) == 1
        assert not torch.is_grad_enabled()


def test_inside_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(3, 4)
        data = [(torch.randn(9, 3), torch.randn(9, 4))]
        inside = sc.measure(CurvatureProblem(model, F.mse_loss, data))["weight"]
    outside = sc.measure(CurvatureProblem(model, F.mse_loss, data))["weight"]
    assert list(inside.curvature) == list(outside.curvature)


def test_inside_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    data = [(torch.randn(23, 5), torch.randint(4, (23,)))]
    expected = sc.measure(CurvatureProblem(model, F.cross_entropy, data), top_k=4)["0"]
    with torch.autocast("cpu", torch.bfloat16):
        found = sc.measure(CurvatureProblem(model, F.cross_entropy, data), top_k=4)["0"]
        assert torch.is_autocast_enabled("cpu")
    assert list(found.curvature) == list(expected.curvature)


def test_inside_hooks_of_saved_tensors():
    """They are not asked for what a measurement keeps, and are afterwards, also after an error."""
    model, data = nn.Linear(3, 4), [(torch.randn(9, 3), torch.randn(9, 4))]
    expected = sc.measure(CurvatureProblem(model, F.mse_loss, data))["weight"]
    asked = []

    def pack(tensor):
        asked.append(tensor)
        return tensor.half()

    def failing(outputs, targets):
        raise ValueError("user's own error")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.float()):
        found = sc.measure(CurvatureProblem(model, F.mse_loss, data))["weight"]
        with pytest.raises(ValueError, match="user's own"):
            CurvatureProblem(model, failing, data)
        assert not asked
        model(data[0][0])
        assert asked
    assert hooks_are_asked()
    assert list(found.curvature) == list(expected.curvature)
    assert list(found.sigma) == list(expected.sigma)


def test_inside_another_default_device():
    model, data = nn.Linear(3, 4), [(torch.randn(9, 3), torch.randn(9, 4))]
    torch.set_default_device("meta")
    try:
        assert len(sc.measure(CurvatureProblem(model, F.mse_loss, data))) == 1
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("marked", [False, True])
def test_a_forward_may_differentiate_in_its_inputs(marked):
    """It marks them itself, or they come marked; the user's tensors stay as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=marked)

    def energy(m, batch):
        inputs = batch[0] if marked else batch[0].requires_grad_()
        outputs = m(inputs)
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return (slope.square().sum(1) + outputs[:, 0] ** 2).mean()

    found = CurvatureProblem(model, None, [(x,)], forward=energy)
    u, v = torch.eye(5).double()[:, :2], torch.eye(3).double()[:, :2]
    h = found.curvatures("0", u, v)
    assert x.requires_grad == marked and x.grad is None

    def along(t, k):
        w = model[0].weight.detach() + t * torch.outer(u[:, k], v[:, k])
        return energy(lambda z: torch.func.functional_call(model, {"0.weight": w}, (z,)), (x * 1,))

    for k in range(2):
        t = torch.zeros((), dtype=torch.float64)
        expected = torch.autograd.functional.hessian(lambda t, k=k: along(t, k), t)
        torch.testing.assert_close(h[k], expected, rtol=1e-10, atol=0)


def test_inputs_are_not_changed():
    x = torch.randn(9, 3, dtype=torch.float64)
    target = torch.randn(9, 4)
    copies = x.clone(), target.clone()
    sc.measure(CurvatureProblem(nn.Linear(3, 4), F.mse_loss, [(x, target)]))
    assert torch.equal(x, copies[0]) and torch.equal(target, copies[1]) and not x.requires_grad
