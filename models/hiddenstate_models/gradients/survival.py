"""How much of the gradient of a step's loss is left at the states before it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hiddenstate_models.errors import DataError
from hiddenstate_models.gradients.unrolling import Unrolled

Floats = npt.NDArray[np.float64]

QUANTILES = (0.1, 0.5, 0.9)
ENOUGH = 8
"""A distance back is reported while at least so many (step, lane) pairs look so far back."""


@dataclass(frozen=True)
class Survival:
    """Norms of d loss_t / d h_(t-k), k = 0, 1, ..., in multiples of the norm at k = 0, over many steps t and lanes.

    Where a decoder writes H steps after t, the loss is of the last one, and the first H states back are the decoder's.
    """

    low: list[float]
    """A tenth of the pairs lie below."""
    median: list[float]
    high: list[float]
    """A tenth of the pairs lie above."""
    pairs: list[int]
    """(step, lane) pairs that look k steps back: a document's first steps do not look far."""
    first_norm: float
    """Median norm at k = 0, in nats per unit of state."""

    @property
    def steps(self) -> int:
        """How far back was measured."""
        return len(self.median) - 1

    @property
    def factor(self) -> float:
        """What a step back multiplies the gradient by: the slope of the median, fitted while a millionth is left."""
        values = np.array(self.median)
        end = int(np.argmax(values < 1e-6)) if (values < 1e-6).any() else len(values)
        if end < 2:
            return 0.0 if len(values) > 1 else 1.0
        return math.exp(np.polyfit(np.arange(end), np.log(values[:end]), 1)[0])

    @property
    def half_life(self) -> float:
        """Steps in which the gradient halves; infinite where it does not shrink."""
        if self.factor <= 0:
            return 0.0
        return math.log(0.5) / math.log(self.factor) if self.factor < 1 else math.inf

    def left(self, steps: int) -> float:
        """The share left `steps` steps back, or as far back as was measured."""
        return self.median[min(steps, self.steps)]

    def reach(self, share: float = 0.01) -> int | None:
        """The last distance before the gradient falls below `share`; None: it does not, as far as was measured."""
        below = np.array(self.median) < share
        return int(np.argmax(below)) - 1 if below.any() else None


def survivals(stretches: Iterable[Unrolled], steps: int, targets: int, epoch: int) -> tuple[Survival, list[Survival]]:
    """Of the whole state row, and of each layer's; `targets` steps t in every stretch look up to `steps` back."""
    norms = [pair for stretch in stretches for pair in _norms(stretch, steps, targets, epoch)]
    longest = max((pair.shape[1] for pair in norms), default=0)
    if not longest:
        raise DataError("no document is long enough to look back in: each has less than two observations with a target")
    padded = [np.pad(pair, ((0, 0), (0, longest - pair.shape[1])), constant_values=np.nan) for pair in norms]
    table = np.stack(padded)  # (pairs, rows, steps)
    whole, *layers = (_summary(table[:, row]) for row in range(table.shape[1]))
    return whole, layers


def _norms(stretch: Unrolled, steps: int, targets: int, epoch: int) -> Iterable[Floats]:
    """Of every (step, lane) pair, [1 + layers, k]: the whole row's, then the layers'."""
    depth, lanes = len(stretch.layers), stretch.known.shape[1]
    for time in _times(stretch, steps, targets):
        loss = stretch.loss(time, epoch)
        written = len(loss.written[0]) if loss.written else 0
        times = range(time, max(time + written - steps, 0) - 1, -1)
        states = [
            state
            for i, layer in enumerate(stretch.layers)
            for state in (*(loss.written[i][::-1] if written else ()), *(layer.after[at] for at in times))
        ]
        gradients = torch.autograd.grad(
            loss.value, states, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        # A decoder writes after several steps at once, in as many rows for each lane.
        norms_of = [gradient.norm(dim=1).view(-1, lanes) for gradient in gradients]
        layers = torch.stack([norm[loss.place if len(norm) > 1 else 0] for norm in norms_of]).view(depth, -1, lanes)
        whole = torch.linalg.vector_norm(layers, dim=0, keepdim=True)
        norms = np.nan_to_num(torch.cat((whole, layers)).numpy(), nan=math.inf, posinf=math.inf)
        for lane in range(norms.shape[2]):
            reach = min(steps, int(stretch.ages[time, lane]) + written)
            if stretch.known[time, lane] and reach and norms[0, 0, lane]:
                yield norms[:, : reach + 1, lane]


def _times(stretch: Unrolled, steps: int, targets: int) -> Sequence[int]:
    """Steps with a target, evenly spread over those that look back far enough, or else the farthest."""
    ages = torch.where(stretch.known, stretch.ages, 0).amax(1).numpy()
    candidates = np.flatnonzero(ages >= min(steps, ages.max()))
    if len(candidates) < targets:
        candidates = np.sort(np.argsort(-ages, kind="stable")[:targets])
        candidates = candidates[ages[candidates] > 0]
    places = np.linspace(0, len(candidates) - 1, min(targets, len(candidates))).round().astype(int)
    times: list[int] = candidates[places].tolist()
    return times


def _summary(norms: Floats) -> Survival:
    """Of norms [pairs, k], NaN where a pair does not look so far back."""
    counts = (~np.isnan(norms)).sum(0)
    norms = norms[:, counts >= min(ENOUGH, counts[0])]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(norms == 0, 0.0, norms / norms[:, :1])
    low, median, high = np.nanquantile(shares, QUANTILES, axis=0)
    return Survival(
        low.tolist(), median.tolist(), high.tolist(), counts[: shares.shape[1]].tolist(), float(np.median(norms[:, 0]))
    )
