"""What processes of one run tell each other about their data, on a board that is a dict."""

import threading
import warnings

import pytest

from spectral_core.curvature import processes
from spectral_core.curvature.processes import Board, OtherData, gather


class Run:
    """Processes that share a store."""

    def __init__(self, size, noun="rank"):
        self.size, self.noun, self.store = size, noun, {}

    def board(self, rank):
        return Board(self.noun, rank, self.size, self.store.__setitem__, self.store.get)


class Process:
    """Measures, in its own memory, problems of a model."""

    def __init__(self, run, rank, monkeypatch):
        self.board, self.patch, self.made = run.board(rank), monkeypatch, type(processes._made)()

    def problem(self, loss, n_terms=100, model="a"):
        self.patch.setattr(processes, "_made", self.made)
        return OtherData(self.board, lambda: model, loss, n_terms)


@pytest.fixture
def pair(monkeypatch):
    run = Run(2)
    return [Process(run, rank, monkeypatch) for rank in range(2)]


def said(others):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        others.look()
    assert all(warning.filename == __file__ for warning in caught), "the line that looks is named"
    return [str(warning.message) for warning in caught]


def test_ranks_with_other_data_are_told_once_each(pair):
    first, second = pair[0].problem(0.5, 120), pair[1].problem(0.625, 37)
    assert said(second) == [
        "batches: rank 1 of 2 measures what it is given as if it were the whole, and rank 0 holds "
        "other data of the same model (loss 0.625 of 37 terms here, 0.5 of 120 terms there). Give "
        "every rank the same batches, or measure on one rank with all of them. If each is to "
        "report its own part, filter this warning."
    ]
    assert len(said(first)) == 1 and said(first) == said(second) == []


def test_the_first_is_told_when_it_looks_again(pair):
    first = pair[0].problem(0.5)
    assert said(first) == []
    second = pair[1].problem(0.75)
    assert len(said(first)) == len(said(second)) == 1


@pytest.mark.parametrize(
    "other",
    [{"loss": 0.5}, {"loss": 0.5 * (1 + 5e-6)}, {"loss": 0.7, "model": "b"}],
    ids=["same data", "rounding of another device", "another model"],
)
def test_what_is_no_other_data(pair, other):
    found = [pair[0].problem(0.5), pair[1].problem(**other)]
    assert [said(one) for one in found] == [[], []]


def test_a_number_of_terms_that_is_not_known_is_not_told(pair):
    first, second = pair[0].problem(0.5, None), pair[1].problem(0.625, 37)
    for others, seen in ((first, "loss 0.5 here, 0.625 of 37 terms there"),
                         (second, "loss 0.625 of 37 terms here, 0.5 there")):  # fmt: skip
        (told,) = said(others)
        assert f"({seen})" in told


@pytest.mark.parametrize("other", [(0.5, 101), (0.5 * (1 + 2e-5), 100), (0.5, None)])
def test_what_is(pair, other):
    found = [pair[0].problem(0.5), pair[1].problem(*other)]
    assert [len(said(one)) for one in found] == [1, 1]


def test_several_problems_of_one_model_are_compared_in_their_order(pair):
    train = [process.problem(0.5) for process in pair]
    test = [process.problem(0.75, 40) for process in pair]
    assert [said(one) for one in train + test] == [[]] * 4


def test_one_process_alone_says_nothing(pair):
    assert said(pair[0].problem(0.5)) == []
    assert said(OtherData(None, lambda: pytest.fail("not needed"), 0.5, 100)) == []


def test_a_store_that_takes_no_notes():
    def refuse(key, note):
        raise RuntimeError("not implemented\nhere")

    board = Board("process", 0, 3, refuse, lambda key: None)
    with pytest.warns(UserWarning, match=r"process 0 of 3 .* \(RuntimeError: not implemented\)"):
        others = OtherData(board, lambda: "a", 0.5, None)
    assert said(others) == []


def test_notes_are_waited_for_and_no_longer_than_patience():
    run, found = Run(3), {}

    def leave(rank):
        found[rank] = gather(run.board(rank), "key", f"note {rank}", 30.0)

    threads = [threading.Thread(target=leave, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert list(found.values()) == [{0: "note 0", 1: "note 1", 2: "note 2"}] * 3
    assert gather(run.board(1), "other", "alone", 0.05) == {1: "alone"}
