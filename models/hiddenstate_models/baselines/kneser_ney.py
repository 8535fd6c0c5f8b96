"""Interpolated modified Kneser-Ney n-grams (Chen & Goodman, 1999) over documents of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from hiddenstate_models.data.text import Corpus

Floats = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]

_UNSEEN = -1
_NO_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length, by id, and what they add to the probabilities of the next shorter length."""

    keys: _Ids
    """[n-grams + 1], rising: id of the context * vocabulary + word, so one context's n-grams lie side by side; a
    last one that no n-gram has."""
    gains: Floats
    """[n-grams]: discounted share of the context's count."""
    backoffs: Floats
    """[contexts]: the share left to the shorter context; 1 where nothing ever followed."""

    def find(self, keys: _Ids) -> _Ids:
        """Ids of keys, _UNSEEN for those (negative ones among them) that did not occur."""
        places = np.searchsorted(self.keys, keys)
        return np.where(self.keys[places] == keys, places, _UNSEEN)


class KneserNey:
    """A closed-vocabulary n-gram model; after every context the probabilities of all words sum to one.

    A document's first token is its context and is not predicted. No n-gram crosses from one document to another.
    """

    def __init__(self, orders: list[_Order], vocabulary_size: int) -> None:
        unigrams, *self._orders = orders
        self._vocabulary_size = vocabulary_size
        self._unigrams = unigrams.backoffs[0] / vocabulary_size + unigrams.gains

    @classmethod
    def fit(cls, corpus: Corpus, vocabulary_size: int, order: int = 5) -> Self:
        """Count a corpus whose tokens are all smaller than `vocabulary_size`; `order` is at least 2."""
        tokens = corpus.tokens.astype(np.int64)
        offsets = _offsets(corpus)
        orders: list[_Order] = []
        contexts, keys, ids = 1, np.arange(vocabulary_size), tokens
        for length in range(1, order):
            places = np.flatnonzero(offsets >= length)
            longer = ids[places - 1] * vocabulary_size + tokens[places]
            longer_keys, first, longer_ids = np.unique(longer, return_index=True, return_inverse=True)
            # A shorter n-gram counts the different words before it, not how often it came; where nothing can come
            # before it, at a document's beginning, it counts as it is.
            before = ids[places[first]] if length == 1 else np.append(ids[places[first]], ids[offsets == length - 1])
            orders.append(_discount(keys, np.bincount(before, minlength=len(keys)), contexts, vocabulary_size))
            contexts, keys = len(keys), longer_keys
            ids = np.full(len(tokens), _UNSEEN)
            ids[places] = longer_ids
        counts = np.bincount(ids[ids != _UNSEEN], minlength=len(keys))
        orders.append(_discount(keys, counts, contexts, vocabulary_size))
        return cls(orders, vocabulary_size)

    def log_probabilities(self, corpus: Corpus) -> Floats:
        """Natural log-probability of every token but its document's first, in order."""
        tokens = corpus.tokens.astype(np.int64)
        words = np.flatnonzero(_offsets(corpus) > 0)
        probabilities = self._unigrams[tokens[words]]
        ids = tokens
        for order in self._orders:
            contexts = ids[words - 1]
            grams = order.find(np.where(contexts == _UNSEEN, _UNSEEN, contexts * self._vocabulary_size + tokens[words]))
            probabilities *= np.where(contexts == _UNSEEN, 1.0, order.backoffs[contexts])
            probabilities += np.where(grams == _UNSEEN, 0.0, order.gains[grams])
            ids = np.full(len(tokens), _UNSEEN)
            ids[words] = grams
        logarithms: Floats = np.log(probabilities)
        return logarithms

    def distribution(self, context: npt.NDArray[np.integer]) -> Floats:
        """Probabilities [vocabulary] of the next word of a document that so far is `context` [n >= 1]."""
        probabilities: Floats = self._unigrams.copy()
        size = self._vocabulary_size
        history = context[-len(self._orders) :].astype(np.int64)
        ids = history
        for order in self._orders[: len(history)]:
            if ids[-1] == _UNSEEN:
                break
            first = ids[-1] * size
            low, high = np.searchsorted(order.keys, (first, first + size))
            probabilities *= order.backoffs[ids[-1]]
            probabilities[order.keys[low:high] - first] += order.gains[low:high]
            history = history[1:]
            ids = order.find(np.where(ids[:-1] == _UNSEEN, _UNSEEN, ids[:-1] * size + history))
        return probabilities

    def accuracies(self, corpus: Corpus, tops: Sequence[int], sample: int = 5000, seed: int = 0) -> list[float]:
        """For each k of `tops`, the share of `sample` random words that were among the k most probable."""
        offsets = _offsets(corpus)
        words = np.flatnonzero(offsets > 0)
        chosen = np.random.default_rng(seed).choice(words, min(sample, len(words)), replace=False)
        ranks = np.empty(len(chosen), np.int64)
        for row, word in enumerate(chosen):
            probabilities = self.distribution(corpus.tokens[word - min(offsets[word], len(self._orders)) : word])
            ranks[row] = (probabilities > probabilities[corpus.tokens[word]]).sum()
        return [float((ranks < k).mean()) for k in tops]


def _offsets(corpus: Corpus) -> _Ids:
    """How many tokens of its document stand before each token."""
    lengths = np.diff(corpus.starts, append=len(corpus.tokens))
    return np.arange(len(corpus.tokens)) - np.repeat(corpus.starts, lengths)


def _discount(keys: _Ids, counts: _Ids, contexts: int, vocabulary_size: int) -> _Order:
    """Takes from counts of 1, 2 and more what the counts of counts say will be needed for the unseen."""
    context = keys // vocabulary_size
    totals = np.bincount(context, weights=counts, minlength=contexts)
    discounts = np.append(0.0, _discounts(counts))[np.minimum(counts, 3)]
    freed = np.bincount(context, weights=discounts, minlength=contexts)
    followed = totals > 0
    backoffs = np.divide(freed, totals, out=np.ones(contexts), where=followed)
    gains = np.divide(counts - discounts, totals[context], out=np.zeros(len(keys)), where=followed[context])
    return _Order(np.append(keys, _NO_KEY), gains, backoffs)


def _discounts(counts: _Ids) -> Floats:
    """Discounts of counts of 1, 2 and more by Chen & Goodman's estimate; the middle of their ranges where the
    corpus is too small for one."""
    ones, twos, threes, fours = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]
    if not (ones and twos and threes):
        return np.array([0.5, 1.0, 1.5])
    rate = ones / (ones + 2 * twos)
    estimates = [1 - 2 * rate * twos / ones, 2 - 3 * rate * threes / twos, 3 - 4 * rate * fours / threes]
    discounts: Floats = np.clip(estimates, 0, [1, 2, 3])
    return discounts
