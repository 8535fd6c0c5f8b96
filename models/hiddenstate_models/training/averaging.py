"""Averages of a network's weights over updates, which often generalise better than the last weights.

ema      an exponential moving average (Polyak & Juditsky, 1992; as used since by Szegedy et al., 2016)
asgd     the mean of all updates' weights (averaged SGD, Polyak & Juditsky, 1992)
nt-asgd  the mean from the epoch on in which validation stopped improving (NT-ASGD, Merity et al., 2018)
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from hiddenstate_models.training.options import TrainingOptions


class WeightAverage:
    """A copy of a network that holds the average of its weights."""

    def __init__(self, network: nn.Module, options: TrainingOptions) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._shortest = 1 - options.average_decay if options.average == "ema" else 0.0

    @torch.no_grad()
    def add(self, network: nn.Module, before: int) -> None:
        """Takes in the weights as they are now, after `before` others.

        A moving average begins as a plain mean, so that the weights it starts from do not linger.
        """
        share = max(self._shortest, 1 / (before + 1))
        for average, weights in zip(self.network.parameters(), network.parameters(), strict=True):
            average.lerp_(weights, share)
        for kept, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)


def stopped_improving(losses: Sequence[float], non_monotone: int) -> bool:
    """NT-ASGD's sign to begin: the last loss is above the best of all but the `non_monotone` ones before it."""
    earlier = losses[: -non_monotone - 1]
    return bool(earlier) and losses[-1] > min(earlier)
