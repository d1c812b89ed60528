"""The weights of batches, which are read off their losses and checked by cutting a batch in two.

A mean over c terms is additive: ``c L = c₁ L₁ + c₂ L₂`` for the parts of a batch that is cut
between samples. A mean of batch means is not, nor is a loss that compares the samples of a batch
with each other. What is not seen to be additive is not guessed; the user says how to weight it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isclose, isfinite, nan

from spectral_core.errors import InputError
from spectral_core.losses.sample_cuts import Cut
from spectral_core.losses.terms import BatchLoss, LossTerms, Reduction

__all__ = ["Weighting", "settled"]

Place = tuple[int, int]


@dataclass(frozen=True)
class Weighting:
    """The rule by which the losses of batches are combined.

    Parameters
    ----------
    place : (int, int)
        The index of the reading that counts the terms, and the index of its variant.
    reduction : {"mean", "sum"} or None
        The way in which a loss reduces its terms. None stands for the way that the reading tells.
    """

    place: Place = (0, 0)
    reduction: Reduction | None = None

    def terms(self, batch: BatchLoss) -> LossTerms:
        """Return the terms of a batch."""
        if not batch.readings:
            found = LossTerms(1.0, "mean", known=False)
        else:
            found = batch.terms(self.place)
            found = found if self.reduction is None else replace(found, reduction=self.reduction)
        if batch.weight is None:
            return found
        return LossTerms(batch.weight, self.reduction or found.reduction)


def settled(
    batches: Sequence[BatchLoss],
    cuts: Sequence[Cut],
    eps: float,
    *,
    reduction: Reduction | None = None,
    strict: bool = True,
) -> Weighting:
    """Return the weighting of batches.

    A count is borne out if it adds up, with the loss, over the parts of a batch, and if it changes
    along every axis in which the batches differ. For instance, a mean over eight losses of one time
    step each has eight terms, whatever the number of samples.

    Parameters
    ----------
    batches : sequence of BatchLoss
        The losses of all batches.
    cuts : sequence of Cut
        The cuts of one of them along its axes, the likeliest axis first.
    eps : float
        The relative precision of the losses.
    reduction : {"mean", "sum"} or None
        The reduction that the user gave.
    strict : bool
        Whether to refuse what is not borne out, where it matters.

    Raises
    ------
    InputError
        If nothing tells how to weight several batches, or the user's statement contradicts the
        loss itself.
    """
    evidence = _examined([batch for batch in batches if not batch.empty], cuts, eps)
    several, weighted = len(batches) > 1, batches[0].weight is not None
    fitting = [p for p in evidence.certain if reduction in (None, evidence.reduction(p))]
    if strict and reduction and evidence.certain and not fitting:
        counts = {batch.terms(evidence.certain[0]).count for batch in batches if not batch.empty}
        # A factor is the user's own affair where it is the same for all batches.
        if len(counts) > 1 or (not weighted and (several or reduction == "sum")):
            found = evidence.reduction(evidence.certain[0])
            raise InputError(_CONTRADICTED.format(reduction, found))
    if fitting:
        chosen = Weighting(fitting[0], evidence.reduction(fitting[0]))
        if weighted and strict:
            _check_weights(batches, chosen, evidence, eps)
    else:
        chosen = _likeliest(batches, reduction)
    ends_in_sum = bool(batches[0].readings) and chosen.reduction == "sum"
    if weighted:
        if ends_in_sum and reduction is None:
            raise InputError(_SUM)
    elif several and not batches[0].readings:
        raise InputError(_UNKNOWN.format(len(batches)))
    elif strict and not fitting and (several or ends_in_sum):
        raise InputError(f"weight: {evidence.problem}. {_PASS_WEIGHT}")
    return chosen


@dataclass(frozen=True)
class _Evidence:
    """The readings that are certain, or the reason why there is none.

    Parameters
    ----------
    problem : str
        The reason that speaks against the likeliest.
    certain : sequence of (int, int)
        The readings that are certain, by index and that of the variant, the likeliest first.
    borne_out : sequence of (int, int)
        These readings, and other variants that add up just as well.
    example : BatchLoss or None
        A batch, if there is one.
    """

    problem: str
    certain: Sequence[Place] = ()
    borne_out: Sequence[Place] = ()
    example: BatchLoss | None = None

    def reduction(self, place: Place) -> Reduction:
        assert self.example is not None
        return self.example.terms(place).reduction


def _examined(batches: Sequence[BatchLoss], cuts: Sequence[Cut], eps: float) -> _Evidence:
    """Examine how batches that have terms reduce them."""
    made = [cut for cut in cuts if cut.pieces is not None]
    if not batches or not batches[0].readings:
        return _Evidence(f"{_UNTOLD}, as it ends in no reduction that is known")
    if not all(batch.alike(batches[0]) for batch in batches):
        return _Evidence(f"{_UNTOLD}, as it ends in other reductions from batch to batch")
    if not made or (cuts[0].pieces is None and cuts[0].varies):
        return _Evidence(f"{_UNTOLD}: {cuts[0].failure if cuts else _NO_AXIS}")
    varies = any(cut.varies for cut in made)
    certain, borne_out = list[Place](), list[Place]()
    for index, reading in enumerate(batches[0].readings):
        places = [(index, variant) for variant in range(len(reading.variants()))]
        found = [place for place in places if _is_borne_out(place, batches, made, eps)]
        chosen = _chosen([batch.readings[index] for batch in batches], found, varies=varies)
        certain += [] if chosen is None else [chosen]
        borne_out += found
    problem = _NESTED if borne_out else f"{_NOT_ADDITIVE}: {_shown(made, batches[0])}"
    return _Evidence(problem, certain, borne_out, batches[0])


def _chosen(readings: Sequence[LossTerms], found: Sequence[Place], *, varies: bool) -> Place | None:
    """Return which variant of a reading is certain, of those that are borne out."""
    if not found:
        return None
    first = readings[0]
    if first.reduction == "mean" and first.inside is not None:
        insides = [nan if reading.inside is None else reading.inside for reading in readings]
        if all(isclose(inside, insides[0], rel_tol=1e-6) for inside in insides):
            return found[0]
        # The variants weigh batches differently: only sizes that vary tell where samples lie.
        return found[-1] if varies else None
    # Readings do not show either whether a loop ran over samples.
    return None if first.stacked and not varies and found[0][1] == 0 else found[0]


def _is_borne_out(
    place: Place, batches: Sequence[BatchLoss], cuts: Sequence[Cut], eps: float
) -> bool:
    if not all(isfinite(batch.terms(place).count) for batch in batches):
        return False
    sums = [_Sums.of(cut, place) for cut in cuts]
    return sums[0].add_up(eps) and not any(
        cut.varies and each.blind() for cut, each in zip(cuts, sums, strict=True)
    )


@dataclass(frozen=True)
class _Sums:
    """Count and total of a batch, and those of its parts."""

    count: float
    counts: tuple[float, float]
    total: float
    totals: tuple[float, float]

    @classmethod
    def of(cls, cut: Cut, place: Place) -> "_Sums":
        assert cut.pieces is not None
        (terms, total), (first, one), (second, other) = (
            _read(piece, cut.pieces[0], place) for piece in cut.pieces
        )
        counts = first.count, second.count
        return cls(terms.count, counts, total, (one, other))

    def add_up(self, eps: float) -> bool:
        """Return whether the batch is the sum of its parts."""
        tolerance = float(eps**0.5)
        off_count, off_total = sum(self.counts) - self.count, sum(self.totals) - self.total
        size = sum(map(abs, self.totals))
        return abs(off_count) <= tolerance * self.count and abs(off_total) <= tolerance * size

    def blind(self) -> bool:
        """Return whether the count hardly shrinks for the parts, although they are smaller."""
        return not sum(self.counts) < 1.5 * self.count


def _read(piece: BatchLoss, like: BatchLoss, place: Place) -> tuple[LossTerms, float]:
    """Return the terms of a piece, NaN if it is reduced in another way, and their sum."""
    fits = piece.empty or piece.alike(like)
    terms = piece.terms(place) if fits else LossTerms(nan, "mean")
    return terms, terms.scale * piece.loss if terms.count else 0.0


def _likeliest(batches: Sequence[BatchLoss], reduction: Reduction | None) -> Weighting:
    """Return the choice if nothing is certain: the first reading whose counts are numbers."""
    counted = [batch for batch in batches if not batch.empty] or batches
    places = [
        (index, variant)
        for index, reading in enumerate(counted[0].readings)
        for variant in range(len(reading.variants()))
        if all(
            batch.alike(counted[0]) and isfinite(batch.terms((index, variant)).count)
            for batch in counted
        )
    ]
    fitting = [p for p in places if reduction in (None, counted[0].terms(p).reduction)]
    place = (fitting or places or [(0, 0)])[0]
    found = counted[0].terms(place).reduction if counted[0].readings else "mean"
    return Weighting(place, reduction or found)


def _check_weights(
    batches: Sequence[BatchLoss], chosen: Weighting, evidence: _Evidence, eps: float
) -> None:
    """Raise `InputError` unless weights are in proportion to the terms that a loss averages.

    The total of a sum needs no weights, which only divide it, but a weight of 0 leaves a batch out.
    """
    counted = [(i, batch) for i, batch in enumerate(batches) if not batch.empty]
    weights = [batch.weight or 0.0 for _, batch in counted]
    counts = [batch.terms(chosen.place).count for _, batch in counted]
    if chosen.reduction == "sum":
        fits = all(weights)
    else:
        alike = [p for p in evidence.borne_out if p[0] == chosen.place[0]]
        likely = ([batch.terms(place).count for _, batch in counted] for place in alike)
        fits = any(_in_proportion(weights, of_one, eps) for of_one in likely)
    if fits:
        return
    best = max(range(len(counts)), key=lambda i: counts[i])
    each = [weight / count for weight, count in zip(weights, counts, strict=True)]
    worst = max(range(len(each)), key=lambda i: abs(each[i] - each[best]))
    (i, one), (j, other) = sorted((counted[k][0], k) for k in (best, worst))
    raise InputError(
        f"weight: it returned {weights[one]:g} for batch {i} and {weights[other]:g} for batch {j}, "
        f"of which the loss reduces {counts[one]:g} and {counts[other]:g} terms (less those that "
        "are ignored, by their class weights): the weights of batches must be in proportion to "
        "these. Leave weight= out, or return such numbers."
    )


def _in_proportion(weights: Sequence[float], counts: Sequence[float], eps: float) -> bool:
    weight, count = weights[0], counts[0]
    return weight > 0 and all(
        abs(w * count - weight * c) <= eps**0.5 * weight * c
        for w, c in zip(weights, counts, strict=True)
    )


def _shown(cuts: Sequence[Cut], batch: BatchLoss) -> str:
    """Return the numbers of a cut that tell against the likeliest reading."""
    variants = [variant.count for variant in batch.readings[0].variants()]
    place = (0, next((i for i, count in enumerate(variants) if isfinite(count)), 0))
    sums = [_Sums.of(cut, place) for cut in cuts]
    blind = (s for cut, s in zip(cuts, sums, strict=True) if cut.varies and s.blind())
    shown = next(blind, sums[0])
    return (
        f"a batch has {shown.count:g} terms with a sum of {shown.total:.6g}, its two halves "
        f"{sum(shown.counts):g} with {sum(shown.totals):.6g}"
    )


_UNTOLD = "whether the loss is a mean over independent terms cannot be told"
_NOT_ADDITIVE = "the loss is not a mean over independent terms as far as can be read off it"
_NO_AXIS = "the arrays that it is computed from have no axis of samples along which to cut a batch"
_NESTED = (
    f"{_UNTOLD}, as it reduces values that are reductions themselves, and batches of one shape do "
    "not tell which of their axes holds the samples"
)
_PASS_WEIGHT = (
    "Pass weight=lambda batch: <number of samples or tokens that the loss averages>, which is then "
    "taken as it is; reduction='sum' if it is their sum."
)
_UNKNOWN = (
    "weight: the number of terms behind each batch's loss cannot be read off it, and {} batches "
    "must be weighted by it; pass weight=lambda batch: <number of samples or tokens that the loss "
    "averages>."
)
_SUM = (
    "weight: it says how many terms the loss averages, but the loss ends in a sum; pass "
    "reduction='sum' if it adds up that many terms, 'mean' if their mean."
)
_CONTRADICTED = (
    "reduction: it is {!r}, but the halves of a batch show that the loss is a {} of its terms; "
    "leave reduction= out."
)
