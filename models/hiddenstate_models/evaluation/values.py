"""Scores of a next-value network, of persistence and of the seasonal naive forecast on the same values."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from hiddenstate_models.baselines.forecasts import (
    DEGREES_OF_FREEDOM,
    error_scales,
    find_period,
    persistence,
    seasonal_naive,
)
from hiddenstate_models.data.series import Series
from hiddenstate_models.evaluation.streaming import stream
from hiddenstate_models.networks.distributions import Prediction, central_probability, negative_log_likelihood
from hiddenstate_models.networks.values import NextValueNetwork

Floats = npt.NDArray[np.float64]
Metrics = dict[str, float]
"""Metric -> number; left out where it has no meaning."""

ERROR, RELATIVE, SURPRISE, COVERAGE = "mean error", "of persistence's", "surprise (nats)", "90 % coverage"
SEASONAL, PERIOD = "seasonal naive", "period"
_INTERVAL = 0.9
_LANES = 64
_STEPS = 256


def value_scores(network: NextValueNetwork, series: Sequence[Series]) -> dict[str, dict[str, Metrics]]:
    """Per target of every series, per row (the model, a baseline): absolute error, surprise and coverage in its units.

    The state is carried through each series from a fresh one. All rows of a series count the same values: those that
    are there and that all could predict with a scale; a series without such values is left out.
    """
    network.eval()
    scores: dict[str, dict[str, Metrics]] = {}
    for one, prediction in zip(series, predict(network, [one.values for one in series]), strict=True):
        for i, target in enumerate(network.config.targets):
            name = one.name if len(network.config.targets) == 1 else f"{one.name}/{one.columns[target]}"
            field = Prediction(*(parameter[:, i] for parameter in prediction))
            rows = _rows(field, one.values[:, target])
            if rows:
                scores[name] = rows
    return scores


def averages(scores: dict[str, dict[str, Metrics]]) -> dict[str, Metrics]:
    """Means over series of the metrics that can be compared between them; a baseline some lack is left out."""
    rows = [row for row in next(iter(scores.values())) if all(row in one for one in scores.values())]
    means: dict[str, Metrics] = {}
    for row in rows:
        present = [one[row] for one in scores.values()]
        metrics = {
            metric: [one[metric] for one in present if metric in one] for metric in (RELATIVE, SURPRISE, COVERAGE)
        }
        means[row] = {metric: float(np.mean(values)) for metric, values in metrics.items() if values}
    return means


@torch.no_grad()
def predict(network: NextValueNetwork, series: Sequence[Floats]) -> list[Prediction]:
    """What was predicted for each row of series [N, columns], as float64 [N, targets]; NaN before a first value."""
    predictions: dict[int, Prediction] = {}
    order = sorted(range(len(series)), key=lambda i: len(series[i]))
    for first in range(0, len(order), _LANES):
        chosen = order[first : first + _LANES]
        together = np.full((len(series[chosen[-1]]), len(chosen), network.config.columns), np.nan)
        for lane, i in enumerate(chosen):
            together[: len(series[i]), lane] = series[i]
        state = network.initial_state(len(chosen))
        parts = [
            Prediction(*(field.double() for field in forecast.prediction))
            for forecast in stream(network, torch.from_numpy(together).split(_STEPS), state)
        ]
        fields = [torch.cat([torch.full_like(whole[0][:1], torch.nan), *whole]) for whole in zip(*parts, strict=True)]
        for lane, i in enumerate(chosen):
            predictions[i] = Prediction(*(field[: len(series[i]), lane] for field in fields))
    return [predictions[i] for i in range(len(series))]


def _rows(prediction: Prediction, values: Floats) -> dict[str, Metrics]:
    rows = {"model": prediction, "persistence": _guessed(persistence(values), values)}
    period = find_period(values)
    if period is not None:
        rows[SEASONAL] = _guessed(seasonal_naive(values, period), values)
    target = torch.from_numpy(values)
    known = ~target.isnan()
    for row in rows.values():
        known &= ~(row.locations + row.scales).isnan()
    if not known.any():
        return {}
    scored = {name: _metrics(Prediction(*(field[known] for field in row)), target[known]) for name, row in rows.items()}
    if period is not None:
        scored[SEASONAL][PERIOD] = period
    step = scored["persistence"][ERROR]
    if step > 0:
        scored = {name: metrics | {RELATIVE: metrics[ERROR] / step} for name, metrics in scored.items()}
    return scored


def _guessed(locations: Floats, values: Floats) -> Prediction:
    """A forecast that believes its errors to be as large as they have been."""
    location = torch.from_numpy(locations)
    scale = torch.from_numpy(error_scales(values, locations))
    return Prediction(location, scale, torch.full_like(location, DEGREES_OF_FREEDOM))


def _metrics(prediction: Prediction, values: torch.Tensor) -> Metrics:
    return {
        ERROR: float((values - prediction.locations).abs().mean()),
        SURPRISE: float(negative_log_likelihood(prediction, values).mean()),
        COVERAGE: float((central_probability(prediction, values) < _INTERVAL).double().mean()),
    }
