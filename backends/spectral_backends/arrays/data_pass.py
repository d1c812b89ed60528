"""The user's batches, each with its number of loss terms, and the checks of both."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import array_api_compat

from spectral_backends.arrays.differences import norm
from spectral_backends.arrays.gradient_function import (
    NO_BATCH,
    GradientFunction,
    Params,
    arrays_in,
)
from spectral_core.arrays.namespace import Array
from spectral_core.curvature.argument_checks import check_reiterable, checked_count
from spectral_core.errors import InputError, NonDeterministicError, first_line

__all__ = ["DataPass", "check_batch", "check_halves", "check_nan", "gradient_totals"]


class DataPass:
    """Batches that can be traversed again, and the number of terms of each.

    Parameters
    ----------
    batches : iterable or None
        The batches. None means a single batch, which the functions hold themselves.
    weight : callable or None
        ``weight(batch)``, the number of terms that a batch's loss averages.

    Raises
    ------
    InputError
        If there is no batch, they are exhausted after one pass, or there are several and no weight.
    """

    def __init__(
        self, batches: Iterable[Any] | None, weight: Callable[[Any], float] | None
    ) -> None:
        if batches is not None:
            check_reiterable(batches)
        self.batches = [NO_BATCH] if batches is None else batches
        self._weight = weight

    def on_batches(self, batches: Iterable[Any]) -> "DataPass":
        """Return other batches, weighted in the same way."""
        return DataPass(batches, self._weight)

    @property
    def weighted(self) -> bool:
        """Say whether the number of terms is known."""
        return self._weight is not None

    def terms(self, batch: Any) -> float:
        """Return the number of terms of a batch.

        Raises
        ------
        InputError
            If it is no number of 0 or more.
        """
        if self._weight is None or batch is NO_BATCH:
            return 1.0
        return checked_count(self._weight(batch))

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        """Yield the batches with terms, and their number."""
        several = False
        for batch in self.batches:
            if several and self._weight is None:
                raise InputError(
                    "weight: there are several batches, and how many terms each one's mean runs "
                    "over cannot be seen; pass for instance weight=lambda batch: len(batch[0])."
                )
            several = True
            if count := self.terms(batch):
                yield batch, count

    def first(self) -> Any:
        """Return the first batch that has terms.

        Raises
        ------
        InputError
            If there is none.
        """
        for batch, _ in self:
            return batch
        raise InputError("batches: there is none with a term; pass at least one.")


def gradient_totals(
    gradient: GradientFunction, params: Params, data: DataPass, check: bool
) -> tuple[dict[str, Array], float | int, int]:
    """Return the gradient of the mean loss, the number of terms and that of batches.

    Raises
    ------
    InputError
        If a batch holds NaN.
    NonDeterministicError
        If `check` and a second pass differs.
    """
    totals: dict[str, Array] = {}
    sizes: list[float] = []
    count = 0.0
    for index, (batch, terms) in enumerate(data):
        check_batch(index, batch)
        found = gradient(params, batch)
        sizes.append(_size(found))
        for name, value in found.items():
            totals[name] = terms * value + totals[name] if name in totals else terms * value
        count += terms
    if check:
        again = [_size(gradient(params, batch)) for batch, _ in data]
        _compare(sizes, again, 1e4 * _eps(params))
    means = {name: value / count for name, value in totals.items()}
    return means, int(count) if count.is_integer() else count, len(sizes)


def check_batch(index: int, batch: Any) -> None:
    """Raise `InputError` if an array of the batch holds NaN.

    Parameters
    ----------
    index : int
        The index of the batch among those that have terms.
    batch : Any
        The batch as the user gave it.
    """
    if batch is NO_BATCH:
        return
    for array in arrays_in(batch):
        xp = array_api_compat.array_namespace(array)
        if xp.isdtype(array.dtype, ("real floating", "complex floating")):
            check_nan(array, f"batches: an array of batch {index},")


def check_nan(array: Array, what: str) -> None:
    """Raise `InputError` if an array holds NaN."""
    xp = array_api_compat.array_namespace(array)
    if bool(xp.any(xp.isnan(array))):
        raise InputError(f"{what} of shape {tuple(array.shape)} holds NaN; clean it.")


def check_halves(gradient: GradientFunction, params: Params, data: DataPass, batch: Any) -> None:
    """Raise `InputError` if the gradients of a batch's halves do not add up to its own.

    The check is made if the batch is a tuple, list or dict of arrays of one length. A half that
    raises an error is refused too: the loss may compare the samples of a batch with each other.
    """
    halves = _halves(batch)
    if halves is None:
        return
    try:
        counts = [data.terms(half) for half in halves]
        if not all(counts):
            return
        one, other = (gradient(params, half) for half in halves)
    except Exception as error:
        raise InputError(
            "weight: whether the gradient is that of a mean over independent terms cannot be told: "
            f"half of the first batch raises {first_line(error)}. Write it for batches of any "
            "size, or pass check=False, which takes weight= as it is."
        ) from error
    count, whole = data.terms(batch), gradient(params, batch)
    for name, value in whole.items():
        xp = array_api_compat.array_namespace(value)
        parts = counts[0] * one[name] + counts[1] * other[name]
        size = counts[0] * norm(xp, one[name]) + counts[1] * norm(xp, other[name])
        off = norm(xp, count * value - parts)
        if not off <= 1e5 * _eps(params) * size:
            raise InputError(
                f"weight: the gradients of the first batch's halves, with {counts[0]:g} and "
                f"{counts[1]:g} terms, do not add up to that of the whole, with {count:g}: off by "
                f"{off / size:.1g} in {name!r}. The gradient must be that of a mean over "
                "weight(batch) terms, each of one sample alone; divide a sum by their number."
            )


def _halves(batch: Any) -> tuple[Any, Any] | None:
    arrays = arrays_in(batch)
    flat = isinstance(batch, (tuple, list, Mapping)) and len(arrays) == len(batch)
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays}
    if not flat or len(lengths) != 1 or (length := lengths.pop()) < 2:
        return None

    def part(array: Array, which: slice) -> Array:
        return array[which, ...]

    def cut(which: slice) -> Any:
        if isinstance(batch, Mapping):
            return {key: part(array, which) for key, array in batch.items()}
        return tuple(part(array, which) for array in batch)

    return cut(slice(0, length // 2)), cut(slice(length // 2, length))


def _compare(first: list[float], second: list[float], tolerance: float) -> None:
    if len(first) != len(second):
        raise NonDeterministicError(
            f"batches: the first pass had {len(first)} batches, the second {len(second)}; pass a "
            "list that repeats itself."
        )
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        if not abs(one - other) <= tolerance * max(abs(one), abs(other)) and one == one:
            raise NonDeterministicError(
                f"the gradient of batch {index} changes between two passes, from norm {one!r} to "
                f"{other!r}: shuffled or augmented batches, or randomness in the gradient function."
            )


def _size(gradients: Mapping[str, Array]) -> float:
    total = 0.0
    for value in gradients.values():
        total += norm(array_api_compat.array_namespace(value), value)
    return total


def _eps(params: Params) -> float:
    value = next(iter(params.values()))
    return float(array_api_compat.array_namespace(value).finfo(value.dtype).eps)
