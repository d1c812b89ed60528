"""A saved state: what hooks make of it is what is loaded, and parameters are known by their names."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as distributed

import spectral_core as sc
from spectral_adapters.torch_optim import SpectralNewton

NAMES = ("up", "mid", "down", "last")


class Net(nn.Module):
    """Layers of one shape, made in any order; T's α and matrices differ from layer to layer."""

    def __init__(self, order=NAMES, dtype=torch.float32):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(6, 6, dtype=dtype))
        for i, name in enumerate(NAMES):
            values = torch.randn(6, 6, generator=torch.Generator().manual_seed(i))
            getattr(self, name).weight.data.copy_(values)
            getattr(self, name).bias.data.fill_(0.1)


ROUTE = {"up.weight": {"matrices": "matrix rows=2"}, "*.weight": {"matrices": "matrix"}}
ALPHAS = {"up.weight": 2.0, "mid.weight": 1.0, "down.weight": 0.5, "last.weight": 1.5}


def optimizer_of(model, **options):
    return SpectralNewton(model, **{"lr": 0.01, "alpha": ALPHAS, "route": ROUTE} | options)


def train(model, optimizer, steps=3, seed=0):
    """Gradients by name, whatever the order."""
    parameters = dict(model.named_parameters())
    for step in range(steps):
        for i, name in enumerate(sorted(parameters)):
            generator = torch.Generator().manual_seed(1000 * seed + 10 * step + i)
            p = parameters[name]
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def trained(order=NAMES, dtype=torch.float32, **options):
    model = Net(order, dtype)
    optimizer = optimizer_of(model, **options)
    train(model, optimizer)
    return model, optimizer


def momenta(model, optimizer):
    return {
        n: optimizer.state[p]["momentum"]
        for n, p in model.named_parameters()
        if "momentum" in optimizer.state[p]
    }


def continues(one, other):
    """Whether two pairs of model and optimizer go the same way to the bit."""
    other[0].load_state_dict(one[0].state_dict())
    for model, optimizer in (one, other):
        train(model, optimizer, 3, seed=1)
    found = dict(other[0].named_parameters())
    return all(torch.equal(p, found[name]) for name, p in one[0].named_parameters())


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# What hooks make of a state


def test_momentum_that_a_hook_zeroes_is_zero():
    _, optimizer = trained()

    def zero(_, state):
        state = copy.deepcopy(state)
        for entry in state["state"].values():
            if "momentum" in entry:
                entry["momentum"].zero_()
        return state

    other = Net()
    loaded = optimizer_of(other)
    loaded.register_load_state_dict_pre_hook(zero)
    loaded.load_state_dict(optimizer.state_dict())
    assert len(momenta(other, loaded)) == 4
    assert all(torch.all(momentum == 0) for momentum in momenta(other, loaded).values())
    assert all(torch.any(e["momentum"] != 0) for e in optimizer.state.values() if "momentum" in e)


def test_a_hook_that_unwraps():
    one, other = trained(), trained()
    other[1].register_load_state_dict_pre_hook(lambda _, state: state["opt"])
    other[1].load_state_dict({"opt": through_a_file(one[1].state_dict()), "epoch": 3})
    assert continues(one, other)


def test_a_hook_that_drops_a_state_and_hooks_in_place():
    one, optimizer = trained()

    def drop(_, state):  # without a result
        state["state"] = {k: v for k, v in state["state"].items() if k != 1}

    other = Net()
    loaded = optimizer_of(other)
    loaded.register_load_state_dict_pre_hook(drop)
    loaded.load_state_dict(optimizer.state_dict())
    expected, found = momenta(one, optimizer), momenta(other, loaded)
    assert set(expected) - set(found) == {"mid.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    train(other, loaded)


def test_hooks_that_rename_what_was_renamed():
    one, other = trained(), trained()
    saved = copy.deepcopy(one[1].state_dict())
    for group in saved["param_groups"]:
        group["param_names"] = ["old." + name for name in group["param_names"]]
        for option in ("alpha", "matrices"):
            if option in group:
                group[option] = [("old." + name, value) for name, value in group[option]]
    with pytest.raises(sc.InputError, match=r"'old.up.weight' for 'up.weight'.*pre-hook"):
        other[1].load_state_dict(saved)

    def rename(_, state):
        for group in state["param_groups"]:
            group["param_names"] = [name.removeprefix("old.") for name in group["param_names"]]

    other[1].register_load_state_dict_pre_hook(rename)
    with pytest.raises(sc.InputError, match=r"'alpha' of the state is of \['old.up.weight'"):
        other[1].load_state_dict(copy.deepcopy(saved))

    def rename_pairs(_, state):
        for group in state["param_groups"]:
            for option in {"alpha", "matrices"} & set(group):
                group[option] = [(n.removeprefix("old."), value) for n, value in group[option]]

    other[1].register_load_state_dict_pre_hook(rename_pairs)
    other[1].load_state_dict(copy.deepcopy(saved))
    assert continues(one, other)


def test_a_hook_that_deletes_the_names_loads_by_position():
    one, other = trained(), trained()
    saved = copy.deepcopy(one[1].state_dict())
    for group in saved["param_groups"]:
        group["param_names"] = ["old." + name for name in group["param_names"]]

    def forget(_, state):
        for group in state["param_groups"]:
            del group["param_names"]

    other[1].register_load_state_dict_pre_hook(forget)
    other[1].load_state_dict(saved)
    assert other[1].param_groups[0]["param_names"] == [f"{name}.weight" for name in NAMES]
    assert continues(one, other)


def test_post_hooks_see_what_was_loaded():
    model, optimizer = trained(dtype=torch.bfloat16)
    seen = []
    other = Net(dtype=torch.bfloat16)
    loaded = optimizer_of(other)
    loaded.register_load_state_dict_post_hook(lambda o: seen.append(copy.deepcopy(o.state)))
    loaded.register_load_state_dict_post_hook(lambda o: o.state.clear())
    loaded.load_state_dict(optimizer.state_dict())
    kept = [entry["momentum"] for entry in seen[0].values() if "momentum" in entry]
    assert [m.dtype for m in kept] == 4 * [torch.float32] and not loaded.state
    assert all(
        torch.equal(a, b) for a, b in zip(kept, momenta(model, optimizer).values(), strict=True)
    )
    assert len(loaded._optimizer_load_state_dict_pre_hooks) == 0
    assert len(loaded._optimizer_load_state_dict_post_hooks) == 2


# By name


def official_recipe(optimizer, state_dict):
    """Names that are looked up, as PyTorch's documentation of `torch.optim` does it."""
    adapted = copy.deepcopy(optimizer.state_dict())
    own = optimizer.state_dict()
    for i, group in enumerate(state_dict["param_groups"]):
        for key, value in group.items():
            if key not in ("params", "param_names"):
                adapted["param_groups"][i][key] = value
        for key, name in zip(
            own["param_groups"][i]["params"], own["param_groups"][i]["param_names"], strict=True
        ):
            saved = group["params"][group["param_names"].index(name)]
            if saved in state_dict["state"]:
                adapted["state"][key] = copy.deepcopy(state_dict["state"][saved])
    return adapted


@pytest.mark.parametrize("hook", [official_recipe, None], ids=["recipe", "own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_in_another_order(hook, dtype):
    one = trained(dtype=dtype)
    other = Net(NAMES[::-1], dtype)
    loaded = optimizer_of(other, lr=0.5)
    if hook:
        loaded.register_load_state_dict_pre_hook(hook)
    loaded.load_state_dict(through_a_file(one[1].state_dict()))
    rows = {row["name"]: (row["alpha"], row["matrices"]) for row in one[1].routing_table()}
    assert rows == {r["name"]: (r["alpha"], r["matrices"]) for r in loaded.routing_table()}
    assert loaded.param_groups[0]["param_names"] == [f"{name}.weight" for name in NAMES[::-1]]
    assert momenta(other, loaded)["up.weight"].dtype == torch.float32
    assert continues(one, (other, loaded))


def test_groups_in_another_order():
    def groups(model):
        return [
            {"params": [(f"{name}.weight", getattr(model, name).weight)], "alpha": 1.0 + i}
            for i, name in enumerate(NAMES)
        ] + [{"params": [(n, p) for n, p in model.named_parameters() if "bias" in n]}]

    one, other = Net(), Net()
    optimizer, loaded = SpectralNewton(groups(one)), SpectralNewton(groups(other)[::-1])
    train(one, optimizer)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [g.get("alpha") for g in loaded.param_groups] == [None, 4.0, 3.0, 2.0, 1.0]
    assert continues((one, optimizer), (other, loaded))


def test_groups_that_hold_others_are_refused():
    one, other = Net(), Net()
    parts = [[(f"{n}.weight", getattr(m, n).weight) for n in NAMES] for m in (one, other)]
    optimizer = SpectralNewton([{"params": parts[0][:2]}, {"params": parts[0][2:]}])
    loaded = SpectralNewton([{"params": parts[1][::2]}, {"params": parts[1][1::2]}])
    with pytest.raises(sc.InputError, match=r"\['up.weight', 'down.weight'\] are one group"):
        loaded.load_state_dict(optimizer.state_dict())


def test_names_that_a_hook_may_have_left_behind_are_refused():
    """The states moved and the names not, or neither: nobody can tell, so nothing is guessed."""
    _, optimizer = trained()
    loaded = optimizer_of(Net(NAMES[::-1]))
    loaded.register_load_state_dict_pre_hook(lambda o, state: None)
    before = copy.deepcopy(loaded.state_dict())
    with pytest.raises(sc.InputError, match="'param_names' of the groups too"):
        loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state_dict() == before  # nothing is half loaded


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_wrappers_of_a_model_do_not_count(wrapper):
    one, other = trained(), trained()
    saved = copy.deepcopy(one[1].state_dict())
    for group in saved["param_groups"]:
        group["param_names"] = [wrapper + name for name in group["param_names"]]
        for option in {"alpha", "matrices"} & set(group):
            group[option] = [(wrapper + name, value) for name, value in group[option]]
    other[1].load_state_dict(saved)
    assert other[1].param_groups[0]["param_names"][0] == "up.weight"
    assert continues(one, other)


def test_states_without_names_load_by_position():
    one, other = Net(), Net()
    optimizer, loaded = SpectralNewton(one.parameters()), SpectralNewton(other)
    train(one, optimizer)
    saved = through_a_file(optimizer.state_dict())
    assert "param_names" not in saved["param_groups"][0]
    with pytest.raises(ValueError, match="group"):  # the last layer is the head of a model
        loaded.load_state_dict(saved)
    loaded = SpectralNewton(list(other.named_parameters()), alpha=1.0)
    loaded.load_state_dict(saved)
    assert continues((one, optimizer), (other, loaded))


def test_states_of_earlier_versions():
    """Values for each parameter were plain lists, in the order of the parameters."""
    one = trained()
    saved = one[1].state_dict()
    for group in saved["param_groups"]:
        for option in {"alpha", "matrices"} & set(group):
            group[option] = [value for _, value in group[option]]
        del group["cuda_graph"], group["precision"]
    for order in (NAMES, NAMES[::-1]):
        other = trained(order)
        other[1].load_state_dict(copy.deepcopy(saved))
        assert continues(copy.deepcopy(one), other)


# What does not fit


def test_shapes_of_another_model_are_refused():
    one, other = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)
    for rule, key in (("spectral", "momentum"), ("adamw", "exp_avg")):
        optimizer, loaded = (
            SpectralNewton(
                [{"params": [m.weight], "rule": rule}] if rule == "adamw" else [m.weight]
            )
            for m in (one, other)
        )
        train(one, optimizer)
        with pytest.raises(sc.InputError, match=rf"'{key}' of parameter 0 is \(4, 6\).*\(6, 4\)"):
            loaded.load_state_dict(optimizer.state_dict())
        assert not loaded.state


@pytest.mark.parametrize(
    ("state", "said"),
    [({"opt": {}}, r"'state' and 'param_groups', this one \['opt'\]"),
     (torch.optim.AdamW(nn.Linear(6, 6).parameters()).state_dict(), "group 0 .* no 'rule'")],
)  # fmt: skip
def test_what_is_no_state_of_this_optimizer(state, said):
    with pytest.raises(sc.InputError, match=said):
        SpectralNewton(Net()).load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "parameter", "kept"),
    [(torch.float32, torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16, torch.float32),
     (torch.float32, torch.float64, torch.float64), (torch.float64, torch.float32, torch.float64),
     (torch.float16, torch.float16, torch.float32)],
)  # fmt: skip
def test_momentum_is_never_narrowed(saved, parameter, kept):
    _, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        if "momentum" in entry:
            entry["momentum"] = entry["momentum"].to(saved)
    other = Net(dtype=parameter)
    loaded = optimizer_of(other)
    loaded.load_state_dict(state)
    given = [entry for entry in state["state"].values() if "momentum" in entry]
    for momentum, entry in zip(momenta(other, loaded).values(), given, strict=True):
        assert momentum.dtype == kept and torch.equal(momentum, entry["momentum"].to(kept))
        assert momentum.data_ptr() != entry["momentum"].data_ptr()


# PyTorch's distributed checkpoints


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids=["as saved", "reversed"])
def test_distributed_checkpoints_of_one_process(flatten, dtype, order):
    options = distributed.StateDictOptions(flatten_optimizer_state_dict=flatten)
    one = trained(dtype=dtype)
    saved = through_a_file(distributed.get_optimizer_state_dict(*one, options=options))
    other = Net(order, dtype)
    loaded = optimizer_of(other)
    distributed.set_optimizer_state_dict(other, loaded, saved, options=options)
    rows = {row["name"]: (row["alpha"], row["matrices"]) for row in one[1].routing_table()}
    assert rows == {r["name"]: (r["alpha"], r["matrices"]) for r in loaded.routing_table()}
    assert momenta(other, loaded)["up.weight"].dtype == torch.float32
    assert continues(one, (other, loaded))
