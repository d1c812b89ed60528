"""Power laws: fits, their checks, the transfer identity, rank profiles (Theory 2, 3, 8, 11.6–8)."""

from spectral_core.exponents.exponent_curve import exponent_over_window as exponent_over_window
from spectral_core.exponents.line_check import LineCheck as LineCheck
from spectral_core.exponents.line_check import check_line as check_line
from spectral_core.exponents.power_law import PowerLawFit as PowerLawFit
from spectral_core.exponents.power_law import fit_power_law as fit_power_law
from spectral_core.exponents.rank_profile import RankProfile as RankProfile
from spectral_core.exponents.rank_profile import RankProfileFits as RankProfileFits
from spectral_core.exponents.rank_profile import fit_rank_profiles as fit_rank_profiles
from spectral_core.exponents.transfer_identity import ExponentTriangle as ExponentTriangle
from spectral_core.exponents.transfer_identity import exponent_triangle as exponent_triangle

__all__ = [
    "ExponentTriangle",
    "LineCheck",
    "PowerLawFit",
    "RankProfile",
    "RankProfileFits",
    "check_line",
    "exponent_over_window",
    "exponent_triangle",
    "fit_power_law",
    "fit_rank_profiles",
]
