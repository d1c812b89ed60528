"""The first checks of array arguments: one common namespace, one floating dtype."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from spectral_core.arrays.plain import plain
from spectral_core.errors import InputError

Array: TypeAlias = Any
"""An array of any library of the Python array API standard (2024.12)."""

ArrayLike: TypeAlias = Any
"""An `Array`, or a (nested) sequence of Python numbers, which becomes a NumPy float64 array."""


def namespace(*arrays: Array) -> Any:
    """Return `array_api_compat.array_namespace`, also under the tracing of `torch.compile`.

    Dynamo of PyTorch 2.9 cannot trace that function.

    Raises
    ------
    TypeError
        If there is no common namespace.
    """
    if all(array_api_compat.is_torch_array(array) for array in arrays):
        import array_api_compat.torch as xp  # this imports PyTorch, so only for tensors

        return xp
    return array_api_compat.array_namespace(*arrays)


def floating(**arguments: ArrayLike) -> tuple[Any, list[Array]]:
    """Return the common namespace of the named arguments, and them as floating arrays of it.

    Raises
    ------
    InputError
        If an argument is no real floating point array, two belong to different libraries, or one
        has masked values or a unit.
    """
    arrays = {name: _as_array(name, value) for name, value in arguments.items()}
    try:
        xp = namespace(*arrays.values())
    except TypeError as error:
        kinds = ", ".join(f"{name}: {type(a).__module__}" for name, a in arrays.items())
        raise InputError(
            f"arrays of different libraries ({kinds}); convert them to one."
        ) from error
    for name, array in arrays.items():
        if not is_real_floating(xp, array.dtype):
            raise InputError(
                f"{name}: has dtype {array.dtype}; convert it to a real floating point type."
            )
    return xp, list(arrays.values())


def is_real_floating(xp: Any, dtype: Any) -> bool:
    """Return whether a dtype is a real floating one of its namespace."""
    try:
        return bool(xp.isdtype(dtype, "real floating"))
    except TypeError:  # a dtype of ml_dtypes, which NumPy does not know
        return False


def is_half(dtype: Any) -> bool:
    """Return whether a dtype is a floating one of less than 32 bits, also one of ml_dtypes."""
    return "float" in str(dtype) and getattr(dtype, "itemsize", 4) < 4


def widened(array: Array) -> Array:
    """Return an array of half precision in float32, and any other as it is."""
    if not is_half(array.dtype):
        return array
    xp = namespace(array)
    return xp.astype(array, xp.float32)


_LINEAR_ALGEBRA = ("eigh", "svd", "solve", "inv", "diagonal", "trace")


def linear_algebra(name: str, array: Array) -> Any:
    """Return the namespace of an array of a library that has the standard's linear algebra.

    Raises
    ------
    InputError
        If the library lacks some, as MLX does.
    """
    xp = namespace(array)
    missing = [need for need in _LINEAR_ALGEBRA if not hasattr(getattr(xp, "linalg", None), need)]
    if missing:
        library = type(array).__module__.partition(".")[0]
        raise InputError(
            f"{name}: is an array of {library}, which lacks {', '.join(missing)} of the standard's "
            "linear algebra; convert it, for instance with numpy.asarray."
        )
    return xp


def spectra(**arguments: ArrayLike) -> tuple[Any, list[Array]]:
    """Like `floating`, for arrays whose last axis runs over directions.

    Raises
    ------
    InputError
        If `floating` raises it, an argument has no axis, its last axis is empty, or shapes do not
        broadcast.
    """
    xp, arrays = floating(**arguments)
    for name, array in zip(arguments, arrays, strict=True):
        if array.ndim == 0 or array.shape[-1] == 0:
            raise InputError(
                f"{name}: has shape {tuple(array.shape)}; "
                "pass at least one value along the last axis."
            )
    lengths = {array.shape[-1] for array in arrays}
    if len(lengths) > 1:
        shapes = ", ".join(f"{n} {tuple(a.shape)}" for n, a in zip(arguments, arrays, strict=True))
        raise InputError(f"the last axes differ in length: {shapes}; pass one value per direction.")
    if len(arrays) == 1:
        return xp, arrays
    check_broadcast(**dict(zip(arguments, arrays, strict=True)))
    return xp, list(xp.broadcast_arrays(*arrays))


def check_broadcast(**arrays: Array) -> None:
    """Raise `InputError` unless the shapes of the named arrays broadcast."""
    try:
        np.broadcast_shapes(*(tuple(array.shape) for array in arrays.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
        raise InputError(
            f"shapes do not broadcast: {shapes}; pass equal shapes, or axes of length 1."
        ) from error


def mask_like(xp: Any, where: ArrayLike, like: Array) -> Array:
    """Return a mask of points, checked, for data of the shape of `like`.

    Raises
    ------
    InputError
        If the mask is not boolean, is of another library, or its shape does not fit.
    """
    where = plain("where", where)
    remedy = f"pass booleans that broadcast against the data, of shape {tuple(like.shape)}."
    if isinstance(where, (list, tuple, bool)) and array_api_compat.is_numpy_namespace(xp):
        try:
            where = np.asarray(where)
        except ValueError as error:
            raise InputError(f"where: is no regular sequence ({error}); {remedy}") from error
    if not array_api_compat.is_array_api_obj(where):
        raise InputError(f"where: a {type(where).__name__} is no array; {remedy}")
    try:
        array_api_compat.array_namespace(where, like)
    except TypeError as error:
        raise InputError(
            f"where: is an array of {type(where).__module__}, the data of "
            f"{type(like).__module__}; convert them to one."
        ) from error
    if where.dtype != xp.bool:
        raise InputError(f"where: has dtype {where.dtype}; {remedy}")
    try:
        np.broadcast_shapes(tuple(where.shape), tuple(like.shape))
    except ValueError as error:
        raise InputError(f"where: has shape {tuple(where.shape)}; {remedy}") from error
    return where


def ranks(xp: Any, like: Array) -> Array:
    """Return k = 1..K along the last axis of `like`, shape ``(K,)``, in its dtype."""
    return xp.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=device_of(like))


def device_of(array: Array) -> Any:
    """Return the device of an array, as creation functions of its namespace take it."""
    return array_api_compat.device(array)


def device_key(array: Array) -> str:
    """Return a key that tells devices apart, as CuPy's own devices have no hash."""
    return str(device_of(array))


def as_like(xp: Any, value: float | Array, like: Array) -> Array:
    """Return a number or an array in the dtype and on the device of another."""
    if array_api_compat.is_jax_array(value):  # stays where it is: under `vmap` nobody knows where
        return xp.astype(value, like.dtype)
    return xp.asarray(value, dtype=like.dtype, device=device_of(like))


def at_least(xp: Any, array: Array, bound: float) -> Array:
    """Return the larger of each entry and a number, and NaN for NaN.

    `clip` of array-api-compat picks entries by a mask, for which the host waits for a CuPy device.
    """
    return xp.where(array < bound, xp.full_like(array, bound), array)


def count(xp: Any, usable: Array) -> Array:
    """Return the number of true entries along the last axis, in the default integer type."""
    return xp.count_nonzero(usable, axis=-1)


def finite_log(xp: Any, values: Array, usable: Array) -> Array:
    """Return log of the usable values and 0 elsewhere, without NaN or warnings on the way."""
    return xp.log(xp.where(usable, values, xp.ones_like(values)))


def positive(xp: Any, values: Array) -> Array:
    """Return a mask that is true where `values` are positive and finite."""
    return xp.isfinite(values) & (values > 0)


def to_numpy(value: Any) -> Any:
    """Return an array of any library, or a number, as a NumPy array on the host."""
    if array_api_compat.is_torch_array(value) or array_api_compat.is_cupy_array(value):
        value = array_api_compat.to_device(value, "cpu")
    # NumPy has no bfloat16.
    return np.asarray(widened(value) if array_api_compat.is_array_api_obj(value) else value)


def _as_array(name: str, value: ArrayLike) -> Array:
    value = plain(name, value)
    if array_api_compat.is_array_api_obj(value):
        return value
    if isinstance(value, (int, float, Sequence)) and not isinstance(value, (str, bytes)):
        try:
            return np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{name}: is no regular sequence of real numbers ({error}); pass numbers, in rows "
                "of one length."
            ) from error
    raise InputError(f"{name}: a {type(value).__name__} is no array; pass an array or numbers.")
