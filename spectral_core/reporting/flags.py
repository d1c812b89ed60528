"""The marks of a layer whose α says less than it seems to, each with its reason (Theory 11)."""

from collections.abc import Sequence

import numpy as np

from spectral_core.exponents.line_check import LineCheck
from spectral_core.exponents.power_law import PowerLawFit
from spectral_core.reporting.sampling import LayerSampling

__all__ = ["flags_of"]

MOSTLY = 0.5
"""The signal share below which a direction is mostly noise."""


def flags_of(
    alpha: PowerLawFit, carried_by: Sequence[int], check: LineCheck, sampling: LayerSampling | None
) -> dict[str, str]:
    """Return the marks of a layer, with the reason for each.

    - ``"noise"``: at least half of the directions are mostly noise of the sample (11.2).
    - ``"moving"``: α, γ or s drifts with the sample size, beyond its standard error (11.5).
    - ``"one point"``: a single direction carries the fit of α (11.6).
    - ``"curved"``: log h bends over log σ, so that α depends on the window (11.8).

    Parameters
    ----------
    alpha : PowerLawFit
        The fit of α, with plain numbers.
    carried_by : sequence of int
        The ranks of the directions that carry it.
    check : LineCheck
        The check of whether its line is straight.
    sampling : LayerSampling or None
        The sampling errors, without which nothing is said of noise and drift.
    """
    found = {}
    if sampling is not None:
        found["noise"] = _noise(sampling)
        found["moving"] = _moving(sampling)
    found["one point"] = _one_point(alpha, carried_by)
    found["curved"] = _curved(check)
    return {flag: reason for flag, reason in found.items() if reason}


def _noise(sampling: LayerSampling) -> str:
    shares = sampling.signal_shares[np.isfinite(sampling.signal_shares)]
    if not len(shares) or np.median(shares) >= MOSTLY:
        return ""
    return (
        f"noise: the median signal share of the directions is {np.median(shares):.2f}, so that at "
        "least half of them are mostly noise of the sample"
    )


def _moving(sampling: LayerSampling) -> str:
    numbers = {"α": sampling.alpha, "γ": sampling.gamma, "s": sampling.s}
    moving = [
        f"{symbol} by {number.drift:+.2f} (standard error {number.stderr:.2f})"
        for symbol, number in numbers.items()
        if number.is_moving
    ]
    if not moving:
        return ""
    return f"moving with the sample size: half of the data would change {' and '.join(moving)}"


def _one_point(alpha: PowerLawFit, carried_by: Sequence[int]) -> str:
    if not carried_by or alpha.without_each is None:
        return ""
    without = [(k, float(alpha.without_each[k - 1])) for k in carried_by]
    said = " and ".join(
        f"{'nothing' if np.isnan(value) else f'{value:.2f}'} without direction {k}"
        for k, value in without
    )
    return f"one point: α = {alpha.exponent:.2f} would be {said}"


def _curved(check: LineCheck) -> str:
    if not check.rejected:
        return ""
    half = (check.interval[1] - check.interval[0]) / 2
    return (
        f"curved: log h bends over log σ (quadratic term {check.quadratic:+.2f} ± {half:.2f}, "
        f"ΔBIC {check.delta_bic:+.1f}), so that α depends on the window"
    )
