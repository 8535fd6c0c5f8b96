"""Quantiles against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from hiddenstate import InvalidInput
from hiddenstate.student_t import half_width, quantile

DEGREES = np.concatenate([np.linspace(2.001, 10, 120), np.geomspace(10, 1e9, 80), [math.inf]])
TAILS = np.geomspace(1e-4, 0.499, 25)


@pytest.mark.parametrize("p", [*TAILS, *(1 - TAILS)])
def test_quantiles(p: float) -> None:
    exact = stats.t.ppf(p, DEGREES)
    assert quantile(p, DEGREES) == pytest.approx(exact, rel=1e-6)


def test_the_middle() -> None:
    assert (quantile(0.5, DEGREES) == 0).all()


def test_any_shape_and_missing_degrees() -> None:
    result = quantile(0.9, np.array([[3.0, math.nan], [math.inf, 5.0]]))
    assert result.shape == (2, 2)
    assert np.isnan(result).tolist() == [[False, True], [False, False]]
    assert result[1, 0] == pytest.approx(stats.norm.ppf(0.9))


def test_half_width() -> None:
    assert half_width(0.9, np.array(4.0)) == pytest.approx(stats.t.ppf(0.95, 4))


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_what_is_no_probability(p: float) -> None:
    with pytest.raises(InvalidInput):
        quantile(p, DEGREES)
    with pytest.raises(InvalidInput):
        half_width(p, DEGREES)
