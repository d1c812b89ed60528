"""Float32 is multiplied in float32, whatever the process uses to train faster."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem

CUDA, CUDNN, CPU = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
KINDS = {
    "cuda.matmul": CUDA.matmul, "cudnn.conv": CUDNN.conv, "cudnn.rnn": CUDNN.rnn,
    "mkldnn.matmul": CPU.matmul, "mkldnn.conv": CPU.conv, "mkldnn.rnn": CPU.rnn,
}  # fmt: skip


def seen():
    """What each kind of product is in; "none" leaves it to the precision for all, here none."""
    assert torch.backends.fp32_precision in ("none", "tf32")
    return {name: kind.fp32_precision for name, kind in KINDS.items()}


def by_older_settings():
    torch.set_float32_matmul_precision("medium")
    CUDNN.allow_tf32 = True


def by_newer_settings():
    CUDA.matmul.fp32_precision = CUDNN.conv.fp32_precision = "tf32"
    CPU.matmul.fp32_precision = CPU.conv.fp32_precision = "bf16"


def by_one_for_all():
    torch.backends.fp32_precision = "tf32"


@pytest.fixture
def as_before():
    everyone = [torch.backends, CUDNN, CPU, *KINDS.values()]
    before = [kind.fp32_precision for kind in everyone]
    older = CUDNN.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.fp32_precision = "none"
    CUDNN.allow_tf32 = older[0]
    torch.set_float32_matmul_precision(older[1])
    for kind, precision in zip(everyone, before, strict=True):
        kind.fp32_precision = precision


@pytest.mark.parametrize(
    "choose", [lambda: None, by_older_settings, by_newer_settings, by_one_for_all]
)
def test_no_product_is_rounded_and_the_settings_come_back(choose, as_before):
    found = []

    class Net(nn.Sequential):
        def forward(self, x):
            found.append(seen())
            with CUDNN.flags(enabled=True):  # reads the older settings, and sets them again
                pass
            return super().forward(x)

    torch.manual_seed(0)
    model = Net(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 4))
    problem = CurvatureProblem(model, F.cross_entropy, [(torch.randn(9, 40), torch.arange(9) % 4)])
    names = [layer.name for layer in problem.layers()]
    directions = {}
    for name, gradient in problem.gradients(names).items():
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        directions[name] = u[:, :3], vh.mT[:, :3]
    expected = [c.values for c in problem.layer_curvatures(directions)]
    choose()
    before, found[:] = seen(), []
    values = [c.values for c in problem.layer_curvatures(directions)]
    assert seen() == before
    assert found and all(kind in ("none", "ieee") for one in found for kind in one.values())
    if torch.backends.fp32_precision == "tf32":
        assert all(kind == "ieee" for one in found for kind in one.values())
    assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))
