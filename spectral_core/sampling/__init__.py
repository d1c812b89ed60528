"""What of a measurement is the network's, and what is the sample's (Theory 11)."""

from spectral_core.sampling.half_samples import balanced_halves as balanced_halves
from spectral_core.sampling.half_samples import half_sample_error as half_sample_error
from spectral_core.sampling.jackknife import Jackknife as Jackknife
from spectral_core.sampling.jackknife import jackknife as jackknife
from spectral_core.sampling.null_model import NoiseNull as NoiseNull
from spectral_core.sampling.null_model import noise_null as noise_null
from spectral_core.sampling.sampling_error import SamplingError as SamplingError
from spectral_core.sampling.sampling_error import sampling_error as sampling_error
from spectral_core.sampling.signal import cross_fitted as cross_fitted
from spectral_core.sampling.signal import direction_noise as direction_noise
from spectral_core.sampling.signal import gradient_noise as gradient_noise
from spectral_core.sampling.signal import signal_share as signal_share
from spectral_core.sampling.signal import without_group as without_group

__all__ = [
    "Jackknife",
    "NoiseNull",
    "SamplingError",
    "balanced_halves",
    "cross_fitted",
    "direction_noise",
    "gradient_noise",
    "half_sample_error",
    "jackknife",
    "noise_null",
    "sampling_error",
    "signal_share",
    "without_group",
]
