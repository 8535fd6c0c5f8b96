"""Scores of a forecasting network, of persistence and of the seasonal naive forecast, over the ends of series."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hiddenstate_models.baselines.forecasts import find_period
from hiddenstate_models.data.series import Series
from hiddenstate_models.networks.distributions import Prediction, central_probability
from hiddenstate_models.networks.forecasting import ForecastingNetwork
from hiddenstate_models.training.forecasting import Forecasts, forecast_ends

Metrics = dict[str, float]
"""Metric -> number."""

ERROR, QUANTILE_LOSS, COVERAGE = "ND", "mean weighted quantile loss", "90 % coverage"
SEASONAL = "seasonal naive"
QUANTILES = tuple(level / 10 for level in range(1, 10))
_INTERVAL = 0.9
_SHOWN_STEPS = 4
"""Steps of the horizon whose errors are shown by themselves."""


def forecast_scores(network: ForecastingNetwork, series: Sequence[Series], windows: int) -> dict[str, Metrics]:
    """By row (the model, a baseline), scores over the last `windows` horizons of all series together.

    ND, the normalized deviation, is the sum of absolute errors over that of absolute values, in all and at some
    steps of the horizon; the weighted quantile loss at q is twice the quantile loss over the same sum (as in Salinas
    et al., 2020), its mean is over q = 0.1 to 0.9. A baseline's quantiles are all its forecast, so that its mean is
    its ND. The period of the seasonal naive forecast is found in what came before each series' first window.
    """
    network.eval()
    forecasts = forecast_ends(network, [one.values for one in series], windows)
    rows: dict[str, list[tuple[Forecasts, Tensor | None]]] = {"model": [(one, None) for one in forecasts]}
    guesses = [_guesses(one, network, windows) for one in series]
    for name in ("persistence", SEASONAL):
        rows[name] = [(one, guess[name]) for one, guess in zip(forecasts, guesses, strict=True)]
    return {name: _metrics(row) for name, row in rows.items()}


def _guesses(one: Series, network: ForecastingNetwork, windows: int) -> Mapping[str, Tensor]:
    """Locations [windows, horizon, targets] that need no model."""
    horizon, values = network.config.horizon, one.values[:, network.config.targets]
    ends = [end for end in range(len(values) - windows * horizon, len(values), horizon) if end > 1]
    last, seasonal = [], []
    for end in ends:
        known = _filled(values[:end])
        last.append(np.repeat(known[-1:], horizon, axis=0))
        columns = []
        for column in range(values.shape[1]):
            period = find_period(values[: ends[0], column]) or 1
            places = end - period + np.arange(horizon) % period
            columns.append(known[places, column])
        seasonal.append(np.stack(columns, axis=1))
    empty = np.zeros((0, horizon, values.shape[1]))
    return {
        name: torch.from_numpy(np.stack(found) if found else empty)
        for name, found in (("persistence", last), (SEASONAL, seasonal))
    }


def _filled(values: np.ndarray) -> np.ndarray:
    """Missing values replaced by the last one seen."""
    places = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))[:, None]), axis=0)
    return np.take_along_axis(values, places, axis=0)


def _metrics(row: Sequence[tuple[Forecasts, Tensor | None]]) -> Metrics:
    truth = torch.cat([one.truth for one, _ in row])
    locations = torch.cat([one.prediction.locations if guess is None else guess for one, guess in row])
    known = ~(truth - locations).isnan()
    sizes = torch.where(known, truth.abs(), 0.0)
    errors = torch.where(known, (truth - locations).abs(), 0.0)
    horizon = truth.shape[1]
    steps = sorted({round(1 + (horizon - 1) * i / (_SHOWN_STEPS - 1)) for i in range(_SHOWN_STEPS)})
    metrics = {ERROR: float(errors.sum() / sizes.sum())}
    if row and row[0][1] is None:
        prediction = Prediction(*(torch.cat(field) for field in zip(*(one.prediction for one, _ in row), strict=True)))
        losses = torch.stack([_quantile_loss(prediction, truth, q) for q in QUANTILES])
        metrics[QUANTILE_LOSS] = float(torch.where(known, losses, 0.0).sum() / len(QUANTILES) / sizes.sum())
        metrics[COVERAGE] = float((central_probability(prediction, truth)[known] < _INTERVAL).double().mean())
    else:
        metrics[QUANTILE_LOSS] = metrics[ERROR]
    return metrics | {
        f"{ERROR}, step {step}": float(errors[:, step - 1].sum() / sizes[:, step - 1].sum()) for step in steps
    }


def _quantile_loss(prediction: Prediction, truth: Tensor, q: float) -> Tensor:
    """Twice the quantile loss of each value, 0 where it is missing."""
    locations, scales, freedom = (field.numpy() for field in prediction)
    errors = truth - torch.from_numpy(stats.t.ppf(q, freedom, locations, scales))
    return (2 * torch.maximum(q * errors, (q - 1) * errors)).nan_to_num(0.0)
