"""Which rule each parameter gets, on the usual families of networks and on odd ones."""

import pytest
import torch
from torch import nn
from trained_networks import GPT, ResNet, transposed

import spectral_core as sc
from spectral_adapters.routing.torch_modules import TYPE_ALPHAS
from spectral_adapters.routing.torch_parameters import RoutingTable, route_parameters
from spectral_adapters.torch_optim import SpectralNewton


def routes(model, overrides=None):
    return {route.name: route for route in route_parameters(model, overrides)}


def spectral(model, overrides=None):
    """Type and matrices of what T gets."""
    found = routes(model, overrides).items()
    return {n: (r.kind, r.matrices) for n, r in found if r.rule == "spectral"}


def test_resnet():
    model = ResNet()
    assert spectral(model) == {
        "conv1.weight": ("conv", "conv"),
        "layer1.0.conv1.weight": ("conv", "conv"),
        "layer1.0.conv2.weight": ("conv", "conv"),
        "layer1.1.conv1.weight": ("conv", "conv groups=2"),
        "layer1.1.conv2.weight": ("conv", "conv"),
        "layer2.0.conv1.weight": ("conv", "conv"),
        "layer2.0.conv2.weight": ("conv", "conv"),
        "layer2.0.downsample.0.weight": ("conv", "conv"),
        "up.weight": ("conv", "conv-transpose groups=2"),
    }
    table = routes(model)
    assert set(table) == dict(model.named_parameters()).keys()
    assert table["fc.weight"].reason == "output head: named 'fc'"
    assert table["fc.bias"].reason == "bias"
    assert table["bn1.weight"].reason == "norm: BatchNorm2d"
    assert table["depthwise.weight"].reason == "its matrices are 1×9"


def test_transformer_encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    block = {
        "self_attn.in_proj_weight": ("attention", "qkv"),
        "self_attn.out_proj.weight": ("attention", "matrix"),
        "linear1.weight": ("mlp-up", "matrix"),
        "linear2.weight": ("mlp-down", "matrix"),
    }
    bare = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    expected = {f"layers.{i}.{name}": what for i in range(2) for name, what in block.items()}
    assert spectral(bare) == expected
    model = nn.Sequential(nn.Embedding(10, 16), bare, nn.Linear(16, 10))
    assert spectral(model) == {f"1.{name}": what for name, what in expected.items()}
    assert routes(model)["2.weight"].reason == "output head: the last Linear"
    assert routes(model)["0.weight"].reason == "embedding: Embedding"


@pytest.mark.parametrize("layer", ["linear", "Conv1D"])
def test_gpt(layer):
    model = GPT(layer=transposed) if layer == "Conv1D" else GPT()
    fused = "matrix columns=3" if layer == "Conv1D" else "matrix rows=3"
    block = {
        "attn.c_attn.weight": ("attention", fused),
        "attn.c_proj.weight": ("attention", "matrix"),
        "mlp.c_fc.weight": ("mlp-up", "matrix"),
        "mlp.c_proj.weight": ("mlp-down", "matrix"),
    }
    assert spectral(model) == {f"h.{i}.{n}": w for i in range(2) for n, w in block.items()}
    assert routes(model)["wte.weight"].reason == "tied: also lm_head.weight"
    untied = routes(GPT(tied=False))
    assert untied["lm_head.weight"].reason == "output head: named 'lm_head'"
    assert untied["wte.weight"].rule == untied["wpe.weight"].rule == "adamw"


def test_names_of_other_families():
    class Layer(nn.Module):  # as Llama, ViT of timm and BERT name theirs
        def __init__(self):
            super().__init__()
            self.num_heads, self.num_kv_heads = 4, 2
            self.qkv_proj = nn.Linear(16, 32)
            self.self_attn = nn.ModuleDict(
                {"q_proj": nn.Linear(16, 16), "o_proj": nn.Linear(16, 16)}
            )
            self.mlp = nn.ModuleDict(
                {"gate_proj": nn.Linear(16, 40), "down_proj": nn.Linear(40, 16)}
            )
            self.ffn = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 16))
            self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(16, 64)})
            self.output = nn.ModuleDict({"dense": nn.Linear(64, 16)})
            self.attention = nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(16, 16)})})

    model = nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()]), "score": nn.Linear(16, 3)})
    found = {n.removeprefix("layers.1."): w for n, w in spectral(model).items() if ".1." in n}
    assert found == {
        "qkv_proj.weight": ("attention", "matrix rows=16,8,8"),
        "self_attn.q_proj.weight": ("attention", "matrix"),
        "self_attn.o_proj.weight": ("attention", "matrix"),
        "mlp.gate_proj.weight": ("mlp-up", "matrix"),
        "mlp.down_proj.weight": ("mlp-down", "matrix"),
        "ffn.0.weight": ("mlp-up", "matrix"),
        "ffn.2.weight": ("mlp-down", "matrix"),
        "fc1.weight": ("mlp-up", "matrix"),
        "fc2.weight": ("mlp-down", "matrix"),
        "up.weight": ("mlp-up", "matrix"),
        "down.weight": ("mlp-down", "matrix"),
        "intermediate.dense.weight": ("mlp-up", "matrix"),
        "output.dense.weight": ("mlp-down", "matrix"),
        "attention.output.dense.weight": ("attention", "matrix"),
    }
    assert routes(model)["score.weight"].reason == "output head: named 'score'"


def test_fused_projections_of_unknown_parts_are_taken_whole():
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"in_proj": nn.Linear(16, 70)}), "head": nn.Linear(4, 4)}
    )
    found = routes(model)["a.in_proj.weight"]
    assert found.matrices == "matrix" and "taken whole" in found.reason
    model["a"] = nn.ModuleDict({"query_key_value": nn.Linear(16, 48)})
    assert "interleaved" in routes(model)["a.query_key_value.weight"].reason
    model["a"] = nn.ModuleDict({"qkv": nn.Linear(16, 24)})
    assert routes(model)["a.qkv.weight"].matrices == "matrix rows=16,4,4"


def test_a_model_names_its_head_itself():
    class Timm(nn.Sequential):
        def get_classifier(self):
            return self[0], self[1]

    model = Timm(nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 4))
    assert list(spectral(model)) == ["2.weight"]
    assert routes(model)["1.weight"].reason == "output head: get_classifier()"

    class Transformers(nn.Sequential):
        def get_output_embeddings(self):
            return self[0]

    assert list(spectral(Transformers(nn.Linear(4, 9), nn.Linear(4, 4)))) == ["1.weight"]


def test_a_sequential_classifier_has_its_last_layer_as_head():
    model = nn.ModuleDict({
        "features": nn.Sequential(nn.Conv2d(3, 8, 3)),
        "classifier": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
    })  # fmt: skip
    assert list(spectral(model)) == ["features.0.weight", "classifier.0.weight"]


def test_parameters_of_their_own():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 9, 8))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.experts_up = nn.Parameter(torch.zeros(4, 8, 6))
            self.mixing = nn.Parameter(torch.zeros(8, 5))
            self.scale = nn.Parameter(torch.zeros(()))
            self.column = nn.Parameter(torch.zeros(8, 1))
            self.grid = nn.Parameter(torch.zeros(2, 3, 4, 5))
            self.rnn = nn.LSTM(8, 4, proj_size=2)
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 4)})
            self.head = nn.Linear(8, 2)

    model = Odd()
    assert spectral(model) == {
        "experts_up": ("linear", "stack"),
        "mixing": ("linear", "matrix"),
        "rnn.weight_ih_l0": ("linear", "matrix rows=4"),
        "rnn.weight_hh_l0": ("linear", "matrix rows=4"),
        "rnn.weight_hr_l0": ("linear", "matrix"),
        "patch_embed.proj.weight": ("conv", "conv"),
    }
    found = routes(model)
    assert "embedding" in found["pos_embed"].reason and "embedding" in found["cls_token"].reason
    assert found["column"].reason == "its matrices are 8×1"
    assert "route=" in found["grid"].reason and found["scale"].reason == "a number"
    with pytest.raises(sc.InputError, match=r"'grid' of shape \(2, 3, 4, 5\)"):
        routes(model, {"grid": "spectral"})
    assert spectral(model, {"grid": {"matrices": "stack"}})["grid"] == ("linear", "stack")


def test_frozen_parameters_are_left_out():
    model = ResNet()
    model.conv1.weight.requires_grad_(False)
    optimizer = SpectralNewton(model)
    rows = {row["name"]: row for row in optimizer.routing_table()}
    assert rows["conv1.weight"]["rule"] == "left out" and "frozen" in rows["conv1.weight"]["reason"]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(list(model.parameters())) - 1
    assert all(p is not model.conv1.weight for p in held)


def test_a_module_used_twice_is_not_tied():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "head": nn.Linear(4, 2)})
    assert list(spectral(model)) == ["a.weight"]
    assert list(spectral(model, {"b.*": {"alpha": 1.0}})) == ["a.weight"]


def test_overrides():
    model = GPT(tied=False)
    found = routes(
        model,
        {
            "lm_head.weight": "spectral",
            "h.0.attn.*": "adamw",
            "h.1.mlp.c_fc.weight": {"alpha": 1.5, "matrices": "matrix rows=4", "lr": 0.5},
            "wte.*": {"lr": 0.25},
            "h.1.*": "spectral",
        },
    )
    assert found["lm_head.weight"].rule == "spectral"
    assert found["h.0.attn.c_attn.weight"].rule == "adamw"
    assert found["h.1.ln_1.weight"].rule == "adamw", "a vector cannot be spectral"
    up = found["h.1.mlp.c_fc.weight"]
    assert (up.alpha, up.matrices, up.options) == (1.5, "matrix rows=4", {"lr": 0.5})
    assert found["wte.weight"].rule == "adamw" and found["wte.weight"].options == {"lr": 0.25}
    optimizer = SpectralNewton(model, lr=0.1, route={"wte.*": {"lr": 0.25}})
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    assert rates["wte.weight"] == 0.25 and rates["wpe.weight"] == rates["ln_f.bias"] == 0.1


@pytest.mark.parametrize(
    ("route", "said"),
    [({"nothing.*": "adamw"}, r"\['nothing.\*'\] match no parameter"),
     ({"*": "muon"}, "route: 'muon' for '\\*'"), ({"*": {"rule": "muon"}}, "rule 'muon'"),
     ({"h.0.mlp.c_fc.weight": {"matrices": "qkv"}}, "64 rows"),
     ({"h.0.mlp.c_fc.weight": {"alpha": 5}}, "alpha of 'h.0.mlp.c_fc.weight': 5")],
)  # fmt: skip
def test_overrides_that_cannot_be_followed(route, said):
    with pytest.raises(sc.InputError, match=said):
        SpectralNewton(GPT(), route=route)


def test_wrappers_leave_names_alone():
    plain = spectral(GPT())
    assert spectral(torch.compile(GPT(), backend="eager")) == plain
    assert spectral(nn.DataParallel(GPT())) == plain


def test_the_table():
    model = ResNet()
    optimizer = SpectralNewton(model, alpha={"conv": 1.5, "layer2.*": 1.8})
    rows = optimizer.routing_table()
    assert [row["name"] for row in rows] == [n for n, _ in model.named_parameters()]
    assert set(rows[0]) == {"name", "shape", "rule", "alpha", "type", "matrices", "reason"}
    by_name = {row["name"]: row for row in rows}
    assert by_name["conv1.weight"]["alpha"] == 1.5
    assert "α given for type 'conv'" in by_name["conv1.weight"]["reason"]
    assert by_name["layer2.0.conv1.weight"]["alpha"] == 1.8
    assert by_name["fc.weight"]["alpha"] is None
    text = str(optimizer.routing)
    assert isinstance(optimizer.routing, RoutingTable) and len(text.splitlines()) == len(rows) + 2
    assert "layer1.1.conv1.weight" in text and "conv groups=2" in text


def test_alphas_by_type_are_those_of_the_theory():
    assert TYPE_ALPHAS["conv"] == 2.0 and 1.0 <= TYPE_ALPHAS["attention"] <= 1.4
    assert TYPE_ALPHAS["mlp-up"] == 0.8 and TYPE_ALPHAS["mlp-down"] == 1.15
    rows = {
        row["name"]: row["alpha"] for row in SpectralNewton(GPT(), alpha="per-type").routing_table()
    }
    assert rows["h.0.mlp.c_fc.weight"] == 0.8 and rows["h.0.mlp.c_proj.weight"] == 1.15


@pytest.mark.parametrize(
    ("alpha", "said"),
    [(5.0, "alpha: 5.0"), (-1, "alpha: -1"), ("per-layer", "'per-layer' is unknown"),
     ({"convolution": 2.0}, "no layer type"), ({"conv": 9}, "alpha\\['conv'\\]: 9")],
)  # fmt: skip
def test_alphas_that_are_none(alpha, said):
    with pytest.raises(sc.InputError, match=said):
        SpectralNewton(ResNet(), alpha=alpha)
