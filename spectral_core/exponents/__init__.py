"""Power laws: fits, α, γ and s with the transfer identity, rank profiles (Theory 2, 3 and 8)."""

from spectral_core.exponents.power_law import PowerLawFit as PowerLawFit
from spectral_core.exponents.power_law import fit_power_law as fit_power_law
from spectral_core.exponents.rank_profile import RankProfile as RankProfile
from spectral_core.exponents.rank_profile import RankProfileFits as RankProfileFits
from spectral_core.exponents.rank_profile import fit_rank_profiles as fit_rank_profiles
from spectral_core.exponents.transfer_identity import ExponentTriangle as ExponentTriangle
from spectral_core.exponents.transfer_identity import exponent_triangle as exponent_triangle

__all__ = [
    "ExponentTriangle",
    "PowerLawFit",
    "RankProfile",
    "RankProfileFits",
    "exponent_triangle",
    "fit_power_law",
    "fit_rank_profiles",
]
