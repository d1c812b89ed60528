"""The participation ratio, and its bounds by the zeta function (Theory 7)."""

from spectral_core.participation.participation import certified_exponent as certified_exponent
from spectral_core.participation.participation import entropy_rank as entropy_rank
from spectral_core.participation.participation import (
    exponential_participation as exponential_participation,
)
from spectral_core.participation.participation import (
    log_normal_participation as log_normal_participation,
)
from spectral_core.participation.participation import participation_ratio as participation_ratio
from spectral_core.participation.participation import window_bound as window_bound
from spectral_core.participation.participation import zeta_bound as zeta_bound
from spectral_core.participation.zeta import zeta as zeta

__all__ = [
    "certified_exponent",
    "entropy_rank",
    "exponential_participation",
    "log_normal_participation",
    "participation_ratio",
    "window_bound",
    "zeta",
    "zeta_bound",
]
