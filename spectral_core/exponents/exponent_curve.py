"""The exponent as a curve over the window, from fits of the first points of a spectrum."""

from typing import Any, Literal

from spectral_core.arrays.namespace import Array, ArrayLike, mask_like, ranks, spectra
from spectral_core.arrays.working_precision import in_working_precision
from spectral_core.exponents.power_law import fit_power_law
from spectral_core.exponents.power_law_fit import PowerLawFit

__all__ = ["exponent_over_window"]


@in_working_precision
def exponent_over_window(
    x: ArrayLike,
    y: ArrayLike,
    *,
    where: Array | None = None,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    estimator: Literal["ols", "ppml"] = "ols",
) -> PowerLawFit:
    """Fit ``y = C x^exponent`` on the first j points, for each j = 1..K (Theory 11.8).

    Where the points follow no power law, the exponent depends on the window, and this is how. The
    function runs under `jax.jit` and on batches; its time and memory go with K².

    Parameters
    ----------
    x, y : array, shape (..., K)
        The abscissas and ordinates, in the order in which a window takes them.
    where : array of bool, shape (..., K), optional
        The points to use. Others count in j, and are left out.
    weights : array, shape (..., K), optional
        The weights of `fit_power_law`.
    confidence : float
        The confidence level of the intervals, in (0, 1).
    estimator : {"ols", "ppml"}
        The estimator of `fit_power_law`.

    Returns
    -------
    PowerLawFit
        The fits, of batch shape ``(..., K)``: those of the windows of length 1 to K. Those of fewer
        than 3 usable points are NaN and have a reason.

    Raises
    ------
    InputError
        For what `fit_power_law` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.array([8.0, 4.0, 2.0, 1.0])
    >>> sc.exponent_over_window(x, np.array([64.0, 16.0, 4.0, 2.0])).exponent.round(3).tolist()
    [nan, nan, 2.0, 1.7]
    """
    given = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
    xp, arrays = spectra(**given)
    k = ranks(xp, arrays[0])
    windows = k <= k[:, None]
    if where is not None:
        like = xp.ones_like(arrays[0], dtype=xp.bool)
        windows = windows & _for_each(like & mask_like(xp, where, like))
    rows = [_for_each(array) for array in arrays]
    return fit_power_law(
        rows[0],
        rows[1],
        where=windows,
        weights=rows[2] if weights is not None else None,
        confidence=confidence,
        estimator=estimator,
    )


def _for_each(array: Array) -> Any:
    """Return an array with an axis for windows before its last."""
    return array[..., None, :]
