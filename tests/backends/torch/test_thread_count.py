"""Operations run on as many threads as their work is worth, and nothing of it stays behind."""

import os
import sys
import threading

import pytest
import torch
from torch import nn

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.instruments.threads import WORK_PER_THREAD, threads_for


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "work, expected",
    [(0, 1), (WORK_PER_THREAD, 1), (2.5 * WORK_PER_THREAD, 2), (1e30, 4), (float("inf"), 4)],
)
def test_threads_follow_the_work_and_are_put_back(four_threads, work, expected):
    with threads_for(work):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_threads_are_put_back_after_an_error(four_threads):
    with pytest.raises(KeyboardInterrupt), threads_for(0):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="waiting is bounded under Linux alone")
@pytest.mark.parametrize("end", [None, ValueError])
def test_teams_that_sleep_exceed_the_cores_and_end(end, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)))
    torch.set_num_threads(2)
    count = threading.active_count()
    try:
        with threads_for(1e30):
            # Three cores: one team of two that works, and two that sleep, are four threads.
            assert threading.active_count() - count == 2
            if end:
                raise end
    except ValueError:
        assert end is ValueError
    finally:
        torch.set_num_threads(before)
    assert threading.active_count() == count


class Spy(nn.Module):
    """Keeps how many threads each forward pass runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(torch.get_num_threads())
        return self.last(torch.relu(self.first(x)))


def test_a_small_model_is_measured_on_one_thread(four_threads):
    model = Spy()
    batches = [(torch.randn(16, 6), torch.randint(5, (16,)))]
    problem = CurvatureProblem(model, nn.CrossEntropyLoss(), batches)
    model.seen.clear()
    sc.measure(problem, top_k=3, decompose=True, progress=False)
    assert model.seen and set(model.seen) == {1}
    assert torch.get_num_threads() == 4


def test_a_model_with_large_operations_keeps_its_threads(four_threads):
    model = Spy()
    batches = [(torch.randn(16, 6), torch.randint(5, (16,)))]
    problem = CurvatureProblem(model, nn.CrossEntropyLoss(), batches)
    problem._objective.work_of_operation = 3 * WORK_PER_THREAD
    model.seen.clear()
    problem.gradients(["first"])
    assert set(model.seen) == {3}
