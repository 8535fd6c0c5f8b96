"""Learning to predict the next value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hiddenstate_models.data.lanes import Chunk, Lanes
from hiddenstate_models.data.series import Series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.networks.distributions import Prediction, central_probability, negative_log_likelihood
from hiddenstate_models.networks.scaling import LARGEST_RATIO
from hiddenstate_models.networks.values import Forecast, NextValueConfig, NextValueNetwork
from hiddenstate_models.training.augmentation import SHORTEST, altered_copies
from hiddenstate_models.training.options import TrainingOptions, option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told
from hiddenstate_models.training.series_options import SeriesFlags, cut, require_full_precision

Floats = npt.NDArray[np.float64]

COVERAGE = 0.9
_LAST_PART = 10
"""Without validation files the last such part of every series is held out."""
_EVALUATION_STEPS = 128
_WATCHED_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class NextValueOptions(SeriesFlags):
    """Settings of a next-value run: how the series are read, the network and its distribution."""

    augment: int = option(0, "Altered copies of every session: resampled, mixed, noisier, flipped, with gaps.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment < 0:
            raise ConfigurationError("augment must be at least 0")

    def network(self, columns: Sequence[str]) -> NextValueConfig:
        """The network's configuration for series with these columns."""
        return NextValueConfig(**self.series(columns))


class NextValueTask:
    """Every value from the ones before it, by negative log-likelihood in units of the series' own typical step."""

    def __init__(
        self,
        training: Sequence[Floats],
        validation: Sequence[Floats],
        config: NextValueConfig,
        options: TrainingOptions,
        values: NextValueOptions,
    ) -> None:
        sessions = cut(training, values.session)
        if not sessions:
            raise DataError("no series has two values to learn from")
        longer = [session for session in sessions if len(session) >= SHORTEST]
        if values.augment:
            sessions += altered_copies(longer or sessions, values.augment, options.seed)
        self.lanes = value_lanes(
            sessions, config, lanes=options.lanes, steps=options.k1, seed=options.seed, vary=options.sample_k1
        )
        self._validation = cut(validation, values.session)
        self._config = config
        self._coverage = 0.0

    def loss(self, _network: nn.Module, outputs: Forecast, targets: Tensor, _epoch: int) -> Tensor:
        """Summed surprise in nats of targets [T, B, targets], missing ones left out."""
        scaled, known = scaled_targets(outputs, targets)
        recent = Prediction(*(field[-_WATCHED_STEPS:].detach() for field in outputs.scaled))
        held = central_probability(recent, scaled[-_WATCHED_STEPS:]) < COVERAGE
        seen = known[-_WATCHED_STEPS:]
        if seen.any():
            self._coverage = float(held[seen].float().mean())
        return negative_log_likelihood(outputs.scaled, scaled).masked_fill(~known, 0).sum()

    def count(self, chunk: Chunk) -> int:
        """Values to predict."""
        return int((~np.isnan(chunk.targets)).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """For the progress bar: how much of the last window the 90 % intervals held."""
        return {"coverage": self._coverage}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean surprise, coverage of the 90 % interval, and absolute error relative to persistence."""
        return validate(cast(NextValueNetwork, network), self._validation)


def value_lanes(
    series: Sequence[Floats],
    config: NextValueConfig,
    *,
    lanes: int,
    steps: int,
    seed: int | None = None,
    whole: bool = False,
    vary: bool = False,
) -> Lanes:
    """Series as lanes: each row is the input at its place and, by its target columns, the target one before."""
    documents = [(values[:-1], values[1:, config.targets]) for values in series]
    return Lanes(documents, lanes=lanes, steps=steps, padding=np.nan, seed=seed, whole=whole, vary=vary)


def scaled_targets(forecast: Forecast, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets in the forecast's scaled units, 0 where missing or before a column's first value; which are known."""
    scaled = ((targets - forecast.anchors) / forecast.units).float().clamp(-LARGEST_RATIO, LARGEST_RATIO)
    return scaled.nan_to_num(0.0), ~scaled.isnan()


@torch.no_grad()
def validate(network: NextValueNetwork, series: Sequence[Floats], *, lanes: int = 64) -> dict[str, float]:
    """Scores over whole series, in scaled units: "loss" (nats), "coverage", "relative_error" (persistence is 1)."""
    data = value_lanes(series, network.config, lanes=lanes, steps=_EVALUATION_STEPS, whole=True)
    device = next(network.parameters()).device
    state = network.initial_state(lanes)
    sums = torch.zeros(5, dtype=torch.float64)
    for chunk in data.epoch(0):
        state = state.masked_fill(torch.from_numpy(chunk.starts).to(device).unsqueeze(1), 0)
        forecast, state = network(torch.from_numpy(chunk.inputs).to(device), state)
        targets, known = scaled_targets(forecast, torch.from_numpy(chunk.targets).to(device))
        prediction = Prediction(*(field[known] for field in forecast.scaled))
        targets = targets[known]
        losses = negative_log_likelihood(prediction, targets)
        held = central_probability(prediction, targets) < COVERAGE
        errors = (targets - prediction.locations).abs()
        parts = (losses, held, errors, targets.abs(), torch.ones_like(targets))
        sums += torch.stack([part.double().sum().cpu() for part in parts])
    loss, held_sum, error, step, count = sums.tolist()
    return {"loss": loss / count, "coverage": held_sum / count, "relative_error": error / step}


def _prepare(told: Told[NextValueOptions], _resumed: Path | None) -> Prepared:
    values = told.settings
    require_full_precision("next-value", told.training)
    training, validation = series_of(told.data, told.valid, values)
    columns = values.columns_of(training[0])
    config = values.network(columns)
    task = NextValueTask([s.values for s in training], [s.values for s in validation], config, told.training, values)
    facts = {
        "series": len(training),
        "values an epoch": task.lanes.steps_per_epoch * len(config.targets),
        "validation series": len(validation),
    }
    return Prepared(NextValueNetwork(config), config.to_dict(), task, facts, read={"columns": list(columns)})


def series_of(data: list[str], valid: list[str], values: NextValueOptions) -> tuple[list[Series], list[Series]]:
    """Series to learn from and to validate on: files of their own, or the last tenth of every series."""
    training, validation = values.read(data, valid)
    if validation:
        return training, validation
    ends = [len(one.values) - len(one.values) // _LAST_PART for one in training]
    return (
        [replace(one, values=one.values[:end]) for one, end in zip(training, ends, strict=True)],
        [replace(one, values=one.values[end:]) for one, end in zip(training, ends, strict=True)],
    )


NEXT_VALUE = Recipe(
    task="next-value",
    settings=NextValueOptions,
    group="values",
    unit="values",
    prepare=_prepare,
    help="""Train a next-value model on series.

    Example: hiddenstate-models train next-value --data 'sensors/*.csv' --valid sensors/roof.csv --out runs/sensors
    """,
    reads="CSV, Parquet (FILE:COLUMN for one column) or text files to learn from, globs, - for standard input, or "
    "hf:NAME[,CONF][:SPLIT][:COLUMN] of Hugging Face; repeatable.",
    holds_out="The same to validate on, never learnt from; without it, the end of every series.",
)
