"""Every fit of a spectrum, to be watched while it runs on a device."""

import spectral_core as sc

FITS = {
    "fit_power_law": lambda s: sc.fit_power_law(s, s),
    "fit_power_law, ppml": lambda s: sc.fit_power_law(s, s, estimator="ppml"),
    "exponent_over_window": lambda s: sc.exponent_over_window(s, s),
    "check_line": lambda s: sc.check_line(s, s),
    "exponent_triangle": lambda s: sc.exponent_triangle(s, s),
    "fit_rank_profiles": sc.fit_rank_profiles,
    "participation_ratio": sc.participation_ratio,
    "certified_exponent": sc.certified_exponent,
    "transfer": lambda s: sc.transfer(s, 2.0, 0.1),
}
