"""Whether something grows with time, and how sure that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BLOCKS = 30
CONFIDENCE = 0.95


class Trend(NamedTuple):
    """A straight line through a series, and what its slope lies between with a confidence of 95 %."""

    slope: float
    """By unit of time."""
    low: float
    high: float
    intercept: float

    def scaled(self, factor: float) -> "Trend":
        """In other units."""
        return Trend(*(factor * part for part in self))


def trend(at: Sequence[float], values: Sequence[float]) -> Trend:
    """Least squares through the means of up to 30 blocks.

    Values that lie close in time resemble each other, which would make the interval too narrow; means of blocks do much
    less so. Raises ValueError for fewer than three values.
    """
    if len(at) < 3:
        raise ValueError(f"a trend needs three values at least, not {len(at)}")
    blocks = np.array_split(np.arange(len(at)), min(BLOCKS, len(at)))
    x, y = (np.array([np.mean(np.asarray(series)[block]) for block in blocks]) for series in (at, values))
    line = stats.linregress(x, y)
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * line.stderr
    return Trend(float(line.slope), float(line.slope - margin), float(line.slope + margin), float(line.intercept))


def growth(values: Sequence[float]) -> float:
    """Median of the last third to that of the first; NaN counts as missing."""
    third = max(1, len(values) // 3)
    return float(np.nanmedian(values[-third:]) / np.nanmedian(values[:third]))
