"""Per-session online scaling of values: what the network sees and predicts has no unit.

Everything is computed one row at a time from a small state, so that a session can go on forever and a model
trained on one scale serves any other. There are no trainable weights. Models that were trained elsewhere keep the fixed
scaling they were trained with.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

LEVEL_RATES = (1 / 12, 1 / 200)
"""Rates of the moving averages that give a value its place: the recent level and the long one."""
SPREAD_RATE = 1 / 200
"""Rate of the moving averages of absolute deviations."""
OUTLIER = 30.0
"""A deviation counts as at most this many spreads, so that one glitch does not blind the session for hours."""
PRIOR_STEP = 0.05
"""Expected size of a step, relative to the value, until the series moves for the first time."""
SMALLEST_UNIT = 1e-30
LARGEST_RATIO = 1e6

_LEVELS = len(LEVEL_RATES)
_SPREADS = 1 + _LEVELS
STATE_ROWS = (1, 1, _SPREADS, _SPREADS, _SPREADS)
"""Rows of the state, each of one float a column: values seen, moves seen, spreads, references (high, low)."""
FEATURE_ROWS = (_SPREADS, _LEVELS, 1, 1)
"""Rows of the features: squashed deviations, log spreads, warm-up, missing."""


class Scaled(NamedTuple):
    """What scaling makes of values; a prediction `p` of the network means `anchors + units * p`."""

    features: Tensor
    """float32 [..., features]."""
    anchors: Tensor
    """float64 [..., columns]: the last value seen, or what is fixed; NaN while no value was seen."""
    units: Tensor
    """float64 [..., columns], positive: the typical size of a step, or what is fixed."""


class OnlineScaling(nn.Module):
    """Scales each column by what its own session has shown so far.

    The references of a value are the one before it and its moving averages; deviations from them are divided by
    their own moving average ("spread") and squashed. Only moves (a value unlike the last) update the spreads, so a
    series that stands still keeps its unit. A missing value (NaN) leaves everything as it was and raises a flag.
    Averages start as means that favour recent values (rate 2 / (n + 1)) until their own rate takes over.
    """

    level_rates: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.state_size = sum(STATE_ROWS) * columns
        self.feature_size = sum(FEATURE_ROWS) * columns
        rates = torch.tensor(LEVEL_RATES, dtype=torch.float32).unsqueeze(1)
        self.register_buffer("level_rates", rates, persistent=False)

    @torch.no_grad()
    def forward(self, values: Tensor, state: Tensor) -> tuple[Scaled, Tensor]:
        """Scale float64 [T, B, columns] from state float32 [B, state_size], zeros for a new session.

        Fields get a leading T. Only the averages are computed step by step, everything else for all steps at once.
        """
        batch = len(state)
        rows = state.view(batch, sum(STATE_ROWS), self.columns)
        seen, moves, spreads, high, low = torch.split(rows, list(STATE_ROWS), dim=1)
        references = high.double() + low.double()  # (B, 1 + levels, columns): last value, moving averages

        values = values.unsqueeze(2)  # (T, B, 1, columns), as all that follows; second to last the rows
        present = (~values.isnan()).float()
        values = _filled(values, references[:, :1])
        before = torch.cat([references[None, :, :1], values[:-1]])
        seen_before = seen + present.cumsum(0) - present
        fresh = seen_before == 0
        seen = seen_before + present
        last_deviations = values - torch.where(fresh, values, before)
        moved = (last_deviations != 0).float()
        moves = moves + moved.cumsum(0)
        warm_up = (2 / (moves + 1)).clamp(SPREAD_RATE, 1)

        rates = (torch.maximum(2 / (seen + 1), self.level_rates) * present).double()
        level_deviations, levels = _levels(values, fresh, rates, references[:, 1:])
        deviations = torch.cat([last_deviations, level_deviations], dim=2)
        spreads = _spreads(deviations.abs().float(), moves == 1, moved * warm_up, spreads)
        high, low = (torch.cat(pair, dim=1) for pair in zip(_split(values[-1]), _split(levels), strict=True))
        state = torch.cat([seen[-1], moves[-1], spreads[-1], high, low], dim=1)

        sizes = torch.where(values == 0, 1.0, values.abs()).float()
        units = torch.where(moves == 0, PRIOR_STEP * sizes, spreads).clamp(min=SMALLEST_UNIT)
        ratios = (deviations.float() / units).clamp(-LARGEST_RATIO, LARGEST_RATIO)
        smoothness = (units[:, :, 1:] / units[:, :, :1]).clamp(1 / LARGEST_RATIO, LARGEST_RATIO).log()
        features = torch.cat([ratios.asinh(), smoothness, warm_up, 1 - present], dim=2)
        anchors = torch.where(seen == 0, torch.nan, values)
        scaled = Scaled(features.flatten(2), anchors.squeeze(2), units[:, :, 0].double())
        return scaled, state.flatten(1)

    @torch.no_grad()
    def step(self, values: Tensor, state: Tensor) -> tuple[Scaled, Tensor]:
        """Scale one row, float64 [B, columns], from state float32 [B, state_size]."""
        scaled, state = self(values.unsqueeze(0), state)
        return Scaled(*(field.squeeze(0) for field in scaled)), state


def _filled(values: Tensor, last: Tensor) -> Tensor:
    """Values [T, B, 1, columns] as they will be remembered, or they would seem to move; for NaN the one before."""
    steps = torch.arange(1, len(values) + 1, device=values.device).view(-1, 1, 1, 1)
    newest = torch.where(values.isnan(), 0, steps).cummax(0).values
    high, low = _split(torch.cat([last[None], values]))
    return (high.double() + low.double()).gather(0, newest)


def _levels(values: Tensor, fresh: Tensor, rates: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """How far values are from their moving averages, float64 [T, B, levels, columns], and these after the last step.

    A value begins its session's averages where it is `fresh`.
    """
    deviations = []
    for value, first, rate in zip(values, fresh, rates, strict=True):
        levels = torch.where(first, value, levels)
        deviations.append(value - levels)
        high, low = _split(levels + rate * deviations[-1])
        levels = high.double() + low.double()
    return torch.stack(deviations), levels


def _spreads(sizes: Tensor, first: Tensor, rates: Tensor, spreads: Tensor) -> Tensor:
    """Moving averages of sizes [T, B, spreads, columns], outliers bounded but for the `first` move."""
    averages = []
    for size, unbounded, rate in zip(sizes, first, rates, strict=True):
        bounded = torch.where(unbounded, size, torch.minimum(size, OUTLIER * spreads))
        spreads = spreads + rate * (bounded - spreads)
        averages.append(spreads)
    return torch.stack(averages)


class FixedScaling(nn.Module):
    """Scales each column by a mean and a unit that never change, as models trained elsewhere do.

    A missing value (NaN) counts as the one before it. The state has the rows of OnlineScaling's, so that the last value
    lies where it does there; only the count of values and the last value are used. The means and units are weights.
    """

    means: Tensor
    units: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.state_size = sum(STATE_ROWS) * columns
        self.feature_size = columns
        self.register_buffer("means", torch.zeros(columns))
        self.register_buffer("units", torch.ones(columns))

    @torch.no_grad()
    def forward(self, values: Tensor, state: Tensor) -> tuple[Scaled, Tensor]:
        """See OnlineScaling."""
        steps = []
        for row in values:
            scaled, state = self.step(row, state)
            steps.append(scaled)
        return Scaled(*(torch.stack(field) for field in zip(*steps, strict=True))), state

    @torch.no_grad()
    def step(self, values: Tensor, state: Tensor) -> tuple[Scaled, Tensor]:
        """See OnlineScaling."""
        rows = list(state.view(len(state), -1, self.columns).split(list(STATE_ROWS), dim=1))
        last = last_values(state, self.columns)
        missing = values.isnan()
        values = torch.where(missing, last, values)
        high, low = _split(values.nan_to_num(0.0))
        rows[0] = rows[0] + (~missing).float().unsqueeze(1)
        values = torch.where(values.isnan(), values, high.double() + low.double())
        rows[3] = torch.cat([high.unsqueeze(1), rows[3][:, 1:]], dim=1)
        rows[4] = torch.cat([low.unsqueeze(1), rows[4][:, 1:]], dim=1)
        means, units = self.means.double(), self.units.double()
        features = ((values - means) / units).nan_to_num(0.0).float()
        anchors = torch.where(values.isnan(), torch.nan, means)
        return Scaled(features, anchors, units.expand_as(values)), torch.cat(rows, dim=1).flatten(1)


def last_values(state: Tensor, columns: int) -> Tensor:
    """float64 [B, columns] of scaling states float32 [B, state_size]; NaN where there was no value yet."""
    seen, _, _, high, low = torch.split(state.view(len(state), -1, columns), list(STATE_ROWS), dim=1)
    last: Tensor = (high[:, 0].double() + low[:, 0].double()).masked_fill(seen[:, 0] == 0, torch.nan)
    return last


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """A float64 as the sum of two float32: 48 bits, so that a counter near 2e9 is still seen to move by one."""
    high = values.float()
    return high, (values - high.double()).float()
