"""The forecasting network: an encoder reads a series, a decoder that starts from its state writes the next H values.

Sequence to sequence as in Sutskever et al. (2014), over values: after each one the encoder's state is handed to the
decoder, whose own predicted locations are its next inputs. A linear path from the last prediction and from the values
a season before runs beside it, so that the recurrent part has only what they miss to learn (Lai et al., 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import Cell, CellOptions, RecurrentStack
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.distributions import PARAMETERS, Prediction, in_units, read_head
from hiddenstate_models.networks.scaling import LARGEST_RATIO, OnlineScaling, last_values


@dataclass(frozen=True, kw_only=True)
class ForecastingConfig(CellOptions):
    """A network that reads rows of `columns` values and predicts the next `horizon` of those at indices `targets`."""

    cell: Cell = "gru"
    hidden_sizes: tuple[int, ...] = (64,)
    columns: int = 1
    targets: tuple[int, ...] = (0,)
    distribution: Literal["student-t", "gaussian"] = "student-t"
    horizon: int = 24
    """Steps it predicts."""
    seasons: tuple[int, ...] = ()
    """Lengths in steps of what repeats; the values so long before are inputs."""

    task: Literal["forecasting"] = "forecasting"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or not all(0 <= target < self.columns for target in self.targets):
            raise ConfigurationError(f"targets must be indices of the {self.columns} columns, not {self.targets}")
        if self.horizon < 1:
            raise ConfigurationError(f"the horizon must be at least 1 step, not {self.horizon}")
        if any(season < 2 for season in self.seasons):
            raise ConfigurationError(f"a season must be at least 2 steps long, not {min(self.seasons)}")

    @property
    def memory(self) -> int:
        """How many of the last moves are kept to know the values a season before."""
        return max(self.seasons, default=0)

    @property
    def lags(self) -> list[list[int]]:
        """By step of the forecast and season: how far before the forecast's origin the newest value lies that is
        a whole number of seasons before that step."""
        return [[-step % season for season in self.seasons] for step in range(1, self.horizon + 1)]


class Origins(NamedTuple):
    """Where forecasts begin: after S steps of B series."""

    places: Tensor
    """int64 [S]: the steps, in order."""
    states: Tensor
    """[S, B, state]: the encoder's."""
    anchors: Tensor
    """float64 [S, B, targets]: the last values; NaN before a column's first."""
    units: Tensor
    """float64 [S, B, targets]: the typical size of a step."""
    seasonal: Tensor
    """[horizon, S, B, seasons, targets]: the values a season before, from the anchors on and in units."""


class ForecastingNetwork(nn.Module):
    """Scaling, encoder, decoder and head as one; state rows are [encoder | scaling | last moves of the targets]."""

    def __init__(self, config: ForecastingConfig) -> None:
        super().__init__()
        self.config = config
        self.targets: Tensor
        self.register_buffer("targets", torch.tensor(config.targets), persistent=False)
        targets, inputs = len(config.targets), (1 + len(config.seasons)) * len(config.targets)
        self.encoder = OnlineScaling(config.columns)
        self.cells = RecurrentStack(self.encoder.feature_size + len(config.seasons) * targets, config)
        self.decoder = RecurrentStack(inputs, config)
        self.head = nn.Linear(self.decoder.output_size, PARAMETERS[config.distribution] * targets)
        # Of the last prediction and the values a season before; begins as the naive forecast of the longest season.
        naive = [0.0, *(float(season == config.memory) for season in config.seasons)] if config.seasons else [1.0]
        self.linear = nn.Parameter(torch.tensor(naive))
        self._sizes = [self.cells.state_size, self.encoder.state_size, config.memory * targets]

    @property
    def state_size(self) -> int:
        """Numbers in a session's state."""
        return sum(self._sizes)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def forward(self, values: Tensor, state: Tensor, places: Sequence[int] | None = None) -> tuple[Origins, Tensor]:
        """values float64 [T, B, columns], state [B, state_size] -> where forecasts begin, state after the last.

        Forecasts begin after the steps at `places` [S], in order; None: after every one.
        """

        def chosen(x: Tensor) -> Tensor:
            return x if places is None else x[places]

        recurrent, scaling, moves = torch.split(state, self._sizes, dim=1)
        scaled, after = self.encoder(values, scaling)
        anchors, units = (field.index_select(-1, self.targets) for field in (scaled.anchors, scaled.units))
        last = last_values(scaling, self.config.columns).index_select(-1, self.targets)
        history = self._history(moves, last, anchors)
        levels = F.pad(history.double().cumsum(0), (0, 0, 0, 0, 1, 0))
        deviations = [self._before(levels, units, season).neg() for season in self.config.seasons]
        features = torch.cat([scaled.features.to(state.dtype), *(d.to(state.dtype).asinh() for d in deviations)], dim=2)

        states, done = [], 0
        with self.cells.one_sequence():
            for place in range(len(values)) if places is None else places:
                recurrent = self._advance(features[done : place + 1], recurrent)
                states.append(recurrent)
                done = place + 1
            if done < len(values):
                recurrent = self._advance(features[done:], recurrent)

        none = chosen(units).unsqueeze(2)[:, :, :0]
        seasonal = [
            torch.cat([none, *(chosen(self._before(levels, units, lag)).unsqueeze(2) for lag in lags)], dim=2)
            for lags in self.config.lags
        ]
        origins = Origins(
            places=chosen(torch.arange(len(values), device=values.device)),
            states=torch.stack(states),
            anchors=chosen(anchors),
            units=chosen(units),
            seasonal=torch.stack(seasonal).to(state.dtype),
        )
        moves = history[len(history) - self.config.memory :].transpose(0, 1).flatten(1)
        return origins, torch.cat([recurrent, after, moves.to(state.dtype)], dim=1)

    def _advance(self, features: Tensor, recurrent: Tensor) -> Tensor:
        """The encoder's state after features [T, B, features]."""
        if len(features) == 1 and not self.training:
            return self.cells.step(features[0], recurrent)[1]
        after: Tensor = self.cells(features, recurrent)[1]
        return after

    def decode(self, origins: Origins, truth: Tensor | None = None, share: float = 0.0) -> Prediction:
        """Forecasts [S, B, horizon, targets] in scaled units, each step from what was predicted for the one before.

        With `truth` [S, B, horizon, targets], in scaled units and NaN where unknown, a `share` of the inputs are the
        true values instead (teacher forcing: Williams & Zipser, 1989).
        """
        with self.decoder.one_sequence():
            return self._decode(origins, truth, share)

    def _decode(self, origins: Origins, truth: Tensor | None, share: float) -> Prediction:
        count, batch, targets = origins.units.shape
        state = origins.states.flatten(0, 1)
        before = state.new_zeros(count * batch, targets)
        steps: list[Prediction] = []
        for step, seasonal in enumerate(origins.seasonal.flatten(1, 2)):
            inputs = torch.cat([before.unsqueeze(1), seasonal], dim=1)
            output, state = self._write(inputs.asinh().flatten(1), state)
            output = self.decoder.drop(output.unsqueeze(0))[0]
            location, scale, freedom = read_head(self.head(output), self.config.distribution)
            location = location + torch.einsum("i,nit->nt", self.linear, inputs)
            steps.append(Prediction(location, scale, freedom))
            before = location.clamp(-LARGEST_RATIO, LARGEST_RATIO)
            if truth is not None and share:
                actual = truth[:, :, step].flatten(0, 1).to(before.dtype)
                forced = (torch.rand(len(before), 1, device=before.device) < share) & ~actual.isnan()
                before = torch.where(forced, actual.nan_to_num(0.0), before)
        fields = (torch.stack(field, dim=1) for field in zip(*steps, strict=True))
        return Prediction(*(field.unflatten(0, (count, batch)) for field in fields))

    def _write(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's output and state after inputs [S * B, inputs]; in training with whatever it drops inside."""
        inside = self.config.weight_dropout or (self.config.dropout and len(self.config.hidden_sizes) > 1)
        if not self.training or not inside:
            return self.decoder.step(inputs, state)
        outputs, state = self.decoder(inputs.unsqueeze(0), state)
        return outputs[0], state

    def step(self, values: Tensor, state: Tensor) -> tuple[Origins, Tensor]:
        """values float64 [B, columns], state [B, state_size] -> where the forecast begins, state."""
        return self.forward(values.unsqueeze(0), state)

    def predict(self, origins: Origins) -> Prediction:
        """Forecasts [S, B, horizon, targets] in the client's units, locations and scales float64."""
        return in_units(self.decode(origins), origins.anchors.unsqueeze(2), origins.units.unsqueeze(2))

    def _history(self, moves: Tensor, last: Tensor, anchors: Tensor) -> Tensor:
        """[memory + T, B, targets]: how far each target moved at each step; 0 if a value was missing or the first."""
        now = (anchors - torch.cat([last.unsqueeze(0), anchors[:-1]])).nan_to_num(0.0).float()
        kept = moves.unflatten(1, (self.config.memory, -1)).transpose(0, 1) if self.config.memory else now[:0]
        return torch.cat([kept.to(now.dtype), now])

    def _before(self, levels: Tensor, units: Tensor, lag: int) -> Tensor:
        """float64 [T, B, targets]: the value `lag` steps before each step, from the value at that step on, in units.

        `levels` are sums of moves, [1 + memory + T, B, targets].
        """
        now = levels[self.config.memory + 1 :]
        then = levels[self.config.memory + 1 - lag : len(levels) - lag]
        return ((then - now) / units).clamp(-LARGEST_RATIO, LARGEST_RATIO)
