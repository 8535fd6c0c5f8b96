"""Forecasts over the SDK, on the real server."""

import numpy as np
import pytest

from hiddenstate import Client, FleetForecastPredictions, ForecastPrediction, ForecastPredictions, InvalidInput

HORIZON = 6


def test_every_value_brings_a_forecast(server: str) -> None:
    with Client(server) as client, client.session("forecasting") as session:
        assert session.model.horizon == HORIZON
        nothing = session.peek()
        assert isinstance(nothing, ForecastPrediction)
        assert np.isnan(nothing.mean).all()
        session.observe_many([20.0, 21.0, 20.5])
        before = session.peek()
        assert isinstance(before, ForecastPrediction)
        assert before.mean.shape == before.scale.shape == (HORIZON,)
        low, high = before.interval(0.9)[2]
        assert low < before.mean[2] < high
        np.testing.assert_allclose(before.interval(0.8)[:, 1], before.quantile(0.9))
        prediction: object = session.observe(20.7)
        assert isinstance(prediction, ForecastPrediction)
        assert np.isfinite(prediction.surprise)
        np.testing.assert_array_equal(session.rewind().mean, before.mean)  # type: ignore[union-attr]


def test_forecasts_come_as_columns_too(server: str) -> None:
    rows = np.random.default_rng(0).normal(20, 3, (7, 2))
    with Client(server) as client, client.session("outlook") as session, client.fleet("outlook") as fleet:
        column: object = session.observe_many(rows)
        assert isinstance(column, ForecastPredictions)
        assert column.mean.shape == (7, HORIZON, 2)
        lower, upper = column.interval(0.5)
        last = column[-1]
        np.testing.assert_allclose(last.interval(0.5)[:, 0], lower[-1])
        np.testing.assert_allclose(last.interval(0.5)[:, 1], upper[-1])
        assert last.interval().shape == (HORIZON, 2, 2)
        together: object = fleet.observe(["a"] * 7, rows)
        assert isinstance(together, FleetForecastPredictions)
        np.testing.assert_allclose(together.mean, column.mean, rtol=1e-5)
        with pytest.raises(InvalidInput, match="takes 2 value"):
            session.observe(1.0)
        steps = np.array(list(session.generate(3, paths=4, seed=1)))
        assert steps.shape == (3, 4, 2)
