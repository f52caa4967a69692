"""Change the sample rate of audio."""

from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

# Limits the numbers of the resampling ratio, which set the filter's length. At 767999 Hz the ratio is only 3e-8 off.
_FINEST = 50_000


def resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Samples (samples,), float32, at another rate. Their number is rounded up.

    Args:
        old, new: rates in Hz.
    """
    if old == new:
        return samples
    ratio = Fraction(new, old).limit_denominator(_FINEST)
    length = -(-len(samples) * new // old)
    resampled = resample_poly(samples, ratio.numerator, ratio.denominator)[:length].astype(np.float32)
    return np.pad(resampled, (0, length - len(resampled)))
