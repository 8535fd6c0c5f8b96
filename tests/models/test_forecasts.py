import numpy as np
import pytest
from scipy import stats

from hiddenstate_models.baselines.forecasts import (
    DEGREES_OF_FREEDOM,
    error_scales,
    find_period,
    persistence,
    seasonal_naive,
)

NAN = float("nan")


def test_persistence_carries_the_last_value_over_gaps() -> None:
    values = np.array([NAN, 3.0, NAN, NAN, 5.0, 6.0])
    np.testing.assert_array_equal(persistence(values), [NAN, NAN, 3, 3, 3, 5])


def test_seasonal_naive_falls_back_to_persistence() -> None:
    values = np.array([1.0, 2.0, NAN, 4.0, 5.0, 6.0])
    np.testing.assert_array_equal(seasonal_naive(values, 3), [NAN, 1, 2, 1, 2, 5])


@pytest.mark.parametrize("period", [7, 24, 168])
def test_finds_the_period(period: int) -> None:
    generator = np.random.default_rng(0)
    pattern = generator.normal(size=period).cumsum()
    values = np.tile(pattern, 2000 // period + 4) + generator.normal(size=(2000 // period + 4) * period) * 0.1
    values[50:60] = np.nan
    assert find_period(values) == period


def test_finds_no_period_where_there_is_none() -> None:
    assert find_period(np.random.default_rng(0).normal(size=2000).cumsum()) is None
    assert find_period(np.full(500, 3.0)) is None
    assert find_period(np.array([NAN, 1.0, 2.0])) is None


def test_scales_know_only_earlier_errors() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.0, 9.0])
    scales = error_scales(values, persistence(values))
    deviation = stats.t(df=DEGREES_OF_FREEDOM).expect(abs)
    np.testing.assert_allclose(scales, np.array([NAN, NAN, NAN, 3 / 2, 3 / 3]) / deviation)


def test_scales_after_standing_still() -> None:
    values = np.array([5.0] * 9 + [15.0])
    scales = error_scales(values, persistence(values))
    assert (scales[3:] > 0).all()
    assert np.isnan(error_scales(values[:9], persistence(values[:9]))).all()
