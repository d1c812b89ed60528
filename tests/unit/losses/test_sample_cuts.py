"""Along which axes batches are cut, which of them is cut, and what is said where none can be."""

from spectral_core.losses.sample_cuts import Cut, Cutter, SampleAxis, cut_batches, find_axes
from spectral_core.losses.terms import BatchLoss, LossTerms


def fail(*_):
    raise AssertionError("no data of any batch is needed")


class Recorder:
    """A backend whose data are numbers of batches, and what was asked of it."""

    def __init__(self, parts=None, joined=None):
        self.loaded, self.cut, self._parts, self._joined = [], [], parts, joined

    def cuts(self, *shapes):
        cutter = Cutter(self._data, self._part, self._join, self._loss)
        return cut_batches([batch(*each) for each in shapes], cutter)

    def _data(self, index):
        self.loaded.append(index)
        return index

    def _part(self, data, axis, start, stop):
        self.cut.append((data, axis, start, stop))
        if self._parts:
            raise self._parts.pop(0)
        return data

    def _join(self, data, other, axis):
        if self._joined:
            raise self._joined
        return (data, other)

    def _loss(self, data):
        return BatchLoss(1.0, (LossTerms(1.0, "mean"),), None)


def batch(*shapes, count=1.0):
    return BatchLoss(1.0, (LossTerms(count, "mean"),), None, list(shapes))


def of_one(*shapes):
    return [(shape,) for shape in shapes]


def test_a_sample_axis_of_one_batch_and_arrays_that_are_not_cut():
    axis = SampleAxis((0, None, 1), ((1, 2), (1, 1), (5, 9)), (4, 2))
    assert axis.of(1) == SampleAxis((0, None, 1), ((2,), (1,), (9,)), (2,))
    assert axis.of(0).slices(1, 0, 2) is None
    assert axis.of(1).slices(2, 1, 2) == (1, slice(9, 18))


def test_the_ways_to_cut_along_an_axis_in_their_order():
    """Anywhere; the first axes alone; and first axes that hold several indices of a sample."""
    (ways,) = find_axes([[(12, 6, 7), (6, 3), (5, 5)], [(8, 4, 7), (4, 3), (5, 5)]])
    assert [way.axes for way in ways] == [(1, 0, None), (None, 0, None), (0, 0, None)]
    assert [way.each[0] for way in ways] == [(1, 1), (1, 1), (2, 2)]


def test_a_further_axis_must_be_one_of_every_array():
    ways = find_axes([[(8, 64, 4), (128,)], [(8, 8, 4), (16,)]])
    assert [[way.axes for way in each] for each in ways] == [[(0, None), (0, 0)]]


def test_batches_that_tell_nothing_are_not_cut():
    cutter = Cutter(fail, fail, fail, fail)
    assert cut_batches([BatchLoss(1.0, (), None, [(4, 3)])], cutter) == []
    assert cut_batches([batch((4, 3), count=0.0)], cutter) == []


def test_batches_of_other_arrays_are_not_compared():
    for other in (((2, 3, 5),), ((2, 3), (2,))):
        recorder = Recorder()
        (cut,) = recorder.cuts(((4, 3),), other)
        assert not cut.varies and recorder.loaded == [0]


def test_the_first_batch_of_four_samples_is_cut_or_else_the_largest():
    for sizes, chosen in (((2, 4, 9), 1), ((1, 3, 2), 1), ((1, 2), 1), ((9, 4), 0)):
        recorder = Recorder()
        (cut,) = recorder.cuts(*of_one(*((size, 3) for size in sizes)))
        assert cut.varies and recorder.loaded == [chosen]
        assert {data for data, *_ in recorder.cut} == {chosen}


def test_a_cut_falls_between_the_tokens_of_its_own_batch():
    recorder = Recorder()
    shapes = ((18, 7), (2, 9)), ((20, 7), (4, 5))
    recorder.cuts(*shapes)
    (data, _, *ends), (_, _, *others) = recorder.cut
    assert data == 1 and [ends, others] == [[0, 2], [2, 4]]
    recorder = Recorder(parts=[ValueError("whole")] * 2)  # the next way cuts flattened tokens
    recorder.cuts(*shapes)
    assert recorder.cut[-1][1].each == ((5,), (1,))


def test_batches_of_one_sample_are_joined_along_the_first_axis():
    recorder = Recorder()
    (cut,) = recorder.cuts(*of_one((1, 6), (1, 6), (1, 6)))
    assert cut.pieces is not None and recorder.loaded == [0, 1]
    assert [(data, *ends) for data, _, *ends in recorder.cut] == [((0, 1), 0, 1), ((0, 1), 1, 2)]


def test_one_sample_cannot_be_told_from_others():
    (cut,) = Recorder().cuts(*of_one((1, 6)))
    assert cut == Cut(False, None, "no batch has two samples to be told apart")


def test_a_cut_in_the_middle_or_between_pairs_or_groups_of_four():
    recorder = Recorder(parts=[ValueError(f"try {i}") for i in range(9)])
    (cut,) = recorder.cuts(*of_one((14, 3)))
    assert [(start, stop) for _, _, start, stop in recorder.cut] == [(0, 7), (0, 6), (0, 4)]
    assert cut == Cut(False, None, "part of a batch raises ValueError: try 0")
    recorder = Recorder(parts=[ValueError()] * 9)
    recorder.cuts(*of_one((2, 3)))
    assert [(start, stop) for _, _, start, stop in recorder.cut] == [(0, 1)]


def test_batches_that_do_not_fit_together():
    cut, *_ = Recorder(joined=TypeError("no join")).cuts(*of_one((1, 6), (1, 7)))
    assert cut == Cut(False, None, "part of a batch raises TypeError: no join")
