"""Drawing from predictions. A draw takes a fixed number of uniform numbers, so that one never shifts the next.

Words are drawn over the vocabulary in the order of its ids, and values are smooth in what they are drawn from: a
prediction that differs in its last bits, as it may with other rows in the batch, all but always gives the same draw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_models.limits import LARGEST_VALUE
from hiddenstate_server.runtimes import DoubleArray, FloatArray, ValueOutputs

UNIFORMS_PER_VALUE = 2


class WordSampling(NamedTuple):
    """How words are chosen: the temperature first, then the `top_k` (0: all), then the `top_p` of these."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def greedy(self) -> bool:
        """Whether the most probable word is always taken."""
        return self.temperature == 0 or self.top_k == 1


def draw_word(log_probabilities: FloatArray, sampling: WordSampling, uniform: float) -> int:
    """A token, from log-probabilities [vocabulary] and a number in [0, 1); `sampling` is not greedy."""
    scaled = (log_probabilities - log_probabilities.max()).astype(np.float64) / sampling.temperature
    weights = np.exp(scaled)
    kept = np.arange(len(weights))
    if 0 < sampling.top_k < len(weights):
        kept = np.argpartition(scaled, -sampling.top_k)[-sampling.top_k :]
    if sampling.top_p < 1:
        kept = kept[np.argsort(-scaled[kept], kind="stable")]
        cumulative = weights[kept].cumsum()
        kept = kept[: np.searchsorted(cumulative, sampling.top_p * cumulative[-1]) + 1]
    kept.sort()
    cumulative = weights[kept].cumsum()
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(kept[min(int(place), len(kept) - 1)])


def draw_values(predictions: ValueOutputs, temperature: float, uniforms: DoubleArray) -> DoubleArray:
    """Values [n, targets] from uniform numbers in [0, 1) [n, targets, 2]; NaN where nothing was predicted.

    `temperature` multiplies the scales. Values stay within what a model can take.
    """
    deviations = _deviations(predictions.degrees_of_freedom.astype(np.float64), uniforms)
    values = predictions.locations + temperature * predictions.scales * deviations
    return np.clip(values, -LARGEST_VALUE, LARGEST_VALUE)


def _deviations(freedom: DoubleArray, uniforms: DoubleArray) -> NDArray[np.float64]:
    """Student's t, or a Gaussian where `freedom` is infinite, by the polar method (Bailey, 1994; Box and Muller)."""
    logarithms = np.log1p(-uniforms[..., 0])
    gaussian = np.isinf(freedom)
    finite = np.where(gaussian, 1.0, freedom)
    squares = np.where(gaussian, -2 * logarithms, finite * np.expm1(-2 * logarithms / finite))
    deviations: NDArray[np.float64] = np.sqrt(squares) * np.cos(2 * np.pi * uniforms[..., 1])
    return deviations
