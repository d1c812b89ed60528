"""The number of terms that a batch's loss averages, as far as the loss itself tells.

``L = (1/N) Σ_i l_i`` runs over terms: samples, or tokens that are not masked (Theory 1). A backend
reads off a loss how it reduces them; whether that is so, `batch_weighting` finds out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BatchLoss", "LossTerms", "Reduction", "Shapes"]

Reduction = Literal["mean", "sum"]
Shapes = Sequence[tuple[int, ...]]
"""Of the arrays that the loss of a batch is computed from."""


@dataclass(frozen=True)
class LossTerms:
    """One way in which a loss may reduce its terms.

    Parameters
    ----------
    count : float
        The number of the terms, or their total class weight. NaN means that the loss does not tell.
    reduction : {"mean", "sum"}
        The way in which the loss reduces them.
    inside : float or None
        The number of terms of which each of the counted values is a mean. NaN means that they
        differ in it, and None that the values are no means as far as can be seen.
    stacked : bool
        Whether the counted values were put together one by one, as those of a loop are. In that
        case nothing tells if the loop ran over samples.
    known : bool
        False if the loss did not tell and one batch stands for itself.
    """

    count: float
    reduction: Reduction
    inside: float | None = None
    stacked: bool = False
    known: bool = True

    @property
    def scale(self) -> float:
        """The factor from the batch's loss to the sum over its terms."""
        return self.count if self.reduction == "mean" else 1.0

    @property
    def averaged(self) -> float | None:
        """The number of terms averaged in all, by this reduction and inside; None if none are."""
        if self.reduction == "sum":
            return self.inside
        return self.count if self.inside is None else self.count * self.inside

    def variants(self) -> tuple["LossTerms", ...]:
        """Return the readings of a reduction of means: of all terms inside, or of the means.

        A mean of means of c terms each is a mean of all terms, and a sum of such means is a mean
        over c terms, if these hold the samples; if the reduction runs over the samples itself, its
        terms are the means.
        """
        if self.averaged is None or self.inside is None:
            return (self,)
        outer, inherited = replace(self, inside=None), LossTerms(self.averaged, "mean")
        return (inherited, outer) if self.reduction == "mean" else (outer, inherited)


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, and what is known of its terms.

    Parameters
    ----------
    loss : float
        The value of the loss.
    readings : tuple of LossTerms
        The ways in which it may reduce its terms, the likeliest first.
    weight : float or None
        The number of terms that the batch has according to the user.
    shapes : sequence of tuple
        The shapes of the arrays that the loss is computed from.
    """

    loss: float
    readings: tuple[LossTerms, ...]
    weight: float | None = None
    shapes: Shapes = ()

    @property
    def empty(self) -> bool:
        """Whether no term of the batch counts, so that its loss is 0, or 0/0."""
        return any(v.count == 0 for reading in self.readings for v in reading.variants())

    def terms(self, place: tuple[int, int]) -> LossTerms:
        """Return the terms by the index of a reading and of its variant."""
        if self.empty:
            return LossTerms(0.0, "mean")
        return self.readings[place[0]].variants()[place[1]]

    def alike(self, other: "BatchLoss") -> bool:
        """Return whether two losses were reduced in the same way."""
        one, two = (
            [(reading.reduction, reading.inside is None) for reading in batch.readings]
            for batch in (self, other)
        )
        return one == two
