"""Which matrices are found, under which names, and what is said of the rest."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


def problem_of(model, width=4, classes=3, **options):
    data = [(torch.randn(8, width), torch.randint(classes, (8,)))]
    return CurvatureProblem(model, F.cross_entropy, data, **options)


def names(problem):
    return [layer.name for layer in problem.layers()]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)  # defined first, used last
        self.first = nn.Linear(4, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(1, 6))
        self.masked = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        x = self.frozen(torch.tanh(self.first(x))) * self.scale
        return self.last(x @ (self.masked * (self.masked > 0)))


def test_the_rest_is_named_with_the_reason():
    problem = problem_of(Odd())
    assert names(problem) == ["first", "last"]
    skipped = problem.skipped()
    assert skipped.keys() == {"frozen", "unused", "scale", "masked"}
    assert "requires_grad_(True)" in skipped["frozen"]
    assert "no operation" in skipped["unused"]
    assert "mul" in skipped["scale"] and "mul" in skipped["masked"]
    assert sc.measure(problem, top_k=3).skipped == skipped
    with pytest.raises(sc.InputError, match="layer 'frozen': frozen"):
        problem.gradients(["frozen"])


def test_depthwise_convolutions_are_skipped_once():
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 3, groups=2), nn.Flatten())
    problem = problem_of(nn.Sequential(model, nn.Linear(4, 3)), width=8)
    assert names(problem) == ["1"]
    assert "2 groups are 1×3 matrices" in problem.skipped()["0.1"]


def test_colliding_names_stay_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ParameterDict({"w": torch.randn(4, 4), "w_weight": torch.randn(4, 3)})

        def forward(self, x):
            return x @ self.a["w"] @ self.a["w_weight"]

    assert names(problem_of(Twice())) == ["a.w", "a.w_weight"]


def function(model, **shapes):
    data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    params = {name.replace("__", "."): torch.randn(shape) for name, shape in shapes.items()}
    return CurvatureProblem(model, F.cross_entropy, data, params=params)


def test_parts_named_like_a_parameter_are_not_lost():
    def model(p, x):
        a, b = p["qkv.weight"].chunk(2)
        return F.linear(x, a) * F.linear(x, b) * (x @ p["qkv.part0.weight"])

    problem = function(model, qkv__weight=(6, 4), qkv__part0__weight=(4, 3))
    assert sorted(names(problem)) == ["qkv.part0", "qkv.part0_", "qkv.part1"]
    gradients = problem.gradients(names(problem))
    assert not torch.equal(gradients["qkv.part0"], gradients["qkv.part0_"])


def test_a_parameter_that_only_gives_the_type_is_not_consumed():
    problem = function(lambda p, x: (x.to(p["s"]).type_as(p["s"]) @ p["w"]) * p["s"],
                       s=(1, 3), w=(4, 3))  # fmt: skip
    assert names(problem) == ["w"] and "mul" in problem.skipped()["s"]


def test_constants_of_the_loss_are_no_layers():
    def model(p, x):
        with torch.no_grad():
            target = x @ p["teacher"]
        return x @ p["student"] - target - x @ p["stopped"].detach()

    problem = function(model, student=(4, 3), teacher=(4, 3), stopped=(4, 3))
    assert names(problem) == ["student"]
    assert "matmul under no_grad" in problem.skipped()["teacher"]
    assert "detach" in problem.skipped()["stopped"]


def test_a_gradient_that_is_rescaled_is_said():
    table = nn.Embedding(5, 4, scale_grad_by_freq=True)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(8, 3))
    problem = CurvatureProblem(
        model, F.cross_entropy, [(torch.randint(5, (12, 2)), torch.randint(3, (12,)))]
    )
    assert names(problem) == ["2"] and "scale_grad_by_freq" in problem.skipped()["0"]


def test_a_view_and_its_transpose_are_one_matrix():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return torch.tanh(x @ self.code.T) @ self.code

    problem = problem_of(Autoencoder(), classes=4)
    assert names(problem) == ["code"] and problem.layers()[0].shape == (3, 4)


def test_selection():
    model = nn.ModuleDict({"enc": nn.Linear(4, 4), "dec": nn.Linear(4, 4), "out": nn.Linear(4, 3)})
    problem = problem_of(
        model, forward=lambda m, b: (m["out"](m["dec"](m["enc"](b[0]))), b[1])
    )  # fmt: skip
    layers = problem.layers()

    def chosen(selection):
        return [layer.name for layer in sc.select_layers(layers, selection)]

    assert chosen("*") == ["enc", "dec", "out"]
    assert chosen("?ec") == ["dec"]
    assert chosen(["out", "e*"]) == ["enc", "out"]
    assert chosen(lambda layer: layer.shape[0] == 4) == ["enc", "dec"]
    bracketed = sc.LayerInfo("blocks[0]", "linear", (4, 4))
    assert sc.select_layers([bracketed], "blocks[0]") == [bracketed]
    for bad in ("encoder", ["enc", "nope"], [], lambda layer: False):
        with pytest.raises(sc.InputError, match="layers:"):
            chosen(bad)


def test_wrappers_are_looked_into():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert names(problem_of(nn.DataParallel(model))) == ["0", "2"]
    compiled = torch.compile(model, backend="eager")
    assert names(problem_of(compiled)) == ["0", "2"]


def test_compiled_parts_are_measured_as_written():
    """Compiled regions have no second derivative, so they run uncompiled."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    compiled = nn.Sequential(torch.compile(plain[0], backend="aot_eager"), *plain[1:])
    data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    expected, found = (
        list(sc.measure(CurvatureProblem(m, F.cross_entropy, data), top_k=4).values())
        for m in (plain, compiled)
    )
    assert [s.name for s in found] == ["0._orig_mod", "2"]
    assert list(found[0].curvature) == list(expected[0].curvature)


def test_reentrant_checkpointing_is_refused():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.c(checkpoint(self.b, self.a(x), use_reentrant=True))

    with pytest.raises(sc.InputError, match="use_reentrant=False"):
        problem_of(Checkpointed())


def test_scripted_models_are_refused():
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(sc.InputError, match="scripted"):
        problem_of(Scripted())


def test_checkpointing_and_weight_norm():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    model = Checkpointed().double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
    found = sc.measure(CurvatureProblem(model, F.cross_entropy, [(x, y)]), top_k=4)
    plain = sc.measure(CurvatureProblem(model.body, F.cross_entropy, [(x, y)]), top_k=4)
    torch.testing.assert_close(*(torch.from_numpy(r[n].curvature) for r, n in
                                 ((found, "body.0"), (plain, "0"))))  # fmt: skip
    # What is computed again during a backward pass uses the copies that are measured, too.
    wide = sc.measure(
        CurvatureProblem(model.float(), F.cross_entropy, [(x, y)], dtype=torch.float64), top_k=4
    )
    np.testing.assert_allclose(wide["body.0"].curvature, found["body.0"].curvature, rtol=1e-4)

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    problem = problem_of(nn.Sequential(normed, nn.Linear(6, 3)))
    assert names(problem) == ["1"]
    assert all("0.parametrizations" in name for name in problem.skipped())


@pytest.fixture
def networks(shared):
    path = shared / "data" / "reference_networks.py"
    if not path.is_file():
        pytest.skip("the shared networks are not there")
    spec = importlib.util.spec_from_file_location("reference_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, shared / "data"


def test_resnet20(networks):
    safetensors = pytest.importorskip("safetensors.torch")
    module, folder = networks
    params = safetensors.load_file(folder / "resnet20_cifar10.safetensors")
    problem = CurvatureProblem(
        lambda p, x: module.resnet_cifar(p)(x), F.cross_entropy,
        [(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))], params=params,
    )  # fmt: skip
    matrices = [n for n, p in params.items() if p.ndim >= 2]
    found = {layer.name: layer for layer in problem.layers()}
    assert len(found) == len(matrices) == 20 and not problem.skipped()
    assert next(iter(found)) == "conv1" and list(found)[-1] == "linear"
    assert found["layer3.0.conv1"].shape == (64, 288) and found["conv1"].kind == "conv2d"


def test_llama(networks):
    safetensors = pytest.importorskip("safetensors.torch")
    module, folder = networks
    params = safetensors.load_file(folder / "stories260k_llama.safetensors")
    tokens = torch.randint(512, (2, 8))
    problem = CurvatureProblem(
        lambda p, x: module.llama_260k(p)(x),
        lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten()),
        [(tokens[:, :-1], tokens[:, 1:])], params=params,
    )  # fmt: skip
    found = {layer.name: layer for layer in problem.layers()}
    assert len(found) == 36 and found["tok_embeddings"].kind == "embedding+linear"
    assert found["tok_embeddings"].shape == (512, 64)
    assert problem.skipped().keys() <= {"freqs_cos", "freqs_sin"}


def test_layers_know_their_parameter():
    def model(p, x):
        last, first = p["qkv.weight"][3:], p["qkv.weight"][:3]
        return F.linear(x, last) * F.linear(x, first) * (x @ p["up.kernel"])

    problem = function(model, qkv__weight=(6, 4), up__kernel=(4, 3))
    assert {layer.name: (layer.parameter, layer.index) for layer in problem.layers()} == {
        "qkv.part0": ("qkv.weight", 1), "qkv.part1": ("qkv.weight", 0),
        "up.kernel": ("up.kernel", 0),
    }  # fmt: skip
    assert problem.layers()[0] == sc.LayerInfo("qkv.part0", "linear", (3, 4)), "as before 0.2"
