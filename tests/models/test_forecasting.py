"""Forecasting: the network agrees with itself, learns a season, is scored as by hand, and is bundled."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from hiddenstate_models.bundle import Bundle
from hiddenstate_models.cli import app
from hiddenstate_models.data.series import Series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.evaluation.forecasting import COVERAGE, ERROR, QUANTILE_LOSS, SEASONAL, forecast_scores
from hiddenstate_models.networks.forecasting import ForecastingConfig, ForecastingNetwork
from hiddenstate_models.training.forecasting import ForecastingLanes, ForecastingOptions, forecast_ends

NAN = math.nan
CONFIGS = [
    ForecastingConfig(hidden_sizes=(6,), horizon=5),
    ForecastingConfig(hidden_sizes=(6,), horizon=7, seasons=(3, 8)),
    ForecastingConfig(hidden_sizes=(5, 4), cell="lstm", columns=3, targets=(2, 0), horizon=4, seasons=(2,)),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_sequence_and_steps_agree(config: ForecastingConfig) -> None:
    torch.manual_seed(0)
    network = ForecastingNetwork(config).eval()
    values = 1e4 + torch.randn(25, 3, config.columns, dtype=torch.float64).cumsum(0)
    values[torch.rand(values.shape) < 0.1] = NAN
    state = network.initial_state(3)
    with torch.no_grad():
        origins, last = network(values, state)
        together = network.predict(origins)
        assert together.locations.shape == (25, 3, config.horizon, len(config.targets))
        for t, row in enumerate(values):
            alone, state = network.step(row, state)
            for field, expected in zip(network.predict(alone), together, strict=True):
                torch.testing.assert_close(field[0], expected[t], rtol=1e-4, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)
    assert ForecastingConfig.from_dict(config.to_dict()) == config


def test_an_untrained_network_without_its_nonlinear_part_is_the_seasonal_naive_forecast() -> None:
    config = ForecastingConfig(hidden_sizes=(4,), horizon=9, seasons=(2, 4))
    network = ForecastingNetwork(config).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        season = torch.tensor([5.0, 1.0, -2.0, 30.0], dtype=torch.float64)
        origins, _ = network(season.repeat(4).view(-1, 1, 1), network.initial_state(1))
        forecast = network.predict(origins).locations[-1, 0, :, 0]
    torch.testing.assert_close(forecast, season.repeat(3)[:9], rtol=1e-5, atol=1e-4)


def test_true_values_are_given_instead_of_predictions_where_they_are_known() -> None:
    torch.manual_seed(0)
    network = ForecastingNetwork(CONFIGS[0]).eval()
    origins, _ = network(torch.randn(6, 2, 1, dtype=torch.float64), network.initial_state(2))
    truth = torch.randn(6, 2, 5, 1)
    truth[:, :, 1] = NAN
    free, forced = network.decode(origins), network.decode(origins, truth, 1.0)
    same = network.decode(origins, free.locations, 1.0)
    torch.testing.assert_close(same.locations, free.locations)
    torch.testing.assert_close(forced.locations[:, :, 0], free.locations[:, :, 0])
    assert not torch.allclose(forced.locations[:, :, 1], free.locations[:, :, 1])
    unknown = network.decode(origins, torch.full_like(truth, NAN), 1.0)
    torch.testing.assert_close(unknown.locations, free.locations)


@pytest.mark.parametrize("variational", [False, True])
def test_variational_dropout_reaches_the_decoder(variational: bool) -> None:
    """Its output layer sees the same units at every step of a forecast, and other ones in every forecast."""
    torch.manual_seed(0)
    config = ForecastingConfig(hidden_sizes=(40,), horizon=5, dropout=0.5, variational=variational)
    network = ForecastingNetwork(config).train()
    seen: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] == 0))
    origins, _ = network(torch.randn(6, 2, 1, dtype=torch.float64), network.initial_state(2), [2, 5])
    network.decode(origins)
    assert 0.3 < float(seen[0].double().mean()) < 0.7
    assert all(torch.equal(dropped, seen[0]) == variational for dropped in seen[1:])
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("fields", [{"hidden_sizes": (9, 9), "dropout": 0.5}, {"weight_dropout": 0.5}])
def test_what_is_dropped_inside_of_a_stack_is_dropped_in_the_decoder(fields: dict[str, Any]) -> None:
    network = ForecastingNetwork(ForecastingConfig(horizon=5, **fields)).train()
    origins, _ = network.eval()(torch.randn(6, 2, 1, dtype=torch.float64), network.initial_state(2))
    served = network.decode(origins).locations
    torch.manual_seed(0)
    trained = network.train().decode(origins).locations
    assert not torch.allclose(trained[:, :, 1:], served[:, :, 1:])
    torch.manual_seed(0)
    torch.testing.assert_close(network.decode(origins).locations, trained)


def test_targets_are_what_comes_after_each_row() -> None:
    config = ForecastingConfig(columns=2, targets=(1,), horizon=3)
    series = np.arange(12.0).reshape(6, 2)
    ahead = np.array([[3, 5, 7], [5, 7, 9], [7, 9, 11], [9, 11, NAN], [11, NAN, NAN]])
    (chunk,) = ForecastingLanes([series], config, origins=9, lanes=1, steps=5, seed=0).epoch(0)
    np.testing.assert_array_equal(chunk.inputs[:, 0], series[:5])
    np.testing.assert_array_equal(chunk.targets[:, 0, :, 0], ahead)
    lanes = ForecastingLanes([series], config, origins=2, lanes=1, steps=5, seed=0)
    drawn = [chunk.places.tolist() for epoch in range(9) for chunk in lanes.epoch(epoch) if chunk.places is not None]
    assert {place for places in drawn for place in places} == set(range(5))
    for epoch, places in enumerate(drawn):
        (again,) = lanes.epoch(epoch)
        assert places == again.places.tolist() == sorted(set(places))  # type: ignore[union-attr]
        np.testing.assert_array_equal(again.targets[:, 0, :, 0], ahead[places])


def test_the_ends_of_series_are_forecast_from_all_that_came_before() -> None:
    """Whatever other series they are read beside, and as many windows as a series has room for."""
    torch.manual_seed(0)
    network = ForecastingNetwork(CONFIGS[1]).eval()
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(rows, 1)).cumsum(axis=0) for rows in (40, 9, 23, 5)]
    ends = forecast_ends(network, series, windows=2)
    assert [len(one.truth) for one in ends] == [2, 1, 2, 0]
    for one, values in zip(ends[:3], series, strict=False):
        for window, end in enumerate(range(len(values) - 7 * len(one.truth), len(values), 7)):
            np.testing.assert_array_equal(one.truth[window], values[end : end + 7])
            with torch.no_grad():
                origins, _ = network(torch.from_numpy(values[:end]).unsqueeze(1), network.initial_state(1))
                alone = network.predict(origins)
            torch.testing.assert_close(one.prediction.locations[window], alone.locations[-1, 0], rtol=1e-4, atol=1e-4)


def test_scores_are_as_by_hand() -> None:
    torch.manual_seed(0)
    config = ForecastingConfig(hidden_sizes=(4,), horizon=2, distribution="gaussian")
    network = ForecastingNetwork(config)
    values = np.array([1.0, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 4, NAN])[:, None]
    scores = forecast_scores(network, [Series("saw", ("value",), values)], windows=1)
    (one,) = forecast_ends(network, [values], windows=1)
    location, scale = one.prediction.locations[0, 0, 0].item(), one.prediction.scales[0, 0, 0].item()
    assert scores["persistence"][ERROR] == pytest.approx(abs(4 - 2) / 4)
    assert scores[SEASONAL][ERROR] == pytest.approx(abs(4 - 1) / 4), "the season of two steps is found"
    assert scores["model"][ERROR] == pytest.approx(abs(4 - location) / 4)
    levels = np.arange(1, 10) / 10
    errors = 4 - stats.norm.ppf(levels, location, scale)
    assert scores["model"][QUANTILE_LOSS] == pytest.approx(
        np.mean(2 * np.maximum(levels * errors, (levels - 1) * errors)) / 4
    )
    assert scores["model"][COVERAGE] == float(abs(4 - location) < stats.norm.ppf(0.95) * scale)
    assert scores["model"][f"{ERROR}, step 1"] == scores["model"][ERROR]


@pytest.mark.parametrize(
    "wrong",
    [{"horizon": 0}, {"seasons": "1"}, {"windows": 0}, {"origins": 0}, {"teacher_forcing": 1.5}, {"session": 1}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        ForecastingOptions(**wrong).network(("value",))  # type: ignore[arg-type]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_learns_a_season_evaluates_and_exports(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(240)
    columns = {
        f"sensor-{i}": 100 + 10 * np.sin(2 * np.pi * (time + 3 * i) / 12) + rng.normal(0, 0.5, 240) for i in range(4)
    }
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    data, out = tmp_path / "load.csv", tmp_path / "run"
    data.write_text("\n".join(rows))
    settings = ("--horizon", 12, "--seasons", 12, "--hidden", 8, "--lanes", 4, "--k1", 24, "--k2", 24,
                "--learning-rate", 0.01, "--warmup", 5)  # fmt: skip
    run("train", "forecasting", "--data", data, "--out", out, "--epochs", 12, "--teacher-forcing", 0.3, *settings)
    scores = json.loads(run("evaluate", out, "--json"))["load.csv"]
    assert list(scores) == ["model", "persistence", SEASONAL]
    assert scores["model"][ERROR] < scores[SEASONAL][ERROR] < scores["persistence"][ERROR]
    assert scores["model"][QUANTILE_LOSS] < scores["model"][ERROR]
    run("export", out, "--out", tmp_path / "bundles")
    bundle = Bundle.load(tmp_path / "bundles" / "forecasting" / "1")
    assert "12 steps ahead, seasons of 12 steps" in (bundle.folder / "card.md").read_text()
    again = json.loads(run("evaluate", bundle.folder, "--data", data, "--json"))["load.csv"]
    assert again == scores


def test_series_no_longer_than_the_horizon_cannot_be_validated_on(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("a\n" + "\n".join(map(str, range(20))))
    with pytest.raises(DataError, match=r"no validation series is longer than the horizon|no series has two values"):
        run("train", "forecasting", "--data", tmp_path / "short.csv", "--out", tmp_path / "run", "--horizon", 30)
