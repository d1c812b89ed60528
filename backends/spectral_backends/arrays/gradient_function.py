"""The user's gradient function: called on private copies, its answers checked."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import array_api_compat

from spectral_core.arrays.namespace import Array
from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

__all__ = ["NO_BATCH", "GradientFunction", "arrays_in"]

NO_BATCH = object()
"""The batch of a function that holds its data itself."""

Params = Mapping[str, Array]


class GradientFunction:
    """``gradient(params, batch)``, or ``gradient(params)`` where there are no batches.

    Parameters
    ----------
    function : callable
        The function of the user. It returns the gradient of the batch's mean loss, by the names of
        the parameters.
    params : mapping of str to array
        The parameters.
    """

    def __init__(self, function: Callable[..., Any], params: Params) -> None:
        self._function, self._params = function, params

    def __call__(self, params: Params, batch: Any) -> dict[str, Array]:
        """Return the gradient by parameter.

        Raises
        ------
        InputError
            If the answer is no mapping, or a gradient is missing, masked or of another shape.
        """
        given = dict(params)
        found = self._function(given) if batch is NO_BATCH else self._function(given, batch)
        if not isinstance(found, Mapping):
            raise InputError(
                f"gradient: returned a {type(found).__name__}; return a dict with the gradient of "
                f"each of {list(params)[:8]}."
            )
        if missing := [name for name in params if name not in found]:
            raise InputError(f"gradient: returned nothing for {missing[:8]}.")
        found = {name: plain(f"gradient: that of {name!r}", found[name]) for name in params}
        for name, value in params.items():
            if not array_api_compat.is_array_api_obj(found[name]):
                raise InputError(
                    f"gradient: that of {name!r} is a {type(found[name]).__name__}; return arrays."
                )
            if (shape := tuple(found[name].shape)) != tuple(value.shape):
                raise InputError(
                    f"gradient: that of {name!r} has shape {shape}; the parameter has "
                    f"{tuple(value.shape)}."
                )
        return found

    def first_call(self, batch: Any) -> dict[str, Array]:
        """Call it on the parameters, and check that it leaves them and the batch as they are.

        Raises
        ------
        InputError
            If it writes to an argument, or answers in another kind of number.
        """
        watched = {f"parameter {name!r}": array for name, array in self._params.items()}
        inputs = [] if batch is NO_BATCH else arrays_in(batch)
        watched |= {f"array {index} of the batch": array for index, array in enumerate(inputs)}
        before = {name: _copy(array) for name, array in watched.items()}
        found = self(self._params, batch)
        for name, array in watched.items():
            xp = array_api_compat.array_namespace(array)
            same = xp.all((array == before[name]) | (array != array))
            if not bool(same):
                raise InputError(
                    f"gradient: it writes to {name}, so that its next answer is of other numbers; "
                    "work on a copy (x = x + … instead of x += …)."
                )
        for name, array in found.items():
            if array.dtype != self._params[name].dtype:
                raise InputError(
                    f"gradient: that of {name!r} has dtype {array.dtype}, the parameter "
                    f"{self._params[name].dtype}; compute in one type."
                )
        return found


def arrays_in(batch: Any) -> list[Array]:
    """Return the arrays of a batch, which may be one, or nested in tuples, lists and dicts."""
    if array_api_compat.is_array_api_obj(batch):
        return [batch]
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return []
    items: Iterable[Any] = batch
    return [array for item in items for array in arrays_in(item)]


def _copy(array: Array) -> Array:
    xp = array_api_compat.array_namespace(array)
    return xp.asarray(array, dtype=array.dtype, copy=True)
