"""An update with its gradients and learning rate left open: what a recording holds, and when not.

Without a GPU a call stands in for the replay. tests/gpu/test_torch_device.py records for good.
"""

import copy

import pytest
import torch
from torch import nn

from spectral_adapters.torch_optim import RECORDINGS, SpectralNewton
from spectral_adapters.torch_updates import recorded_update
from spectral_core import InputError


@pytest.fixture
def recordings(monkeypatch):
    """How often something was recorded; a replay runs it."""
    made = []

    def record(device, warm_up, run):
        warm_up()
        made.append(run)
        return run

    monkeypatch.setattr(recorded_update, "record", record)
    monkeypatch.setattr(recorded_update, "_one_gpu", lambda parameters: parameters[0].device)
    return made


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)).double()


def steps(model, optimizer, count, before=lambda step: None):
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        before(step)
        for parameter in model.parameters():  # other tensors in every step
            parameter.grad = torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def both(options, count=6, before=lambda optimizer, step: None):
    model, other = network(), network()
    found = []
    for own, more in ((model, {"cuda_graph": True}), (other, {})):
        optimizer = SpectralNewton(own, lr=0.01, **options, **more)
        found.append(steps(own, optimizer, count, lambda step, o=optimizer: before(o, step)))
    return found


def same(found):
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.5, "damping": 0.1, "weight_decay": 0.1}, {"maximize": True},
     {"lr": torch.tensor(0.02, dtype=torch.float64)}],
    ids=str,
)  # fmt: skip
def test_recorded_once_and_equal_to_what_is_not(recordings, options):
    model, other, found = network(), network(), []
    for own, more in ((model, {"cuda_graph": True}), (other, {})):
        found.append(steps(own, SpectralNewton(own, **{"lr": 0.01} | options, **more), 6))
    assert len(recordings) == 1 and same(found)


def test_a_schedule_is_followed_without_a_new_recording(recordings):
    def schedule(optimizer, step):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)

    assert same(both({}, before=schedule)) and len(recordings) == 1


@pytest.mark.parametrize(
    "change", [{"damping": 0.2}, {"weight_decay": 0.3}, {"alpha": 1.0}, {"momentum": 0.5}], ids=str
)
def test_recorded_anew_where_an_option_changes(recordings, change):
    def at_three(optimizer, step):
        if step == 3:
            for group in optimizer.param_groups:
                group.update(change)

    assert same(both({"damping": 0.1}, before=at_three)) and len(recordings) == 2


def test_recorded_anew_where_tensors_are_replaced(recordings):
    def reload(optimizer, step):
        if step == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if step == 4:
            weight = optimizer.param_groups[0]["params"][0]
            weight.data = weight.data.clone()

    assert same(both({}, before=reload)) and len(recordings) == 3


def test_recorded_for_each_set_of_parameters_that_have_gradients(recordings):
    model = network()
    optimizer = SpectralNewton(model, lr=0.01, cuda_graph=True)
    for step in range(6):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = None if step % 2 and i < 2 else torch.ones_like(parameter)
        optimizer.step()
    assert len(recordings) == 2


def test_few_recordings_are_kept(recordings):
    """Each holds memory of the GPU; experts that are chosen at random have many sets of gradients."""
    model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(7))  # the last is the head
    optimizer = SpectralNewton(model, lr=0.01, cuda_graph=True)

    def step(chosen):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.ones_like(parameter) if chosen >> i & 1 else None
        optimizer.step()
        return len(recordings)

    for chosen in range(1, 64):
        step(chosen)
        step(1)  # what is used again and again is kept
        assert len(optimizer._recorded) <= RECORDINGS * len(optimizer.param_groups)
    assert len(recordings) == 63
    assert step(62) == 63 and step(2) == 64  # the last one is there, an old one no more


def test_copies_record_for_themselves(recordings):
    model = network()
    optimizer = SpectralNewton(model, lr=0.01, cuda_graph=True)
    steps(model, optimizer, 1)
    again = copy.deepcopy(optimizer)
    assert not again._recorded and optimizer._recorded


def test_states_saved_before_it_was_there_load(recordings):
    model = network()
    optimizer = SpectralNewton(model, lr=0.01)
    steps(model, optimizer, 1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["cuda_graph"]
    optimizer.load_state_dict(state)
    steps(model, optimizer, 1)
    assert not recordings


def test_what_is_not_on_a_gpu_is_refused():
    model = network()
    optimizer = SpectralNewton(model, lr=0.01, cuda_graph=True)
    with pytest.raises(InputError, match=r"cuda_graph: the parameters of a group are on cpu"):
        steps(model, optimizer, 1)


def test_what_cannot_be_recorded_says_why(recordings, monkeypatch):
    def fails(device, warm_up, run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recorded_update, "record", fails)
    model = network()
    with pytest.raises(InputError, match=r"method 'svd' cannot be recorded \(operation not"):
        steps(model, SpectralNewton(model, lr=0.01, method="svd", cuda_graph=True), 1)
