"""A step of Spectral Newton, of one matrix and of many, and of AdamW beside it (Theory 9.9)."""

from spectral_core.newton.options import StepOptions as StepOptions
from spectral_core.newton.step import spectral_newton_step as spectral_newton_step

__all__ = ["StepOptions", "spectral_newton_step"]
