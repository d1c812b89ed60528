"""Two measurements at once give what each gives alone; nothing that belongs to both is mixed up."""

import random
import threading
import warnings

import numpy as np
import pytest
import torch
from test_side_effects import assert_same, snapshot
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spectral_core as sc
from spectral_backends.numpy import CurvatureProblem as ArrayProblem
from spectral_backends.numpy import DenseNetwork
from spectral_backends.torch import CurvatureProblem


class Net(nn.Module):
    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.drop = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(dropout)
        self.middle, self.last, self.cached = nn.Linear(8, 8), nn.Linear(8, 4), None

    def forward(self, x):
        self.cached = x
        x = torch.tanh(self.norm(self.first(x)))
        return self.last(self.drop(torch.tanh(self.middle(x))))


def loader():
    torch.manual_seed(3)
    data = TensorDataset(torch.randn(48, 5, dtype=torch.float64), torch.randint(4, (48,)))
    return DataLoader(data, batch_size=16, generator=torch.Generator())


def model(seed=0, dropout=0.0):
    made = Net(seed, dropout).double()
    return made.train() if dropout else made.eval()


def report(network, batches, engine="auto", **options):
    problem = CurvatureProblem(network, F.cross_entropy, batches, **options)
    return sc.measure(problem, top_k=4, engine=engine, decompose=engine == "auto").to_dict()


def together(*calls):
    """Run calls in threads that start at once, and return what each returned."""
    results, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(number, call):
        barrier.wait()
        try:
            results[number] = call()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(i, c), daemon=True) for i, c in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("engine", ["auto", "double-backward"])
def test_two_of_one_model(engine):
    network, batches = model(), loader()
    expected = report(network, batches, engine)
    before = snapshot(network, batches)
    found = together(*[lambda: report(network, batches, engine)] * 3)
    assert all(one == expected for one in found)
    assert_same(before, snapshot(network, batches))


def test_two_models_with_random_layers():
    """Each is the function that its own seed fixes."""
    networks = [model(seed, dropout=0.3) for seed in (1, 2, 3)]

    def call(network, seed):
        return lambda: report(network, loader(), seed=seed, check_deterministic=False)

    torch.manual_seed(5)
    expected = [call(network, 11 * i)() for i, network in enumerate(networks)]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    python_state = random.getstate()
    batches = [loader() for _ in networks]  # which seed the generator
    torch.set_rng_state(state)
    found = together(*[
        lambda n=n, s=11 * i, b=b: report(n, b, seed=s, check_deterministic=False)
        for i, (n, b) in enumerate(zip(networks, batches, strict=True))
    ])  # fmt: skip
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_settings_of_the_process_are_as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled()
    flash = torch.backends.cuda.flash_sdp_enabled()
    together(*[lambda seed=seed: report(model(seed), loader_once) for seed in range(3)])
    assert before == (
        torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled(),
    )  # fmt: skip
    assert torch.backends.cuda.flash_sdp_enabled() == flash


loader_once = [(torch.linspace(-1, 1, 80).double().reshape(16, 5).sin(), torch.arange(16) % 4)]


def test_filters_of_warnings_are_as_before():
    """The complex step makes errors of a warning meanwhile."""
    rng = np.random.default_rng(0)
    network = DenseNetwork((5, 9, 6))
    data = [(rng.standard_normal((40, 5)), rng.integers(0, 6, 40))]

    def call():
        problem = ArrayProblem(network.gradient, network.init(), data)
        return sc.measure(problem, top_k=4).to_dict()

    expected, before = call(), list(warnings.filters)
    assert together(call, call, call) == [expected] * 3
    assert warnings.filters == before


def test_one_journal_for_two(tmp_path):
    network, journal = model(), tmp_path / "run.journal"

    def call():
        problem = CurvatureProblem(network, F.cross_entropy, loader_once)
        return sc.measure(problem, top_k=4, engine="double-backward", resume=journal).to_dict()

    alone = CurvatureProblem(network, F.cross_entropy, loader_once)
    expected = sc.measure(alone, top_k=4, engine="double-backward").to_dict()
    assert together(call, call) == [expected] * 2 and call() == expected
