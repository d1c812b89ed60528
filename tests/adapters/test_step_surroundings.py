"""A step of an optimizer does not depend on what the process has chosen for training."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trained_networks import GPT, next_token_loss

from spectral_adapters.torch_optim import SpectralNewton
from spectral_adapters.torch_updates.exact_steps import exact_steps
from spectral_backends.torch import CurvatureProblem

TOKENS = torch.randint(20, (8, 8), generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def changed(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def products(precision):
    before = torch.get_float32_matmul_precision()
    return changed(
        lambda: torch.set_float32_matmul_precision(precision),
        lambda: torch.set_float32_matmul_precision(before),
    )


def default_dtype(dtype):
    before = torch.get_default_dtype()
    return changed(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(before))


AROUND = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "medium": lambda: products("medium"),
    "deterministic": lambda: changed(
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
}


def gpt(dtype):
    torch.manual_seed(0)
    return GPT().to(dtype)


def trained(around, dtype, **options):
    """Three steps, with gradients that saw nothing of what is around them."""
    model = gpt(dtype)
    optimizer = SpectralNewton(model, lr=0.01, weight_decay=0.1, **options)
    for _ in range(3):
        model.zero_grad()
        next_token_loss(model, TOKENS).backward()
        with around():
            optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_have_the_same_bits(around, dtype):
    expected = trained(contextlib.nullcontext, dtype)
    found = trained(AROUND[around], dtype)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"alpha": "per-type"}, {"method": "svd"}, {"method": "eigh"}, {"scale": "spectral"},
     {"precision": "bfloat16", "damping": 0.1}],
    ids=str,
)  # fmt: skip
def test_other_options_inside_an_autocast(options):
    expected = trained(contextlib.nullcontext, torch.float32, **options)
    found = trained(AROUND["autocast to bfloat16"], torch.float32, **options)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_closure_runs_in_what_surrounds_the_step():
    model = nn.Linear(6, 6)
    optimizer = SpectralNewton([model.weight], lr=0.01)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(model(torch.ones(2, 6)).dtype)
        loss = model(torch.ones(2, 6)).float().sum()
        loss.backward()
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(closure)
        assert model(torch.ones(2, 6)).dtype == torch.bfloat16
    assert seen == [torch.bfloat16]


def test_alpha_is_measured_as_without_an_autocast():
    def alphas(around):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 30), nn.Linear(30, 30))
        x, y = torch.randn(100, 12), torch.arange(100) % 30
        optimizer = SpectralNewton(
            model, alpha="auto", measure_options={"top_k": 10},
            problem=lambda: CurvatureProblem(model, F.cross_entropy, [(x, y)]),
        )  # fmt: skip
        F.cross_entropy(model(x), y).backward()
        with around():
            optimizer.step()
        return optimizer.param_groups[0]["alpha"]

    assert alphas(AROUND["autocast to bfloat16"]) == alphas(contextlib.nullcontext)


MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def settings():
    kinds = (*MATMULS, torch.backends, torch.backends.cudnn.conv)
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "disagree"
    return [kind.fp32_precision for kind in kinds], older


NEWER = {
    "products on a GPU": (torch.backends.cuda.matmul, "tf32"),
    "products on a CPU": (torch.backends.mkldnn.matmul, "bf16"),
    "all": (torch.backends, "tf32"),
}


@pytest.mark.parametrize("chosen", ["high", "medium", *NEWER])
def test_products_are_in_float32_inside_and_as_chosen_outside(chosen, monkeypatch):
    """PyTorch has an older and a newer setting, and reading the older raises if they disagree."""
    seen = []
    model = nn.Linear(6, 6)
    optimizer = SpectralNewton([model.weight], lr=0.01)
    model.weight.grad = torch.ones_like(model.weight)
    monkeypatch.setattr(
        "spectral_adapters.torch_updates.batched_step.spectral_newton_steps",
        lambda weights, gradients, momenta, **_: (
            seen.append(settings()) or (list(weights), list(momenta))
        ),
    )
    for kind in MATMULS:
        kind.fp32_precision = "none"  # as in a fresh process
    before = settings()
    with contextlib.ExitStack() as stack:
        if chosen in NEWER:
            kind, precision = NEWER[chosen]
            held = kind.fp32_precision
            stack.callback(setattr, kind, "fp32_precision", held)
            kind.fp32_precision = precision
        else:
            stack.enter_context(products(chosen))
        outside = settings()
        optimizer.step()
        assert settings() == outside != before
        torch.backends.fp32_precision = "none"
        if chosen == "all":  # what follows that setting still does
            assert settings() == before
    (inside,) = seen
    assert inside[1] == "highest" and inside[0][:2] == ["ieee", "ieee"]


def test_steps_at_once_leave_the_setting_as_it_was():
    start, found = threading.Barrier(4), []

    def step():
        start.wait()
        for _ in range(50):
            with exact_steps({"cpu"}):
                found.append(torch.get_float32_matmul_precision())
            torch.zeros(1)

    with products("high"):
        threads = [threading.Thread(target=step) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_float32_matmul_precision() == "high"
    assert found == 200 * ["highest"]


def test_a_loaded_state_does_not_see_defaults():
    model = gpt(torch.bfloat16)
    optimizer = SpectralNewton(model, lr=0.01)
    next_token_loss(model, TOKENS).backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.device("meta"), default_dtype(torch.float16):
        optimizer.load_state_dict(saved)
    for entry, kept in zip(optimizer.state.values(), saved["state"].values(), strict=True):
        assert entry.keys() == kept.keys()
        for name, value in entry.items():
            assert value.dtype == kept[name].dtype and torch.equal(value, kept[name])
