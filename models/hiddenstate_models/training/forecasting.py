"""Learning to forecast several steps ahead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hiddenstate_models.data.lanes import Chunk, Lanes
from hiddenstate_models.data.series import Series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.networks.distributions import Prediction, central_probability, negative_log_likelihood
from hiddenstate_models.networks.forecasting import ForecastingConfig, ForecastingNetwork, Origins
from hiddenstate_models.networks.scaling import LARGEST_RATIO
from hiddenstate_models.training.next_value import COVERAGE
from hiddenstate_models.training.options import TrainingOptions, layer_sizes, option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told
from hiddenstate_models.training.series_options import SeriesFlags, cut, require_full_precision

Floats = npt.NDArray[np.float64]

_LANES = 64


@dataclass(frozen=True, kw_only=True)
class ForecastingOptions(SeriesFlags):
    """Settings of a forecasting run: how the series are read, the network and how it is taught."""

    horizon: int = option(24, "Steps to forecast.")
    seasons: str = option(
        "", "Lengths in steps of what repeats, such as 24,168 in hourly data: the values so long before are inputs."
    )
    origins: int = option(4, "Forecasts learnt from in k1 steps; they begin at steps drawn at random.")
    teacher_forcing: float = option(
        0.0,
        "Share of the decoder's inputs in training that are true values instead of its own (Williams & Zipser, 1989).",
    )
    windows: int = option(
        1, "Forecasts at the end of every series that are validated on, a horizon apart; without --valid held out."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.origins, self.windows) < 1:
            raise ConfigurationError("origins and windows must be at least 1")
        if not 0 <= self.teacher_forcing <= 1:
            raise ConfigurationError(f"teacher-forcing is a share from 0 to 1, not {self.teacher_forcing}")

    def network(self, columns: Sequence[str]) -> ForecastingConfig:
        """The network's configuration for series with these columns."""
        seasons = layer_sizes(self.seasons) if self.seasons else ()
        return ForecastingConfig(**self.series(columns), horizon=self.horizon, seasons=seasons)


class ForecastingTask:
    """The next H values from the ones before, by negative log-likelihood in units of the series' own typical step."""

    def __init__(
        self,
        training: Sequence[Floats],
        validation: Sequence[Floats],
        config: ForecastingConfig,
        options: TrainingOptions,
        forecasting: ForecastingOptions,
    ) -> None:
        sessions = cut(training, forecasting.session)
        if not sessions:
            raise DataError("no series has two values to learn from")
        self.lanes = ForecastingLanes(
            sessions,
            config,
            origins=forecasting.origins,
            lanes=options.lanes,
            steps=options.k1,
            seed=options.seed,
            vary=options.sample_k1,
        )
        self._validation = validation
        self._windows = forecasting.windows
        self._share = forecasting.teacher_forcing

    def loss(self, network: nn.Module, outputs: Origins, targets: Tensor, _epoch: int) -> Tensor:
        """Summed surprise in nats of targets [S, B, horizon, targets], missing ones left out."""
        scaled, known = scaled_truth(outputs, targets)
        truth = scaled.masked_fill(~known, torch.nan)
        share = self._share if network.training else 0.0
        prediction = cast(ForecastingNetwork, network).decode(outputs, truth, share)
        return negative_log_likelihood(prediction, scaled).masked_fill(~known, 0).sum()

    def count(self, chunk: Chunk) -> int:
        """Values to predict."""
        return int((~np.isnan(chunk.targets)).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean surprise of a value, coverage of the 90 % interval, over the last windows of every series."""
        return validate(cast(ForecastingNetwork, network), self._validation, self._windows)


class ForecastingLanes(Lanes):
    """Series as lanes: each row is an input, and the target columns of the `horizon` rows after it the target.

    Of every chunk `origins` steps keep their targets, drawn by (seed, epoch, chunk), so that all processes of a run
    forecast from the same ones.
    """

    def __init__(
        self,
        series: Sequence[Floats],
        config: ForecastingConfig,
        *,
        origins: int,
        lanes: int,
        steps: int,
        seed: int,
        vary: bool = False,
    ) -> None:
        documents = []
        for values in series:
            ahead = np.full((config.horizon - 1, len(config.targets)), np.nan)
            padded = np.concatenate([values[1:, config.targets], ahead])
            windows = np.lib.stride_tricks.sliding_window_view(padded, config.horizon, axis=0)
            documents.append((values[:-1], windows.swapaxes(1, 2)))
        super().__init__(documents, lanes=lanes, steps=steps, padding=np.nan, seed=seed, vary=vary)
        self._origins = origins
        self._draws = seed

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Chunk]:
        """See Lanes."""
        for number, chunk in enumerate(super().epoch(epoch, skip), start=skip):
            generator = np.random.default_rng((self._draws, epoch, number))
            steps = len(chunk.inputs)
            places = np.sort(generator.permutation(steps)[: self._origins])
            yield chunk._replace(targets=chunk.targets[places], places=places)


def scaled_truth(origins: Origins, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets [S, B, horizon, targets] in the forecasts' scaled units, 0 where unknown; which are known."""
    scaled = (targets - origins.anchors.unsqueeze(2)) / origins.units.unsqueeze(2)
    scaled = scaled.float().clamp(-LARGEST_RATIO, LARGEST_RATIO)
    return scaled.nan_to_num(0.0), ~scaled.isnan()


class Forecasts(NamedTuple):
    """What was forecast of a series, window by window, and what came."""

    prediction: Prediction
    """[windows, horizon, targets], in the series' units."""
    truth: Tensor
    """float64 [windows, horizon, targets]; NaN where missing."""
    units: Tensor
    """float64 [windows, 1, targets]: the typical size of a step when the forecast was made."""


@torch.no_grad()
def forecast_ends(network: ForecastingNetwork, series: Sequence[Floats], windows: int) -> list[Forecasts]:
    """Forecasts of the last `windows` horizons of every series [N, columns], each from all that came before it.

    Of a series too short for all windows those that leave two values to begin with; perhaps none.
    """
    config = network.config
    horizon, targets = config.horizon, list(config.targets)
    device = next(network.parameters()).device
    places = [[end - 1 for end in range(len(one) - windows * horizon, len(one), horizon) if end > 1] for one in series]
    found: dict[int, Forecasts] = {}
    order = sorted(range(len(series)), key=lambda i: len(series[i]))
    for first in range(0, len(order), _LANES):
        chosen = order[first : first + _LANES]
        together = torch.full((len(series[chosen[-1]]), len(chosen), config.columns), torch.nan, dtype=torch.float64)
        for lane, i in enumerate(chosen):
            together[: len(series[i]), lane] = torch.from_numpy(series[i])
        every = sorted({place for i in chosen for place in places[i]})
        pairs = [(every.index(place), lane) for lane, i in enumerate(chosen) for place in places[i]]
        if not pairs:
            found |= {i: _nothing(config) for i in chosen}
            continue
        state = network.initial_state(len(chosen))
        origins, _ = network(together.to(device), state, every)
        step, lane = torch.tensor(pairs, device=device).T
        picked = Origins(
            places=origins.places[:1],
            states=origins.states[step, lane].unsqueeze(0),
            anchors=origins.anchors[step, lane].unsqueeze(0),
            units=origins.units[step, lane].unsqueeze(0),
            seasonal=origins.seasonal[:, step, lane].unsqueeze(1),
        )
        prediction = Prediction(*(field[0].double().cpu() for field in network.predict(picked)))
        done = 0
        for i in chosen:
            own = slice(done, done + len(places[i]))
            done = own.stop
            truth = [torch.from_numpy(series[i][place + 1 : place + 1 + horizon, targets]) for place in places[i]]
            found[i] = Forecasts(
                Prediction(*(field[own] for field in prediction)),
                torch.stack(truth) if truth else prediction.locations[:0],
                picked.units[0, own].unsqueeze(1).cpu(),
            )
    return [found[i] for i in range(len(series))]


def _nothing(config: ForecastingConfig) -> Forecasts:
    empty = torch.zeros(0, config.horizon, len(config.targets), dtype=torch.float64)
    return Forecasts(Prediction(empty, empty, empty), empty, empty[:, :1])


def validate(network: ForecastingNetwork, series: Sequence[Floats], windows: int) -> dict[str, float]:
    """Scores of the last windows of series, in scaled units: "loss" (nats a value) and "coverage"."""
    losses, held = [], []
    for one in forecast_ends(network, series, windows):
        locations, scales, freedom = one.prediction
        truth = one.truth
        scaled = Prediction(locations / one.units, scales / one.units, freedom)
        surprises = negative_log_likelihood(scaled, truth / one.units)
        known = ~surprises.isnan()
        losses.append(surprises[known])
        held.append(central_probability(one.prediction, truth)[known] < COVERAGE)
    every = torch.cat(losses)
    if not len(every):
        raise DataError("no validation series is longer than the horizon; choose a smaller --horizon")
    return {"loss": float(every.mean()), "coverage": float(torch.cat(held).double().mean())}


def _prepare(told: Told[ForecastingOptions], _resumed: Path | None) -> Prepared:
    forecasting = told.settings
    require_full_precision("forecasting", told.training)
    training, validation = _series(told.data, told.valid, forecasting)
    columns = forecasting.columns_of(training[0])
    config = forecasting.network(columns)
    network = ForecastingNetwork(config)
    learnt, scored = [one.values for one in training], [one.values for one in validation]
    task = ForecastingTask(learnt, scored, config, told.training, forecasting)
    facts = {
        "series": len(training),
        "values an epoch": task.lanes.steps_per_epoch * len(config.targets),
        "validation series": len(validation),
    }
    return Prepared(
        network, config.to_dict(), task, facts, read={"columns": list(columns), "validation": told.valid or told.data}
    )


def _series(data: list[str], valid: list[str], forecasting: ForecastingOptions) -> tuple[list[Series], list[Series]]:
    """Series to learn from and to validate on: of files of their own, or all, of which the ends are not learnt from."""
    training, validation = forecasting.read(data, [] if valid == data else valid)
    if validation:
        return training, validation
    rows = forecasting.windows * forecasting.horizon
    return [replace(one, values=one.values[:-rows]) for one in training], training


FORECASTING = Recipe(
    task="forecasting",
    settings=ForecastingOptions,
    group="forecasting",
    unit="values",
    prepare=_prepare,
    help="""Train a model that forecasts several steps of a series.

    Example: hiddenstate-models train forecasting --data load.csv --horizon 48 --seasons 24,168 --out runs/load
    """,
    reads="CSV, Parquet (FILE:COLUMN for one column) or text files to learn from, globs, - for standard input, or "
    "hf:NAME[,CONF][:SPLIT][:COLUMN] of Hugging Face; repeatable.",
    holds_out="The same to validate on, never learnt from; without it, the end of every series.",
)
