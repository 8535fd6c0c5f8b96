"""Altered copies of real series, so that a model meets more kinds of sensors than there are files.

Each copy is a stretch of a series at another sampling rate, then changed in some of these ways: mixed with another
series, exaggerated, made noisier, rounded, turned upside down, with values left out.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator
_Alteration = Callable[[Floats, Sequence[Floats], Generator], Floats]

SHORTEST, LONGEST = 300, 4000
"""Rows of a stretch, where the series is long enough."""


def altered_copies(series: Sequence[Floats], copies: int, seed: int) -> list[Floats]:
    """`copies` of each of series [N, columns], all with the same columns; the same arguments give the same copies."""
    generator = np.random.default_rng(seed)
    return [_altered(one, series, generator) for _ in range(copies) for one in series]


def _altered(values: Floats, others: Sequence[Floats], generator: Generator) -> Floats:
    values = _stretch(values, generator)
    for probability, alteration in _ALTERATIONS:
        if generator.random() < probability:
            values = alteration(values, others, generator)
    return values


def _stretch(values: Floats, generator: Generator) -> Floats:
    """A stretch, sometimes with several rows made into one, by their mean or by the first."""
    rows, rate = int(generator.integers(SHORTEST, LONGEST)), int(generator.choice([1, 1, 1, 2, 3, 4, 6]))
    length = min(len(values), rows * rate)
    start = int(generator.integers(0, len(values) - length + 1))
    whole = length // rate * rate
    groups = values[start : start + whole].reshape(-1, rate, values.shape[1])
    return groups.mean(axis=1) if generator.random() < 0.5 else groups[:, 0]


def _slower(values: Floats, _: Sequence[Floats], generator: Generator) -> Floats:
    """Two to four times as many rows, in straight lines between the old ones."""
    places = np.arange(0, len(values) - 1, 1 / generator.integers(2, 5))[:LONGEST]
    before = places.astype(np.int64)
    weight = (places - before)[:, None]
    return (1 - weight) * values[before] + weight * values[before + 1]


def _mixed(values: Floats, others: Sequence[Floats], generator: Generator) -> Floats:
    other = _stretch(others[int(generator.integers(len(others)))], generator)
    length = min(len(values), len(other))
    return _standard(values[:length]) + generator.uniform(0.1, 1) * _standard(other[:length])


def _exaggerated(values: Floats, _: Sequence[Floats], __: Generator) -> Floats:
    exaggerated: Floats = np.exp(_standard(values).clip(-4, 4))
    return exaggerated


def _noisy(values: Floats, _: Sequence[Floats], generator: Generator) -> Floats:
    noise = generator.normal(size=values.shape) if generator.random() < 0.5 else generator.standard_t(3, values.shape)
    return values + _log_uniform(generator, 0.03, 2) * _step(values) * noise


def _rounded(values: Floats, _: Sequence[Floats], generator: Generator) -> Floats:
    grid = _log_uniform(generator, 0.02, 0.5) * np.nanstd(values, axis=0)
    return np.where(grid > 0, np.round(values / np.where(grid > 0, grid, 1)) * grid, values)


def _flipped(values: Floats, _: Sequence[Floats], __: Generator) -> Floats:
    return -values


def _holed(values: Floats, _: Sequence[Floats], generator: Generator) -> Floats:
    missing = generator.random(len(values)) < generator.uniform(0.005, 0.1)
    for _gap in range(generator.integers(0, 4)):
        start = generator.integers(len(values))
        missing[start : start + generator.integers(2, 30)] = True
    return np.where(missing[:, None], np.nan, values)


_ALTERATIONS: tuple[tuple[float, _Alteration], ...] = (
    (0.2, _slower),
    (0.3, _mixed),
    (0.15, _exaggerated),
    (0.65, _noisy),
    (0.1, _rounded),
    (0.3, _flipped),
    (0.15, _holed),
)


def _standard(values: Floats) -> Floats:
    spread = np.nanstd(values, axis=0)
    standard: Floats = (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)
    return standard


def _step(values: Floats) -> Floats:
    """Mean absolute change by column."""
    step: Floats = np.nanmean(np.abs(np.diff(values, axis=0)), axis=0)
    return step


def _log_uniform(generator: Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
