"""Ranks that train one model: they keep one α, and are told of what they measure apart."""

import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from side_by_side import run_side_by_side
from torch import nn

from spectral_adapters.torch_updates import replicas
from spectral_adapters.torch_updates.replicas import Replicas
from spectral_core.curvature.processes import Board

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available():
    pytest.skip("this build has no torch.distributed", allow_module_level=True)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks of gloo saw."""
    meet = tmp_path_factory.mktemp("ranks") / "store"
    script = Path(__file__).with_name("two_ranks.py")
    return run_side_by_side(script, [meet], GLOO_SOCKET_IFNAME="lo")


def seen(ranks, scene):
    return [rank[scene]["value"] for rank in ranks], [rank[scene]["said"] for rank in ranks]


def test_replicas_that_measure_own_batches_take_the_alpha_of_the_first(ranks):
    (one, two), said = seen(ranks, "own batches")
    assert one == two and "α measured" in one[2]
    for told in said:
        (text,) = [text for text in told if text.startswith("alpha")]
        assert "on rank 0" in text and "on rank 1" in text and "all take that of rank 0" in text
    assert any(text.startswith("batches: rank") for told in said for text in told)


def test_replicas_that_measure_the_same_batches_hear_nothing(ranks):
    (one, two), said = seen(ranks, "the same batches")
    assert one == two and said == [[], []]


def test_models_of_their_own_keep_their_alpha(ranks):
    (one, two), said = seen(ranks, "models of their own")
    assert one[0] != two[0] and one[1] != two[1] and said == [[], []]


def test_who_trains_longer_alone_waits_for_nobody(ranks):
    _, said = seen(ranks, "longer than the others")
    assert said == [[], []]


def test_measuring_own_batches_is_told(ranks):
    (one, two), said = seen(ranks, "measuring own batches")
    assert one != two
    for rank, told in enumerate(said):
        (text,) = told
        assert text.startswith(f"batches: rank {rank} of 2 measures what it is given as if it were")
        assert f"rank {1 - rank} holds other data of the same model (loss " in text


@pytest.mark.parametrize("what", ["the same batches", "a checkpoint each", "alone"])
def test_measuring_what_is_whole_is_not(ranks, what):
    assert seen(ranks, f"measuring {what}")[1] == [[], []]


def test_sharded_states_step_as_one_process(ranks):
    assert seen(ranks, "zero") == ([True, True], [[], []])


# What ranks agree on, on a board that is a dict


def agreed(monkeypatch, found, parameters, patience=30.0, answering=None):
    """What each of several ranks takes, and is told."""
    store, results, size = {}, {}, len(found)
    local = threading.local()
    monkeypatch.setattr(replicas, "PATIENCE", patience)
    monkeypatch.setattr(
        replicas,
        "find_board",
        lambda: Board("rank", local.rank, size, store.__setitem__, store.get),
    )
    monkeypatch.setattr(replicas, "_exchanges", iter([0] * size))
    said = {rank: [] for rank in range(size)}
    monkeypatch.setattr(warnings, "warn", lambda text, *a, **k: said[local.rank].append(text))

    def run(rank):
        local.rank = rank
        results[rank] = Replicas().agree(found[rank], parameters[rank])

    threads = [threading.Thread(target=run, args=(r,)) for r in answering or range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results, said


def weight(seed, gradient=None):
    parameter = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))
    if gradient is not None:
        parameter.grad = torch.full((3, 4), float(gradient))
    return parameter


def test_only_what_is_shared_is_agreed_on(monkeypatch):
    """As with experts of their own beside layers that all hold."""
    found = [{"all": (1.0, "zero"), "own": (2.0, "")}, {"all": (1.5, "one"), "own": (2.5, "")}]
    parameters = [{"all": weight(0, 1), "own": weight(1 + rank, 1)} for rank in range(2)]
    results, said = agreed(monkeypatch, found, parameters)
    assert results[0] == {"all": (1.0, "zero"), "own": (2.0, "")}
    assert results[1] == {"all": (1.0, "zero"), "own": (2.5, "")}
    assert [len(told) for told in said.values()] == [1, 1] and "'all'" in said[1][0]


@pytest.mark.parametrize("gradient", [2, None])
def test_other_gradients_are_other_steps(monkeypatch, gradient):
    """Ranks that begin alike and train each on its own."""
    found = [{"w": (1.0, "")}, {"w": (1.5, "")}]
    parameters = [{"w": weight(0, 1)}, {"w": weight(0, gradient)}]
    assert agreed(monkeypatch, found, parameters) == (dict(enumerate(found)), {0: [], 1: []})


def test_rounding_is_taken_over_without_a_word(monkeypatch):
    found = [{"w": (1.0, "")}, {"w": (1.0 + 1e-6, "")}]
    parameters = [{"w": weight(0)}, {"w": weight(0)}]
    results, said = agreed(monkeypatch, found, parameters)
    assert results == {0: found[0], 1: found[0]} and said == {0: [], 1: []}


def test_a_measurement_that_failed_on_one_rank_failed_on_all_or_on_none(monkeypatch):
    parameters = [{"w": weight(0)}, {"w": weight(0)}]
    for found in ([{"w": (None, "lost")}, {"w": (1.5, "")}], [{"w": (1.5, "")}, {"w": (None, "")}]):
        results, said = agreed(monkeypatch, found, parameters)
        assert results == {0: found[0], 1: found[0]}
        assert "not measured" in said[0][0] and "1.5" in said[1][0]


def test_a_rank_that_does_not_answer_is_named(monkeypatch):
    found, parameters = [{"w": (1.0, "")}] * 3, [{"w": weight(0)}] * 3
    results, said = agreed(monkeypatch, found, parameters, patience=0.1, answering=[0, 2])
    assert results == {0: found[0], 2: found[0]}
    assert "(no answer in 0.1 s of: 1)" in said[0][0] and "drift apart" in said[0][0]


def test_a_rank_that_never_answers_is_waited_for_once_and_a_late_one_again(monkeypatch):
    """As processes that make data, or one that was slow once."""
    store, numbers = {}, iter([0, 1, 2, 3])
    monkeypatch.setattr(replicas, "_exchanges", numbers)
    monkeypatch.setattr(replicas, "PATIENCE", 0.2)
    board = Board("rank", 0, 2, store.__setitem__, store.get)
    monkeypatch.setattr(replicas, "find_board", lambda: board)
    ranks, waited = Replicas(), []
    for late in (False, False, True):
        if late:
            store["alpha/1/1"] = "{}"
        begun = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert ranks.agree({"w": (1.0, "")}, {"w": weight(0)}) == {"w": (1.0, "")}
        waited.append((time.monotonic() - begun > 0.15, len(caught)))
    assert waited == [(True, 1), (False, 0), (True, 1)]


def test_without_a_store_it_is_said(monkeypatch):
    def refuse(key, note):
        raise RuntimeError("no store\nat all")

    monkeypatch.setattr(replicas, "find_board", lambda: Board("rank", 0, 2, refuse, {}.get))
    with pytest.warns(UserWarning, match=r"could not be compared .* \(no store\)"):
        assert Replicas().agree({"w": (1.0, "")}, {"w": weight(0)}) == {"w": (1.0, "")}


def test_one_process_asks_nobody():
    assert Replicas().agree({"w": (1.0, "")}, {}) == {"w": (1.0, "")}
