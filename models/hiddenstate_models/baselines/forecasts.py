"""Forecasts of the next value without a model: the last one, and the one a season ago."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LONGEST_PERIOD = 2000
DEGREES_OF_FREEDOM = 3.0
"""Of the distribution around a forecast; errors have heavy tails."""
_MEAN_DEVIATION = 2 * math.sqrt(3) / math.pi
"""Mean absolute deviation of Student's t with these degrees of freedom and scale 1."""
_LEAST_CORRELATION = 0.2
_OUTLIER = 5.0


def persistence(values: Floats) -> Floats:
    """The last value seen before each of values [N]; NaN where there was none."""
    forecasts = np.full(len(values), np.nan)
    forecasts[1:] = _filled(values)[:-1]
    return forecasts


def seasonal_naive(values: Floats, period: int) -> Floats:
    """The value one period before each of values [N]; persistence where that is missing or too early."""
    forecasts = persistence(values)
    seasonal = values[:-period]
    forecasts[period:] = np.where(np.isnan(seasonal), forecasts[period:], seasonal)
    return forecasts


def find_period(values: Floats) -> int | None:
    """The lag at which the changes of values [N] repeat best, at most a third of N; None where they do not.

    Looks at the whole series, so the seasonal forecast made with it has an advantage over an honest one.
    """
    filled = _filled(values)
    changes = np.diff(filled[~np.isnan(filled)])
    longest = min(len(changes) // 3, LONGEST_PERIOD)
    spread = changes.std() if len(changes) else 0.0
    if longest < 3 or spread == 0:
        return None
    changes = np.clip((changes - changes.mean()) / spread, -_OUTLIER, _OUTLIER)
    size = 1 << (2 * len(changes) - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(changes, size)) ** 2
    correlations = np.fft.irfft(spectrum)[: longest + 1]
    correlations /= correlations[0]
    inner = correlations[1:-1]
    peaks = 1 + np.flatnonzero((inner > correlations[:-2]) & (inner >= correlations[2:]) & (inner > _LEAST_CORRELATION))
    peaks = peaks[peaks > 1]
    return int(peaks[correlations[peaks].argmax()]) if len(peaks) else None


def error_scales(values: Floats, forecasts: Floats) -> Floats:
    """Scales of the Student's t that a forecast is given before each value, by its mean absolute error so far.

    NaN before the first two errors, and never less than a hundredth of what the whole series would give: the forecast
    is spared the surprise of a series that stands still first, although it could not know.
    """
    errors = np.abs(values - forecasts)
    known = ~np.isnan(errors)
    sums, counts = np.cumsum(np.where(known, errors, 0)), np.cumsum(known)
    scales = np.full(len(values), np.nan)
    if not known.any() or sums[-1] == 0:
        return scales
    means = sums[:-1] / np.maximum(counts[:-1], 1)
    scales[1:] = np.where(counts[:-1] > 1, means.clip(sums[-1] / counts[-1] / 100), np.nan) / _MEAN_DEVIATION
    return scales


def _filled(values: Floats) -> Floats:
    """Missing values replaced by the last one seen, where there is one."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    filled: Floats = values[last]
    return filled
