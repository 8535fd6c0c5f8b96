"""The next-value network: scaling -> stack of cells -> a distribution for every target."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hiddenstate_models.cells import Cell, CellOptions, RecurrentStack
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.distributions import PARAMETERS, Prediction, in_units, read_head
from hiddenstate_models.networks.scaling import FixedScaling, OnlineScaling, Scaled


@dataclass(frozen=True, kw_only=True)
class NextValueConfig(CellOptions):
    """A network that reads rows of `columns` values and predicts the next of those at the indices `targets`."""

    cell: Cell = "gru"
    hidden_sizes: tuple[int, ...] = (64,)
    columns: int = 1
    targets: tuple[int, ...] = (0,)
    distribution: Literal["student-t", "gaussian"] = "student-t"
    scaling: Literal["online", "fixed"] = "online"
    """Of values: by what each session has shown so far, or by means and units among the weights."""

    task: Literal["next-value"] = "next-value"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or not all(0 <= target < self.columns for target in self.targets):
            raise ConfigurationError(f"targets must be indices of the {self.columns} columns, not {self.targets}")


class Forecast(NamedTuple):
    """Predictions in scaled units, and what makes them values: anchors + units * location, of every target."""

    scaled: Prediction
    anchors: Tensor
    """float64 [..., targets]; NaN before a column's first value."""
    units: Tensor
    """float64 [..., targets]."""

    @property
    def prediction(self) -> Prediction:
        """In the client's units, locations and scales float64."""
        return in_units(self.scaled, self.anchors, self.units)


class NextValueNetwork(nn.Module):
    """Scaling, cells and head as one; `forward` and `step` agree. State rows are [recurrent | scaling]."""

    def __init__(self, config: NextValueConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = (OnlineScaling if config.scaling == "online" else FixedScaling)(config.columns)
        self.cells = RecurrentStack(self.encoder.feature_size, config)
        self.head = nn.Linear(self.cells.output_size, PARAMETERS[config.distribution] * len(config.targets))
        self._sizes = [self.cells.state_size, self.encoder.state_size]

    @property
    def state_size(self) -> int:
        """Numbers in a session's state."""
        return sum(self._sizes)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def forward(self, values: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        """values float64 [T, B, columns], state [B, state_size] -> forecasts of T next rows, state after the last."""
        recurrent, scaling = torch.split(state, self._sizes, dim=1)
        scaled, scaling = self.encoder(values, scaling)
        outputs, recurrent = self.cells(scaled.features, recurrent)
        return self._forecast(self.cells.drop(outputs), scaled), torch.cat([recurrent, scaling], dim=1)

    def step(self, values: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        """values float64 [B, columns], state [B, state_size] -> forecast of the next row, state."""
        recurrent, scaling = torch.split(state, self._sizes, dim=1)
        scaled, scaling = self.encoder.step(values, scaling)
        output, recurrent = self.cells.step(scaled.features, recurrent)
        return self._forecast(output, scaled), torch.cat([recurrent, scaling], dim=1)

    def _forecast(self, outputs: Tensor, scaled: Scaled) -> Forecast:
        targets = list(self.config.targets)
        prediction = read_head(self.head(outputs), self.config.distribution)
        return Forecast(prediction, scaled.anchors[..., targets], scaled.units[..., targets])
