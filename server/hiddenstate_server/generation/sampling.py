"""Drawing from predictions. A draw takes a fixed number of uniform numbers, so that one never shifts the next.

Words are drawn over the vocabulary in the order of its ids, and values are smooth in what they are drawn from: a
prediction that differs in its last bits, as it may with other rows in the batch, all but always gives the same draw.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hiddenstate_models.limits import LARGEST_VALUE
from hiddenstate_server.runtimes import DoubleArray, FloatArray, ValueOutputs

TokenArray: TypeAlias = NDArray[np.int64]

UNIFORMS_PER_VALUE = 2
COLDEST = 1e-4
"""A temperature below this one is 0."""
_FEW = 512


class WordSampling(NamedTuple):
    """How words are chosen: the temperature first, then the `top_k` (0: all), then the `top_p` of these."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def greedy(self) -> bool:
        """Whether the most probable word is always taken."""
        return self.temperature < COLDEST or self.top_k == 1


def draw_word(log_probabilities: FloatArray, sampling: WordSampling, uniform: float) -> int:
    """A token, from log-probabilities [vocabulary] and a number in [0, 1); `sampling` is not greedy."""
    weights = np.exp((log_probabilities - log_probabilities.max()) / sampling.temperature)
    kept = _kept(weights, sampling)
    cumulative = (weights if kept is None else weights[kept]).cumsum(dtype=np.float64)
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return place if kept is None else int(kept[place])


def _kept(weights: FloatArray, sampling: WordSampling) -> TokenArray | None:
    """Tokens that can be drawn, in the order of ids; None for all."""
    kept = None
    if 0 < sampling.top_k < len(weights):
        kept = _heaviest(weights, sampling.top_k)
    if sampling.top_p < 1:
        within = weights if kept is None else weights[kept]
        enough = sampling.top_p * within.sum(dtype=np.float64)
        # Few words nearly always have most of the probability, and few are sorted much faster than all.
        few = _heaviest(within, min(_FEW, len(within)))
        if within[few].sum(dtype=np.float64) < enough:
            few = np.arange(len(within))
        few = few[np.argsort(-within[few], kind="stable")]
        few = few[: np.searchsorted(within[few].cumsum(dtype=np.float64), enough) + 1]
        kept = few if kept is None else kept[few]
    return None if kept is None else np.sort(kept)


def _heaviest(weights: FloatArray, count: int) -> TokenArray:
    return np.argpartition(weights, -count)[-count:]


def draw_notes(probabilities: FloatArray, temperature: float, uniforms: DoubleArray) -> DoubleArray:
    """Frames [n, notes] of 0 and 1, each note by itself, from uniform numbers in [0, 1) of the same shape.

    `temperature` divides the logits; at 0 a note sounds if it is more probable than not.
    """
    likely = probabilities.astype(np.float64)
    if temperature < COLDEST:
        return np.where(likely > 0.5, 1.0, 0.0)
    with np.errstate(divide="ignore"):
        logits = np.log(likely) - np.log1p(-likely)
        # Logistic noise decides as a comparison with the probability would, without overflow.
        noise = np.log1p(-uniforms) - np.log(uniforms)
    return np.where(logits / temperature + noise > 0, 1.0, 0.0)


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
