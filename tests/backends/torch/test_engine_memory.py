"""What a sweep of tangents holds at one time, against its budget."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from engine_helpers import by_engine
from factor_helpers import along
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.engines.forward_mode.tangent_pass import TangentPass
from spectral_backends.torch.instruments.allocation import AllocationPeak


def test_nothing_hangs_on_what_lives_on():
    """The model's weights are seen in every measurement."""
    weight = torch.ones(4, 4)
    with AllocationPeak() as peak:
        assert (weight @ weight).sum() == 64
    assert peak.bytes > 0
    gone = weakref.ref(peak)
    del peak
    gc.collect()
    assert gone() is None


def test_the_peak_of_what_tensors_hold():
    unit = 1000 * 8
    there = torch.zeros(1000, dtype=torch.float64)
    with AllocationPeak() as peak:
        a = there + 1
        view = a[:10]  # no memory of its own
        a.add_(1)
        assert peak.bytes == unit
        b = a + 1
        c = b + 1
        assert peak.bytes == 3 * unit
        del b, c
        gc.collect()
        d = a + 1
        assert peak.bytes == 3 * unit  # room was given back
        e, f = torch.cat([d, d]), there.exp()
        assert peak.bytes == (1 + 1 + 2 + 1) * unit
        del a
        assert view.sum() > 0  # its memory lives as long as a view of it
        g = there + 1
        assert peak.bytes >= 6 * unit
    assert peak.bytes < 7 * unit and len(e) + len(f) + len(g) == 4000


@pytest.mark.parametrize("budget", [2**16, 2**20, 2**22])
def test_a_sweep_keeps_the_budget(budget, monkeypatch):
    """What tensors hold at one time, measured; one direction goes in any case."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(32 * 16, 10)).eval()
    data = [(torch.randn(8, 16, 32), torch.randint(10, (8,)))]
    problem = CurvatureProblem(model, F.cross_entropy, data, memory_budget=budget)
    seen = []
    sweep = TangentPass._sweep

    def measured(self, made, chunk):
        with AllocationPeak() as peak:
            sweep(self, made, chunk)
        seen.append((sum(part.stop - part.start for _, part in chunk), peak.bytes))

    monkeypatch.setattr(TangentPass, "_sweep", measured)
    names = [layer.name for layer in problem.layers()]
    found = by_engine(problem, {n: along(problem, n, 9) for n in names}, engine="tangents")
    assert len(found) == len(names)
    assert all(held <= budget for count, held in seen if count > 1)
    assert (max(count for count, _ in seen) == 1) == (budget == 2**16)
    if budget == 2**22:  # and it is used
        assert max(held for _, held in seen) > budget / 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_the_process():
    """Kernels and the allocator take their part too: within twice the budget, and with it small."""
    script = """
import sys
import weakref
import torch
from torch import nn
from torch.nn import functional as F
from spectral_backends.torch import CurvatureProblem

torch.manual_seed(0)
block = nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True)
model = nn.Sequential(block, nn.Flatten(), nn.Linear(128 * 64, 10)).eval()
data = [(torch.randn(32, 64, 128), torch.randint(10, (32,)))]
budget = int(sys.argv[1]) * 2**20
problem = CurvatureProblem(model, F.cross_entropy, data, memory_budget=budget)
u, v = (torch.linalg.qr(torch.randn(128, 60))[0] for _ in range(2))


def measure(count):
    given = {"0.self_attn.in_proj.q": (u[:, :count], v[:, :count])}
    list(problem.layer_curvatures(given, engine="tangents"))
    # Not ru_maxrss: in it counts what the process held which started this one.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 2**10


print(-measure(1) + measure(60))
"""
    grown = {}
    for budget in (1, 256):
        command = [sys.executable, "-c", script, str(budget)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[budget] = float(done.stdout)
    assert grown[1] < 64 < grown[256] < 2 * 256
