"""Quantiles of Student's t distribution, vectorised over the degrees of freedom."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hiddenstate.errors import InvalidInput

Floats = NDArray[np.float64]

_SHIFT = 30  # the gamma ratio's series is used from here on; below, the recurrence leads up to it


def quantile(p: float, degrees_of_freedom: NDArray[np.floating]) -> Floats:
    """The `p` quantile for each of `degrees_of_freedom` (at least 1; infinite: the normal distribution).

    Hill's expansion (1970, Algorithm 396), refined by one step of Halley's method on the distribution
    function. Raises InvalidInput unless 0 < p < 1.
    """
    if not 0.0 < p < 1.0:
        raise InvalidInput(f"a quantile needs a probability between 0 and 1, not {p}")
    from statistics import NormalDist

    df = np.asarray(degrees_of_freedom, dtype=np.float64)
    normal = NormalDist().inv_cdf(p)
    result = np.full(df.shape, normal)
    if p == 0.5:
        return result
    result[np.isnan(df)] = np.nan
    finite = np.isfinite(df)
    if finite.any():
        tail = min(p, 1.0 - p)
        magnitude = _refined(_hill(tail, abs(normal), df[finite]), tail, df[finite])
        result[finite] = np.copysign(magnitude, p - 0.5)
    return result


def half_width(level: float, degrees_of_freedom: NDArray[np.floating]) -> Floats:
    """How far the central interval that holds `level` of the distribution reaches to either side of its middle."""
    if not 0.0 < level < 1.0:
        raise InvalidInput(f"an interval needs a level between 0 and 1, not {level}")
    return quantile(0.5 + level / 2.0, degrees_of_freedom)


def _hill(tail: float, normal: float, n: Floats) -> Floats:
    """Positive quantiles with `tail` above them, to a relative error of about 1e-3 or better."""
    a = 1.0 / (n - 0.5)
    b = (48.0 / a) / a
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * np.sqrt(a * math.pi / 2.0) * n
    y = (d * 2.0 * tail) ** (2.0 / n)

    # near the centre: an asymptotic inverse expansion about the normal quantile
    x = -normal
    squared = x * x
    c_near = np.where(n < 5.0, c + 0.3 * (n - 4.5) * (x + 0.6), c)
    c_near = (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b + c_near
    near = (((((0.4 * squared + 6.3) * squared + 36.0) * squared + 94.5) / c_near - squared - 3.0) / b + 1.0) * x
    near = np.expm1(a * near * near)

    # in the tail
    far = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0)) * y - 1.0) * (
        n + 1.0
    ) / (n + 2.0) + 1.0 / y
    return np.sqrt(n * np.where(y > a + 0.05, near, far))


def _refined(x: Floats, tail: float, n: Floats) -> Floats:
    """`x` after one step of Halley's method."""
    density = _gamma_ratio(n) / np.sqrt(math.pi * n)
    # P(0 < t < x) = density * sqrt(n) * integral of cos(u)^(n-1) for u from 0 to atan(x / sqrt(n))
    angle = np.arctan2(x, np.sqrt(n))
    nodes, weights = _quadrature()
    u = np.multiply.outer(angle / 2.0, nodes + 1.0)
    integral = (np.exp((n - 1.0)[:, None] * 0.5 * np.log1p(-(np.sin(u) ** 2))) @ weights) * angle / 2.0
    excess = density * np.sqrt(n) * integral - (0.5 - tail)
    newton = excess / (density * np.exp(-0.5 * (n + 1.0) * np.log1p(x * x / n)))
    refined: Floats = x - newton / (1.0 + 0.5 * newton * (n + 1.0) * x / (n + x * x))
    return refined


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Nodes and weights of Gauss and Legendre for -1 to 1."""
    return np.polynomial.legendre.leggauss(24)


def _gamma_ratio(n: Floats) -> Floats:
    """gamma((n + 1) / 2) / gamma(n / 2)."""
    m = n + _SHIFT
    series = 1.0 + (-1 / 4 + (1 / 32 + (5 / 128 + (-21 / 2048 - 399 / 8192 / m) / m) / m) / m) / m
    ratio = np.sqrt(m / 2.0) * series
    for step in range(0, _SHIFT, 2):
        ratio *= (n + step) / (n + step + 1.0)
    return ratio
