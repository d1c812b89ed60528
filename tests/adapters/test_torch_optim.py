"""`SpectralNewton` for PyTorch: the textbook, AdamW bit for bit, and what torch expects of it."""

import copy
import io
import pickle

import muon_directions
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from trained_networks import GPT, ResNet, next_token_loss

import spectral_core as sc
from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem
from spectral_core.newton import batched
from spectral_core.newton.step import newton_step

TOKENS = torch.randint(20, (8, 8), generator=torch.Generator().manual_seed(0))


def gpt(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return GPT(**options).to(dtype)


def backward(model, tokens=TOKENS):
    model.zero_grad()
    loss = next_token_loss(model, tokens)
    loss.backward()
    return loss


def train(model, optimizer, steps):
    for _ in range(steps):
        backward(model)
        optimizer.step()


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def textbook(weight, gradient, momentum, lr, alpha, damping, beta, weight_decay):
    """One step of one matrix, Nesterov and "rms"."""
    momentum = beta * momentum + (1 - beta) * gradient
    u, s, vh = np.linalg.svd(beta * momentum + (1 - beta) * gradient, full_matrices=False)
    update = u @ np.diag(s / (s**alpha + damping * s[0] ** alpha)) @ vh
    update *= 0.2 / np.sqrt(np.mean(update**2))
    return weight - lr * (update + weight_decay * weight), momentum


def blocks(name, array):
    """The matrices of a parameter of the models here, as views."""
    if "c_attn" in name:
        return list(np.split(array, 3))
    if array.ndim > 2:
        parts = np.split(array, 2 if name.startswith(("layer1.1.conv1", "up")) else 1)
        if name.startswith("up"):
            return [np.moveaxis(part, 1, 0).reshape(part.shape[1], -1) for part in parts]
        return [part.reshape(len(part), -1) for part in parts]
    return [array]


def loss_of(model):
    if isinstance(model, GPT):
        return lambda: next_token_loss(model, TOKENS)
    torch.manual_seed(1)
    images = torch.randn(6, 3, 6, 6, dtype=torch.float64)
    return lambda: F.cross_entropy(model(images), torch.arange(6) % 5)


@pytest.mark.parametrize("network", ["gpt", "resnet"])
def test_fifty_steps_of_the_textbook_and_of_adamw(network):
    torch.manual_seed(0)
    model = GPT().double() if network == "gpt" else ResNet().double()
    # method "eigh" squares: rounding of 1e-14 or so a step
    optimizer = SpectralNewton(
        model, lr=0.003, damping=0.1, weight_decay=0.1, momentum=0.9, method="eigh",
        adamw={"lr": 0.002, "betas": (0.8, 0.99), "weight_decay": 0.05},
    )  # fmt: skip
    rows = {row["name"]: row for row in optimizer.routing_table()}
    twin = copy.deepcopy(model)
    rest = [p for n, p in twin.named_parameters() if rows[n]["rule"] == "adamw"]
    reference = torch.optim.AdamW(rest, lr=0.002, betas=(0.8, 0.99), weight_decay=0.05)
    held = {}
    loss = loss_of(model)
    for _ in range(50):
        model.zero_grad()
        loss().backward()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()  # both follow the same gradients
            if rows[name]["rule"] == "spectral":
                weights, gradients = (blocks(name, a.numpy(force=True)) for a in (q, q.grad))
                momenta = held.get(name, [np.zeros_like(w) for w in weights])
                pairs = [
                    textbook(w, g, m, 0.003, rows[name]["alpha"], 0.1, 0.9, 0.1)
                    for w, g, m in zip(weights, gradients, momenta, strict=True)
                ]
                held[name] = [m for _, m in pairs]
                write(name, q, [w for w, _ in pairs])
        optimizer.step()
        reference.step()
    moved = 0
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if rows[name]["rule"] == "adamw":
            assert torch.equal(p, q), name
        else:
            moved += 1
            assert torch.max(torch.abs(p - q)) < 1e-9, name
    assert moved == len(held) == (8 if network == "gpt" else 9)


def write(name, parameter, matrices):
    """Put matrices back into a parameter."""
    shape = tuple(parameter.shape)
    if name.startswith("up"):
        inputs = shape[0] // 2
        matrices = [np.moveaxis(m.reshape(shape[1], inputs, *shape[2:]), 0, 1) for m in matrices]
    whole = np.concatenate([m.reshape(-1) for m in matrices]).reshape(shape)
    parameter.data.copy_(torch.from_numpy(whole))


def test_training_lowers_the_loss():
    model = gpt()
    optimizer = SpectralNewton(model, lr=0.01)
    before = backward(model).item()
    train(model, optimizer, 60)
    assert backward(model).item() < 0.3 * before
    torch.manual_seed(0)
    net = ResNet()
    optimizer = SpectralNewton(net, lr=0.01, alpha=2.0)
    images, labels = torch.randn(20, 3, 6, 6), torch.arange(20) % 5
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(net(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_matrices_of_one_shape_and_exponent_are_one_call(monkeypatch):
    seen = []

    def spy(weight, *args, **options):
        seen.append(tuple(weight.shape))
        return newton_step(weight, *args, **options)

    model = gpt()
    optimizer = SpectralNewton(model)
    monkeypatch.setattr(batched, "newton_step", spy)
    train(model, optimizer, 1)
    # two blocks: q, k, v and the output projection of each are 16 × 16 with α = 1.2
    assert sorted(seen) == [(2, 16, 64), (2, 64, 16), (8, 16, 16)]
    seen.clear()
    monkeypatch.setattr(batched, "BATCH_ELEMENTS", 3 * 16 * 16)
    train(model, optimizer, 1)
    pieces = [(1, 16, 16), (1, 16, 64), (1, 64, 16), (3, 16, 16)]
    assert sorted(seen) == sorted(2 * pieces)


def test_batching_changes_nothing(monkeypatch):
    together, apart = gpt(torch.float64), gpt(torch.float64)
    train(together, SpectralNewton(together, lr=0.01), 5)
    monkeypatch.setattr(batched, "BATCH_ELEMENTS", 1)
    train(apart, SpectralNewton(apart, lr=0.01), 5)
    for p, q in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_to_the_bit(dtype):
    model = gpt(dtype)
    optimizer = SpectralNewton(model, lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(5):
        train(model, optimizer, 1)
        scheduler.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = gpt(dtype)
    other.load_state_dict(saved[0])
    resumed = SpectralNewton(other, lr=0.5)
    again = torch.optim.lr_scheduler.CosineAnnealingLR(resumed, 20)
    resumed.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    for _ in range(5):
        for net, opt, schedule in ((model, optimizer, scheduler), (other, resumed, again)):
            train(net, opt, 1)
            schedule.step()
    assert same(values(model), values(other))
    for p in model.parameters():
        if "momentum" in optimizer.state[p]:
            assert optimizer.state[p]["momentum"].dtype == torch.float32


def test_copies_and_pickles_continue():
    model = gpt()
    optimizer = SpectralNewton(model, lr=0.01)
    train(model, optimizer, 2)
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        net, opt = duplicate((model, optimizer))
        train(net, opt, 2)
        reference, ropt = copy.deepcopy((model, optimizer))
        train(reference, ropt, 2)
        assert same(values(net), values(reference))
        assert opt.routing_table() == optimizer.routing_table()


def test_gradients_are_left_alone_and_missing_ones_skipped():
    model = gpt()
    optimizer = SpectralNewton(model, lr=0.01, maximize=True)
    backward(model)
    model.h[0].attn.c_attn.weight.grad = None
    model.ln_f.bias.grad = None
    before, start = (
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        values(model),
    )
    optimizer.step()
    for name, p in model.named_parameters():
        if name in before:
            assert torch.equal(p.grad, before[name]) and not torch.equal(p, start[name])
        else:
            assert torch.equal(p, start[name]) and not optimizer.state[p]


def test_maximize_mirrors():
    down, up = gpt(torch.float64), gpt(torch.float64)
    one, two = SpectralNewton(down, lr=0.01), SpectralNewton(up, lr=0.01, maximize=True)
    for _ in range(3):
        backward(down)
        for p, q in zip(down.parameters(), up.parameters(), strict=True):
            q.grad = -p.grad
        one.step()
        two.step()
    assert same(values(down), values(up))


def test_a_matrix_with_a_bad_gradient_is_skipped_alone():
    model = gpt()
    optimizer = SpectralNewton(model, lr=0.01, weight_decay=0.1)
    train(model, optimizer, 2)
    backward(model)
    bad = model.h[0].attn.c_attn.weight
    bad.grad[17, 3] = float("nan")  # in the keys
    weight, momentum = bad.detach().clone(), optimizer.state[bad]["momentum"].clone()
    optimizer.step()
    keys = slice(16, 32)
    assert torch.equal(bad[keys], weight[keys])
    assert torch.equal(optimizer.state[bad]["momentum"][keys], momentum[keys])
    assert not torch.equal(bad[:16], weight[:16])
    assert all(torch.all(torch.isfinite(p)) for p in model.parameters())


@pytest.mark.parametrize(
    ("scale", "weight_decay", "steps"),
    [("rms", 0.0, 400), ("rms", 0.1, 20), ("spectral", 0.0, 20), ("none", 0.1, 20)],
)
def test_what_gets_zeros_for_a_gradient_stops(scale, weight_decay, steps):
    """An expert without tokens, `zero_grad(set_to_none=False)`: momentum decays, T is not of it."""
    torch.manual_seed(0)
    experts, plain = nn.Parameter(torch.randn(3, 6, 8)), nn.Parameter(torch.randn(6, 8))
    optimizer = SpectralNewton(
        [{"params": [experts], "matrices": "stack"}, {"params": [plain]}],
        lr=0.01, weight_decay=weight_decay, scale=scale,
    )  # fmt: skip
    for parameter in (experts, plain):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    start, moved = [p.detach().clone() for p in (experts, plain)], 0.0
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        experts.grad[1] = torch.randn(6, 8)
        before = experts.detach().clone()
        optimizer.step()
        moved += (experts[1] - before[1]).square().mean().sqrt().item()
    decayed = (1 - 0.01 * weight_decay) ** steps
    for one, two in ((experts[0], start[0][0]), (experts[2], start[0][2]), (plain, start[1])):
        assert torch.allclose(one, decayed * two, rtol=1e-3, atol=0)
        assert weight_decay or torch.equal(one, two)
    assert torch.all(optimizer.state[plain]["momentum"].abs() < max(1e-40, 0.95**steps))
    assert scale != "rms" or abs(moved / (0.01 * 0.2 * steps) - 1) < 0.01 + weight_decay


@pytest.mark.parametrize("block", ["queries", "group"])
def test_blocks_of_a_parameter_stop_by_themselves(block):
    torch.manual_seed(0)
    attention, kernel = nn.Linear(4, 12), nn.Conv2d(4, 6, 3, groups=2)
    weight, spec, rows = {
        "queries": (attention.weight, "qkv", slice(0, 4)),
        "group": (kernel.weight, "conv groups=2", slice(0, 3)),
    }[block]
    optimizer = SpectralNewton([{"params": [weight], "matrices": spec}], lr=0.01)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    start = weight.detach().clone()
    weight.grad[rows] = 0.0
    optimizer.step()
    assert torch.equal(weight[rows], start[rows])
    assert not torch.any(weight[rows.stop :] == start[rows.stop :])


def test_no_gradient_at_all_leaves_everything_as_ever():
    """None leaves a parameter alone in every optimizer of torch: no decay, and momentum stays."""
    weight = nn.Parameter(torch.randn(4, 6))
    optimizer = SpectralNewton([weight], lr=0.01, weight_decay=0.1)
    weight.grad = torch.randn(4, 6)
    optimizer.step()
    start, momentum = weight.detach().clone(), optimizer.state[weight]["momentum"].clone()
    weight.grad = None
    optimizer.step()
    assert torch.equal(weight, start) and torch.equal(optimizer.state[weight]["momentum"], momentum)


def test_closures():
    model, twin = gpt(), gpt()
    optimizer, other = SpectralNewton(model, lr=0.01), SpectralNewton(twin, lr=0.01)
    for _ in range(3):
        loss = optimizer.step(lambda: backward(model))
        expected = backward(twin)
        other.step()
        assert torch.equal(loss, expected)
    assert same(values(model), values(twin))


def test_schedulers_reach_all_groups():
    optimizer = SpectralNewton(gpt(), lr=0.1, adamw={"lr": 0.01})
    backward(gpt())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    schedule.step()
    assert [(g["rule"], g["lr"]) for g in optimizer.param_groups] == [
        ("spectral", 0.05),
        ("adamw", 0.005),
    ]
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_tensor_as_learning_rate(capturable):
    if capturable and not torch.cuda.is_available():
        pytest.skip("torch takes capturable parameters on accelerators alone")
    model, twin = gpt(torch.float64), gpt(torch.float64)
    rate = torch.tensor(0.01, dtype=torch.float64)
    optimizer = SpectralNewton(model, lr=rate, capturable=capturable)
    plain = SpectralNewton(twin, lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    other = torch.optim.lr_scheduler.ExponentialLR(plain, 0.5)
    for _ in range(3):
        train(model, optimizer, 1)
        train(twin, plain, 1)
        schedule.step()
        other.step()
    assert optimizer.param_groups[0]["lr"] is not optimizer.param_groups[1]["lr"]
    assert all(float(g["lr"]) == pytest.approx(0.00125) for g in optimizer.param_groups)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_grad_scaler_skips_and_scales():
    model, twin = gpt(), gpt()
    optimizer, plain = SpectralNewton(model, lr=0.01), SpectralNewton(twin, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for bad in (False, True, False):
        model.zero_grad()
        scaler.scale(next_token_loss(model, TOKENS)).backward()
        if bad:
            model.lm_head.weight.grad[0, 0] = float("inf")
        start = values(model)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert not torch.isfinite(norm) and same(start, values(model))
        else:
            backward(twin)
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_half_precision_keeps_momentum_in_float32():
    model = gpt(torch.bfloat16)
    optimizer = SpectralNewton(model, lr=0.01)
    train(model, optimizer, 2)
    momenta = [s["momentum"] for s in optimizer.state.values() if "momentum" in s]
    assert len(momenta) == 8 and all(m.dtype == torch.float32 for m in momenta)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_compiled_models_and_steps():
    model, twin = gpt(torch.float64), gpt(torch.float64)
    compiled = torch.compile(model, backend="eager")
    optimizer, plain = SpectralNewton(compiled, lr=0.01), SpectralNewton(twin, lr=0.01)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        model.zero_grad()
        next_token_loss(compiled, TOKENS).backward()
        step()
        train(twin, plain, 1)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        # Compiled, torch computes AdamW's 1 − β₂^t in float32, off by ε / (1 − β₂) in each step.
        assert torch.allclose(p, q, rtol=0, atol=3 * 0.01 * 1.2e-7 / (1 - 0.999))


def test_no_value_is_read_in_a_step():
    """On the meta device there are no values, so every `.item()` and branch on data would raise."""
    with torch.device("meta"):
        model = GPT()
    optimizer = SpectralNewton(model, lr=0.01, method="eigh")
    spectral = [g for g in optimizer.param_groups if g["rule"] == "spectral"]
    for group in spectral:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(optimizer.state[p]["momentum"].is_meta for g in spectral for p in g["params"])


def steps_along(make, gradients):
    """The steps that an optimizer makes, by gradient."""
    parameter = nn.Parameter(torch.zeros(gradients[0].shape))
    optimizer, found = make([parameter]), []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        found.append((parameter.detach() - before).numpy())
    return found


@pytest.mark.parametrize("shape", muon_directions.SHAPES)
def test_alpha_one_goes_where_muon_goes(shape):
    gradients = muon_directions.gradients(shape)
    ours = steps_along(lambda p: SpectralNewton(p, alpha=1.0, damping=1e-6), gradients)

    def cosines(**options):
        theirs = steps_along(lambda p: torch.optim.Muon(p, weight_decay=0.0, **options), gradients)
        return np.array([muon_directions.cosine(*pair) for pair in zip(ours, theirs, strict=True)])

    # Muon multiplies in bfloat16.
    assert (cosines(ns_coefficients=muon_directions.CONVERGENT, ns_steps=30) > 0.999).all()
    expected = muon_directions.by_definition(gradients)
    assert np.abs(cosines() - expected).max() < 5e-3 and (expected > 0.96).all()


# Parameter groups, as of any torch optimizer


def test_plain_parameters_are_split_by_shape():
    model = ResNet()
    optimizer = SpectralNewton(model.parameters(), alpha=1.5, lr=0.01)
    spectral, adamw = optimizer.param_groups
    assert (spectral["rule"], adamw["rule"]) == ("spectral", "adamw")
    assert spectral["alpha"] == 1.5
    thin = model.depthwise.weight  # without its module nobody knows of its groups
    assert all(p.ndim >= 2 for p in spectral["params"]) and any(
        p is thin for p in spectral["params"]
    )
    assert all(p.ndim == 1 for p in adamw["params"])
    loss_of(model.double())().backward()
    optimizer.step()


def test_a_thawed_parameter_can_be_added():
    model = gpt()
    model.h[0].mlp.c_fc.weight.requires_grad_(False)
    optimizer = SpectralNewton(model)
    model.h[0].mlp.c_fc.weight.requires_grad_(True)
    optimizer.add_param_group({"params": [("h.0.mlp.c_fc.weight", model.h[0].mlp.c_fc.weight)]})
    rows = {row["name"]: row for row in optimizer.routing_table()}
    assert len(rows) == len(list(model.parameters()))
    assert rows["h.0.mlp.c_fc.weight"]["rule"] == "spectral"
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [("again", model.h[0].mlp.c_fc.weight)]})


def test_groups_say_what_they_want():
    one, two, three = (nn.Parameter(torch.randn(6, 4)) for _ in range(3))
    optimizer = SpectralNewton(
        [
            {"params": [one], "alpha": 2.0, "matrices": "qkv", "scale": "spectral", "lr": 0.5},
            {"params": two, "rule": "adamw", "lr": 0.25},
            {"params": [three], "alpha": [0.5], "damping": 0.2},
        ],
        lr=0.125,
    )
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(3))]})
    rules = [(g["rule"], g["lr"]) for g in optimizer.param_groups]
    assert rules == [("spectral", 0.5), ("adamw", 0.25), ("spectral", 0.125), ("adamw", 0.125)]
    start = one.detach().clone()
    for p in (one, two, three):
        p.grad = torch.randn_like(p)
    optimizer.step()
    for part in (one - start).detach().split(2):
        assert torch.linalg.matrix_norm(part, 2) <= 0.5 * (1 + 1e-5)
    assert optimizer.routing_table()[0]["matrices"] == "qkv"


@pytest.mark.parametrize(
    ("given", "options", "kept"),
    [({"rule": "adamw"}, {}, {"rule": "adamw"}),
     ({"rule": "adamw", "alpha": 1.5}, {}, {"rule": "adamw"}),
     ({}, {}, {"rule": "spectral", "alpha": 2.0, "matrices": "matrix"}),
     ({}, {"alpha": 0.5}, {"rule": "spectral", "alpha": 0.5, "matrices": "matrix"}),
     ({"alpha": 1.5, "matrices": "qkv"}, {}, {"rule": "spectral", "alpha": 1.5, "matrices": "qkv"}),
     ({"rule": "spectral"}, {"alpha": "per-type"}, {"rule": "spectral", "alpha": 1.0}),
     ({"alpha": [], "matrices": []}, {}, {"rule": "spectral", "alpha": 1.0})],
)  # fmt: skip
def test_an_empty_group_keeps_what_it_was_given(given, options, kept):
    """As of a rank whose shard of a group is empty, and that may write the checkpoint."""
    weight = nn.Parameter(torch.eye(3))
    optimizer = SpectralNewton([{"params": [weight]}, {"params": [], "lr": 0.25} | given],
                               **options)  # fmt: skip
    empty = optimizer.param_groups[1]
    assert empty["params"] == [] and empty["lr"] == 0.25
    assert {key: empty.get(key) for key in kept} == kept
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[1]["rule"] == kept["rule"]


def test_blocks_of_several_shapes_find_their_place():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(12, 5, dtype=torch.float64)) for _ in range(2)]
    start = [w.numpy(force=True).copy() for w in weights]
    optimizer = SpectralNewton(
        [{"params": weights, "matrices": ["matrix rows=6,3,3", "matrix rows=3,6,3"]}],
        lr=0.1, alpha=1.3, damping=0.1, method="svd",
    )  # fmt: skip
    held = [np.zeros_like(w) for w in start]
    cuts = [(6, 9), (3, 9)]
    for _ in range(3):
        for i, w in enumerate(weights):
            w.grad = torch.randn_like(w)
            pairs = zip(
                *(np.split(a, cuts[i]) for a in (start[i], w.grad.numpy(), held[i])), strict=True
            )
            moved = [textbook(*pair, 0.1, 1.3, 0.1, 0.95, 0.0) for pair in pairs]
            start[i], held[i] = (np.concatenate(found) for found in zip(*moved, strict=True))
        optimizer.step()
    for w, expected in zip(weights, start, strict=True):
        assert np.allclose(w.numpy(force=True), expected, rtol=0, atol=1e-12)


def test_named_parameters_are_recognised_by_name():
    optimizer = SpectralNewton(gpt(tied=False).named_parameters(), alpha="per-type")
    rows = {row["name"]: row for row in optimizer.routing_table()}
    assert rows["h.0.mlp.c_fc.weight"]["alpha"] == 0.8
    assert rows["h.0.attn.c_attn.weight"]["matrices"] == "matrix rows=3"
    assert optimizer.param_groups[0]["param_names"][0] == "wte.weight"


@pytest.mark.parametrize(
    ("parameter", "said"),
    [(lambda: torch.zeros(3, 3, dtype=torch.complex64), "complex64"),
     (lambda: torch.eye(3).to_sparse(), "sparse")],
)  # fmt: skip
def test_parameters_that_are_no_dense_real_matrices(parameter, said):
    with pytest.raises(sc.InputError, match=said):
        SpectralNewton([parameter().requires_grad_()])


def test_distributed_tensors_are_refused_where_T_would_see_a_shard():
    distributed = pytest.importorskip("torch.distributed")
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        parameter = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh))
        with pytest.raises(sc.InputError, match="shard"):
            SpectralNewton([parameter])
        SpectralNewton([{"params": parameter, "rule": "adamw"}])
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].weight = parameter
        with pytest.raises(sc.InputError, match=r"0\.weight of shape \(4, 3\)"):
            SpectralNewton(model)
        SpectralNewton(model, route={"0.weight": "adamw"})
    finally:
        distributed.destroy_process_group()


def test_sparse_gradients_are_refused_with_a_remedy():
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = SpectralNewton(embedding)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(sc.InputError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [({"lr": -1.0}, sc.InputError, "lr: -1.0"), ({"momentum": 1.0}, sc.InputError, "beta: 1.0"),
     ({"damping": -1.0}, sc.InputError, "damping: -1.0"), ({"scale": "max"}, sc.InputError, "max"),
     ({"alpha": 2.0, "damping": 0.0}, sc.InputError, "damping: 0 with"),
     ({"method": "qr"}, sc.InputError, "qr"), ({"adamw": {"beta": 1}}, sc.InputError, "beta"),
     ({"adamw": {"betas": (2.0, 0.9)}}, ValueError, "beta"),
     ({"alpha": "auto"}, sc.InputError, "problem: alpha='auto' needs a function"),
     ({"alpha": "auto", "problem": print, "measure_every": 0}, sc.InputError, "measure_every: 0")],
)  # fmt: skip
def test_options_out_of_range(options, error, said):
    with pytest.raises(error, match=said):
        SpectralNewton(gpt(), **options)


def test_what_needs_a_model_says_so():
    parameters = list(gpt().parameters())
    for options in ({"alpha": "auto", "problem": print}, {"route": {"*": "adamw"}}):
        with pytest.raises(sc.InputError, match="model"):
            SpectralNewton(parameters, **options)
    with pytest.raises(sc.InputError, match="2 values for 1 parameters"):
        SpectralNewton([{"params": parameters[:1], "alpha": [1.0, 2.0]}])
    with pytest.raises(sc.InputError, match="rule: 'muon'"):
        SpectralNewton([{"params": parameters[:1], "rule": "muon"}])
    with pytest.raises(TypeError, match="ordered"):
        SpectralNewton([{"params": set(parameters)}])
    with pytest.raises(TypeError, match="only optimize Tensors"):
        SpectralNewton([1.0])


# α from measurements


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(24, 20),
        nn.ReLU(),
        nn.Linear(20, 30),
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(200, 12, generator=generator), torch.randint(30, (200,), generator=generator)


def problem_of(model):
    return lambda: CurvatureProblem(model, F.cross_entropy, [batch()])


def test_alpha_from_a_report(tmp_path):
    model = classifier().eval()
    report = sc.measure(problem_of(model)(), "[03]", top_k=12, progress=False)
    report.save(tmp_path / "run.json")
    for given in (report, tmp_path / "run.json", str(tmp_path / "run.json")):
        rows = {row["name"]: row for row in SpectralNewton(model, alpha=given).routing_table()}
        for layer in ("0", "3"):
            expected = min(max(report[layer].alpha.exponent, 0.0), 4.0)
            assert rows[f"{layer}.weight"]["alpha"] == pytest.approx(expected)
            assert "α measured" in rows[f"{layer}.weight"]["reason"]
    only = sc.measure(problem_of(model)(), "0", top_k=12, progress=False)
    rows = {row["name"]: row for row in SpectralNewton(model, alpha=only).routing_table()}
    assert rows["3.weight"]["alpha"] == 1.0
    assert "no such layer in the report" in rows["3.weight"]["reason"]


def test_alpha_of_several_matrices_is_their_mean():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(5 * 16, 12)).eval()
    data = [(torch.randn(64, 5, 16), torch.randint(12, (64,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data)
    report = sc.measure(problem, "0.*", top_k=10, curvature="ggn", progress=False)
    rows = {r["name"]: r for r in SpectralNewton(model, alpha=report).routing_table()}
    row = rows["0.self_attn.in_proj_weight"]
    fits = [report[f"0.self_attn.in_proj.{part}"].alpha.exponent for part in "qkv"]
    assert row["alpha"] == pytest.approx(np.mean(fits)) and "mean of 3 matrices" in row["reason"]
    assert rows["0.self_attn.out_proj.weight"]["alpha"] == pytest.approx(
        report["0.self_attn.out_proj"].alpha.exponent
    )


def test_what_a_report_does_not_know_falls_back_to_the_type():
    model = gpt().eval()
    problem = CurvatureProblem(
        model, None, [TOKENS], forward=next_token_loss, weight=lambda tokens: tokens[:, 1:].numel()
    )
    report = sc.measure(problem, "h.0.*", top_k=3, progress=False)
    wide = report["h.0.attn.c_proj"].alpha
    assert wide.reason or wide.interval[1] - wide.interval[0] > 2
    rows = {r["name"]: r for r in SpectralNewton(model, alpha=report).routing_table()}
    row = rows["h.0.attn.c_proj.weight"]
    assert row["alpha"] == 1.2 and "its fit says too little" in row["reason"]
    assert "no such layer in the report" in rows["h.1.mlp.c_fc.weight"]["reason"]


def test_alpha_measured_while_training():
    model = classifier().train()
    hook = model[0].register_forward_hook(lambda *a: None)
    optimizer = SpectralNewton(
        model, lr=0.01, alpha="auto", problem=problem_of(model), measure_every=3,
        measure_options={"top_k": 12},
    )  # fmt: skip
    x, y = batch()
    seen = []
    for i in range(7):
        torch.manual_seed(i)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        state = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(state, torch.get_rng_state())
        assert modes == [m.training for m in model.modules()]
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)
        )
        seen.append(copy.copy(optimizer.param_groups[0]["alpha"]))
    assert seen[0] == seen[1] == seen[2] and seen[3] == seen[5] and seen[0] != seen[3] != seen[6]
    expected = classifier().eval()
    report = sc.measure(problem_of(expected)(), "[03]", top_k=12, curvature="ggn", progress=False)
    assert seen[0] == pytest.approx([min(max(report[n].alpha.exponent, 0), 4) for n in "03"])
    assert "α measured" in optimizer.routing_table()[0]["reason"]
    assert list(model[0]._forward_hooks) == [hook.id]
    # A state continues with the measured α, and knows when the next is due.
    other = copy.deepcopy(model)
    resumed = SpectralNewton(
        other, alpha="auto", problem=problem_of(other), measure_every=3,
        measure_options={"top_k": 12},
    )  # fmt: skip
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, opt in ((model, optimizer), (other, resumed)):
        for i in range(4):
            torch.manual_seed(i)
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
    assert same(values(model), values(other))


def test_a_failed_measurement_keeps_alpha_and_warns():
    model = classifier()

    def broken():
        raise sc.InputError("batches: the loader is exhausted.")

    optimizer = SpectralNewton(model, alpha="auto", problem=broken)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    model.train()
    with pytest.warns(RuntimeWarning, match="the loader is exhausted"):
        optimizer.step()
    assert model.training and optimizer.param_groups[0]["alpha"] == 1.0
    assert "α kept" in optimizer.routing_table()[0]["reason"]


def test_products_in_bfloat16_stay_near_working_precision():
    working, low = gpt(), gpt()
    one = SpectralNewton(working, lr=0.01, damping=0.1)
    two = SpectralNewton(low, lr=0.01, damping=0.1, precision="bfloat16")
    before = values(low)
    backward(working)
    backward(low)
    one.step()
    two.step()
    matrices = [name for name, p in low.named_parameters() if "c_attn" in name and p.ndim == 2]
    assert matrices
    for name in matrices:
        expected = values(working)[name] - before[name]
        found = values(low)[name] - before[name]
        assert 0 < torch.linalg.norm(found - expected) <= 0.25 * torch.linalg.norm(expected)


def test_two_hundred_matrices_launch_what_one_launches():
    free = {"t", "transpose", "expand", "view", "_unsafe_view", "slice", "unsqueeze", "diagonal"}
    free |= {"empty_like", "select", "alias", "detach", "lift_fresh", "permute", "clone"}

    class Launches(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket.__name__ not in free
            return function(*args, **(kwargs or {}))

    counts = {}
    for number in (2, 200):
        parameters = [nn.Parameter(torch.randn(8, 8)) for _ in range(number)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = SpectralNewton(parameters, precision="float16")
        optimizer.step()  # makes the states and the constants
        with Launches() as launches:
            optimizer.step()
        counts[number] = launches.count
    assert counts[200] == counts[2] <= 80
