"""How batches are weighted, from counts and losses alone: no framework, no model."""

import numpy as np
import pytest

from spectral_core.errors import InputError
from spectral_core.losses.batch_weighting import Weighting, settled
from spectral_core.losses.sample_cuts import Cut, Cutter, cut_batches, find_axes
from spectral_core.losses.terms import BatchLoss, LossTerms

EPS = 2.0**-52


def axes_of(*shapes):
    return [[(way.axes, way.sizes) for way in ways] for ways in find_axes(shapes)]


def test_the_first_axis_and_those_that_vary():
    assert axes_of([(10, 4), (10,)], [(3, 4), (3,)]) == [[((0, 0), (10, 3))]]
    time_first = axes_of([(8, 64, 4), (8, 64)], [(8, 8, 4), (8, 8)])
    assert time_first == [[((0, 0), (8, 8))], [((1, 1), (64, 8))]]
    padded = axes_of([(4, 17), (4,)], [(4, 23), (4,)])  # labels have no axis of tokens
    assert padded == [[((0, 0), (4, 4))]]
    assert axes_of([(), ()]) == [] and axes_of([]) == []


def test_arrays_that_all_samples_share_and_axes_that_lie_elsewhere():
    (first, *_), *others = axes_of([(4, 17), (17, 17), ()], [(2, 17), (17, 17), ()])
    assert first == ((0, None, None), (4, 2)) and not others
    (first, *_) = axes_of([(9, 6, 7), (6, 3), (6,)], [(9, 4, 7), (4, 3), (4,)])[0]
    assert first == ((1, 0, 0), (6, 4))
    *_, flattened = find_axes([[(20, 7), (4, 5)], [(18, 7), (2, 9)]])[0]
    assert flattened.axes == (0, 0) and flattened.each[0] == (5, 9)
    assert flattened.of(1).slices(0, 1, 2) == (0, slice(9, 18))


class Loss:
    """A loss of arrays in NumPy, with what is read off it."""

    def __init__(self, value, readings, weight=None, size_wanted=None):
        self.value, self.readings = value, readings
        self.weight, self.size_wanted = weight, size_wanted

    def of(self, x):
        if self.size_wanted and len(x) != self.size_wanted:
            raise ValueError("a batch of another size.\nDetails.")
        weight = None if self.weight is None else self.weight(x)
        return BatchLoss(self.value(x), tuple(self.readings(x)), weight, [x.shape])

    def settled(self, data, **options):
        def part(x, axis, start, stop):
            along, which = axis.slices(0, start, stop)
            return x[(slice(None),) * along + (which,)]

        def joined(x, other, axis):
            return np.concatenate([x, other], axis.axes[0])

        batches = [self.of(x) for x in data]
        cuts = cut_batches(batches, Cutter(lambda i: data[i], part, joined, self.of))
        return [settled(batches, cuts, EPS, **options).terms(batch) for batch in batches]


RNG = np.random.default_rng(0)


def data(*shapes):
    return list(map(RNG.standard_normal, shapes))


def mean_of(count, inside=None, **options):
    return lambda x: [LossTerms(count(x), "mean", inside and inside(x), **options)]


def counts(terms):
    return [each.count for each in terms]


TIME_FIRST = Loss(np.mean, mean_of(len, lambda x: x[0].size))


def test_a_mean_of_means_has_the_terms_of_all():
    assert counts(TIME_FIRST.settled(data((8, 64), (8, 8)))) == [512, 64]
    assert counts(TIME_FIRST.settled(data((64, 5), (8, 5)))) == [320, 40]
    assert counts(TIME_FIRST.settled(data((8, 6), (8, 6)))) == [48, 48]
    assert counts(TIME_FIRST.settled(data((8, 6), (7, 5)))) == [48, 35]
    assert counts(TIME_FIRST.settled(data((1, 6), (1, 6)))) == [6, 6]


def test_means_of_unequal_numbers_count_where_sizes_tell_that_they_are_samples():
    ragged = Loss(lambda x: x.mean(1).mean(), mean_of(len, lambda x: np.nan))
    assert counts(ragged.settled(data((6, 5), (3, 5)))) == [6, 3]
    for shapes in ([(6, 5), (6, 5)], [(6, 5), (6, 4)]):
        with pytest.raises(InputError, match=r"weight: .*Pass weight=lambda batch"):
            ragged.settled(data(*shapes))
    assert counts(ragged.settled(data((6, 5)))) == [6]


def test_numbers_inside_that_change_from_batch_to_batch():
    """Five tokens of each sample here, nine there: samples are what is averaged."""

    def inside(x):
        return 5.0 if x.shape[0] > 4 else 9.0

    loss = Loss(np.mean, mean_of(len, inside))
    assert counts(loss.settled(data((8, 10), (3, 10)))) == [8, 3]
    same_shape = Loss(np.mean, mean_of(len, lambda x: 5.0 + (x[0, 0] > 0)))
    first, second = np.ones((6, 4)), -np.ones((6, 4))
    with pytest.raises(InputError, match="batches of one shape do not tell"):
        same_shape.settled([first, second])


def test_a_count_that_does_not_see_what_varies():
    coupled = Loss(lambda x: float((x.mean(1) ** 2).mean()), mean_of(len))
    with pytest.raises(InputError, match="a batch has 8 terms .* its two halves 16 with"):
        coupled.settled(data((8, 64), (8, 8)))


def test_part_of_a_batch_that_raises():
    fixed = Loss(np.mean, mean_of(np.size), size_wanted=4)
    with pytest.raises(InputError, match=r"raises ValueError: a batch of another size\. Pass"):
        fixed.settled(data((4, 3), (4, 3)))
    assert counts(fixed.settled(data((4, 3)))) == [12]
    assert counts(fixed.settled(data((4, 3), (4, 3)), strict=False)) == [12, 12]
    pairs = Loss(lambda x: x.reshape(-1, 2).mean(), mean_of(np.size))
    assert counts(pairs.settled(data((6,), (10,)))) == [6, 10]


def test_sums():
    def summed(x):
        return [LossTerms(x.size, "sum")]

    total = Loss(np.sum, summed)
    assert {each.scale for each in total.settled(data((6, 4), (3, 4)))} == {1.0}
    with pytest.raises(InputError, match="reduction: it is 'mean', .* is a sum of its terms"):
        total.settled(data((6, 4), (3, 4)), reduction="mean")
    with pytest.raises(InputError, match="ends in a sum; pass reduction='sum'"):
        Loss(np.sum, summed, len).settled(data((6, 4), (3, 4)))
    assert counts(Loss(np.sum, summed, len).settled(data((6, 4), (3, 4)), reduction="sum")) == [
        6,
        3,
    ]
    with pytest.raises(InputError, match="weight: it returned 6 for batch 0 and 0 for batch 1"):
        Loss(np.sum, summed, lambda x: len(x) - len(x) % 6).settled(
            data((6, 4), (3, 4)), reduction="sum"
        )


def test_a_sum_of_means_is_a_mean_where_these_hold_the_samples():
    loss = Loss(lambda x: x.mean(0).sum(), lambda x: [LossTerms(x.shape[1], "sum", len(x))])
    found = loss.settled(data((6, 4), (3, 4)))
    assert counts(found) == [6, 3] and found[0].reduction == "mean"
    by_sample = Loss(lambda x: x.mean(1).sum(), lambda x: [LossTerms(len(x), "sum", x.shape[1])])
    found = by_sample.settled(data((6, 4), (3, 4)))
    assert counts(found) == [6, 3] and found[0].reduction == "sum"
    looped = Loss(by_sample.value, lambda x: [LossTerms(len(x), "sum", 4, stacked=True)])
    assert looped.settled(data((6, 4), (3, 4)))[0].reduction == "sum"
    with pytest.raises(InputError, match="batches of one shape do not tell"):
        looped.settled(data((6, 4), (6, 4)))


def test_weights():
    def loss(weight):
        return Loss(np.mean, mean_of(np.size), weight)

    batches = data((6, 4), (3, 4), (2, 4))
    assert counts(loss(len).settled(batches)) == [6, 3, 2]
    with pytest.raises(InputError, match="6 for batch 0 and 6 for batch 2, .* 24 and 8 terms"):
        loss(lambda x: 6).settled(batches)
    assert counts(loss(lambda x: 6).settled(batches, strict=False)) == [6, 6, 6]
    # Where the loss's own reading does not add up, the user's word counts.
    coupled = Loss(lambda x: float(x.mean() ** 2), mean_of(len), lambda x: 6)
    assert counts(coupled.settled(batches)) == [6, 6, 6]
    unknown = Loss(np.mean, lambda x: [], len)
    assert counts(unknown.settled(batches)) == [6, 3, 2]


def test_batches_without_terms_tell_nothing():
    def value(x):
        return np.nan if len(x) == 2 else x.mean()

    loss = Loss(value, mean_of(lambda x: 0 if len(x) == 2 else x.size))
    assert counts(loss.settled(data((2, 4), (6, 4), (3, 4)))) == [0, 24, 12]


def read(count, reduction="mean", inside=None):
    return LossTerms(count, reduction, inside)


def batch(loss, *readings, weight=None):
    return BatchLoss(loss, readings, weight)


def cut_of(whole, one, other, varies=True):
    return [Cut(varies, (whole, one, other))]


def halved(whole):
    """Return the cut of a mean over an even number of terms, all of which are equal."""
    half = tuple(read(r.count / 2, r.reduction, r.inside) for r in whole.readings)
    loss = whole.loss / 2 if whole.readings[0].reduction == "sum" else whole.loss
    return cut_of(whole, batch(loss, *half), batch(loss, *half))


def test_the_terms_of_a_batch_by_a_rule_and_by_the_user():
    silent, told = batch(0.5), batch(0.5, read(5.0))
    assert Weighting().terms(silent) == LossTerms(1.0, "mean", known=False)
    assert Weighting().terms(batch(0.5, weight=3.0)) == read(3.0)
    assert Weighting().terms(told) == read(5.0)
    assert Weighting((0, 0), "sum").terms(told) == read(5.0, "sum")
    weighted = batch(0.5, read(5.0), weight=3.0)
    assert Weighting().terms(weighted) == read(3.0)
    assert Weighting((0, 0), "sum").terms(weighted) == read(3.0, "sum")


@pytest.mark.parametrize(
    ("stated", "found", "counts", "weights", "refused"),
    [
        ("sum", "mean", [6.0], [None], True),
        ("mean", "sum", [6.0], [None], False),
        ("mean", "sum", [6.0, 6.0], [None, None], True),
        ("mean", "sum", [6.0, 6.0], [2.0, 2.0], False),
        ("mean", "sum", [6.0, 3.0], [2.0, 1.0], True),
        ("mean", "sum", [6.0, 0.0], [2.0, 2.0], False),
    ],
)
def test_a_factor_that_all_batches_share_is_the_users_own_affair(
    stated, found, counts, weights, refused
):
    pairs = zip(counts, weights, strict=True)
    batches = [batch(1.5, read(count, found), weight=weight) for count, weight in pairs]
    cuts = halved(batches[0])
    if refused:
        with pytest.raises(InputError, match=f"it is '{stated}', .* the loss is a {found} of its"):
            settled(batches, cuts, EPS, reduction=stated)
    else:
        assert settled(batches, cuts, EPS, reduction=stated).reduction == stated


def test_why_nothing_is_certain():
    told, empty = batch(1.0, read(6.0)), batch(0.0, read(0.0))
    with pytest.raises(InputError, match="cannot be read off it, and 2 batches must be weighted"):
        settled([batch(1.0), told], [], EPS)
    with pytest.raises(InputError, match="as it ends in no reduction that is known"):
        settled([empty, batch(1.0)], [], EPS)
    with pytest.raises(InputError, match="as it ends in other reductions from batch to batch"):
        settled([told, batch(1.0, read(6.0, "sum"))], halved(told), EPS)
    with pytest.raises(InputError, match="as it ends in no reduction that is known"):
        settled([empty, empty], [], EPS)
    squared = Loss(lambda x: float(x.sum() ** 2), lambda x: [read(x.size, "sum")])
    with pytest.raises(InputError, match="not a mean over independent terms .* a batch has 12 te"):
        squared.settled(data((3, 4)))
    silent = Loss(np.mean, mean_of(lambda x: np.nan))
    with pytest.raises(InputError, match="a batch has nan terms"):
        silent.settled(data((4, 3), (2, 3)))


def test_the_axis_that_varies_is_enough():
    batches = [batch(1.0, read(6.0)), batch(2.0, read(3.0))]
    cuts = [Cut(False, None, "no samples"), *halved(batches[0])]
    assert settled(batches, cuts, EPS) == Weighting((0, 0), "mean")


def test_a_second_reading_takes_nothing_from_the_first():
    def readings(x):
        return [read(x.size), read(7.0)]

    assert counts(Loss(np.mean, readings).settled(data((4, 3), (2, 3)))) == [12, 6]
    weighted = Loss(np.mean, readings, len)
    assert counts(weighted.settled(data((4, 3), (2, 3)))) == [4, 2]


def test_a_part_without_terms_counts_nothing_and_one_of_another_form_tells_nothing():
    batches = [batch(1.5, read(6.0)), batch(2.5, read(3.0))]
    masked = batch(np.nan, read(0.0, "sum"))
    for parts in ((masked, batches[0]), (batches[0], masked)):
        assert settled(batches, cut_of(batches[0], *parts, varies=False), EPS).reduction == "mean"
    half = batch(1.5, read(3.0))
    for other in (batch(4.5, read(3.0, "sum")), batch(1.5)):
        with pytest.raises(InputError, match="not a mean over independent terms"):
            settled(batches, cut_of(batches[0], half, other), EPS)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("off", "adds_up"), [(1e-10, True), (1e-6, False)])
def test_sums_hold_relative_to_their_size(size, off, adds_up):
    """A count, or a total, that is off by so much of itself."""
    whole, half = batch(1.0, read(6 * size)), batch(1.0, read(3 * size))
    counted = cut_of(whole, half, batch(3 / (3 + off), read((3 + off) * size)))
    whole, half = batch(size, read(6.0)), batch(size, read(3.0))
    totalled = cut_of(whole, half, batch(size * (1 + off), read(3.0)))
    for cuts in (counted, totalled):
        batches = [cuts[0].pieces[0]] * 2
        if adds_up:
            assert settled(batches, cuts, EPS).place == (0, 0)
        else:
            with pytest.raises(InputError, match="not a mean over independent terms"):
                settled(batches, cuts, EPS)


def test_a_loss_of_zero_adds_up():
    batches = [batch(0.0, read(6.0)), batch(0.0, read(4.0))]
    assert settled(batches, halved(batches[0]), EPS) == Weighting((0, 0), "mean")


def test_the_likeliest_reading_where_nothing_is_certain():
    def likeliest(*batches, **options):
        return settled(batches, [], EPS, strict=False, **options)

    either = batch(1.0, read(6.0), read(6.0, "sum"))
    assert likeliest(either) == Weighting((0, 0), "mean")
    assert likeliest(either, reduction="sum") == Weighting((1, 0), "sum")
    second = batch(1.0, read(np.nan), read(6.0))
    assert likeliest(second) == Weighting((1, 0), "mean")
    assert likeliest(second, reduction="sum") == Weighting((1, 0), "sum")
    assert likeliest(batch(1.0, read(np.nan, "sum"))) == Weighting((0, 0), "sum")
    assert likeliest(batch(1.0)) == Weighting((0, 0), "mean")
    empty, told = batch(0.0, read(0.0, "sum")), batch(1.0, read(6.0, "sum"))
    assert likeliest(empty, told) == Weighting((0, 0), "sum")
    assert likeliest(empty, empty) == Weighting((0, 0), "mean")


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_weights_are_held_to_proportion_alone(size):
    def weigh(*weights, counts=(6.0, 3.0)):
        pairs = zip(weights, counts, strict=True)
        batches = [batch(1.0, read(count), weight=weight) for weight, count in pairs]
        return settled(batches, halved(batches[0]), EPS)

    for weights, held in (((6, 3 * (1 + 1e-10)), True), ((6, 3 * (1 + 1e-6)), False)):
        for call in (
            lambda given=weights: weigh(*(size * weight for weight in given)),
            lambda given=weights: weigh(*given, counts=(6 * size, 3 * size)),
        ):
            if held:
                assert call().place == (0, 0)
            else:
                with pytest.raises(InputError, match="it returned"):
                    call()
    with pytest.raises(InputError, match="it returned 0 for batch 0"):
        weigh(0.0, 0.0)


def test_weights_that_contradict_are_shown_beside_the_largest_batch():
    batches = [
        batch(1.0, read(count), weight=weight)
        for count, weight in ((6.0, 1.0), (24.0, 24.0), (8.0, 8.0))
    ]
    with pytest.raises(InputError) as caught:
        settled(batches, halved(batches[1]), EPS)
    assert str(caught.value) == (
        "weight: it returned 1 for batch 0 and 24 for batch 1, of which the loss reduces 6 and 24 "
        "terms (less those that are ignored, by their class weights): the weights of batches must "
        "be in proportion to these. Leave weight= out, or return such numbers."
    )


def test_weights_of_sums_only_divide_them():
    batches = [batch(1.0, read(count, "sum"), weight=7.0) for count in (6.0, 3.0)]
    assert settled(batches, halved(batches[0]), EPS, reduction="sum").reduction == "sum"


def test_weights_by_means_or_by_the_terms_inside():
    """Eight means of five terms and three of nine."""

    def weigh(*weights):
        first, second = read(8.0, inside=5.0), read(3.0, inside=9.0)
        batches = [batch(1.0, first, weight=weights[0]), batch(1.0, second, weight=weights[1])]
        return settled(batches, halved(batches[0]), EPS)

    assert weigh(8.0, 3.0) == weigh(40.0, 27.0) == Weighting((0, 1), "mean")
    with pytest.raises(InputError, match="it returned 1 for batch 0 and 1 for batch 1, .* 8 and 3"):
        weigh(1.0, 1.0)
