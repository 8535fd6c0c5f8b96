"""Labels without a network: the most frequent one, a word's most frequent tag, and a bag of words."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from hiddenstate_models.data.labelled import LabelledText, TaggedSentence

Words = Sequence[Sequence[str]]
"""Of every text."""


@dataclass(frozen=True)
class TagOfWord:
    """Every word's most frequent tag; words never seen have the most frequent tag of all."""

    tags: dict[str, str]
    otherwise: str

    @classmethod
    def fit(cls, sentences: Sequence[TaggedSentence]) -> Self:
        """Counts."""
        by_word: dict[str, Counter[str]] = {}
        for sentence in sentences:
            for word, tag in zip(sentence.words, sentence.tags, strict=True):
                by_word.setdefault(word, Counter())[tag] += 1
        overall = sum(by_word.values(), Counter[str]())
        tags = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
        return cls(tags, overall.most_common(1)[0][0])

    def predict(self, sentences: Sequence[TaggedSentence]) -> list[list[str]]:
        """Tags of every sentence's words."""
        return [[self.tags.get(word, self.otherwise) for word in sentence.words] for sentence in sentences]


@dataclass(frozen=True)
class BagOfWords:
    """Logistic regression on which words and pairs of neighbours a text has, wherever they stand."""

    places: dict[str, int]
    names: tuple[str, ...]
    weights: Tensor
    """[features + 1, labels]; the last row is the bias."""

    @classmethod
    def fit(cls, words: Words, texts: Sequence[LabelledText], names: Sequence[str], *, penalty: float = 1.0) -> Self:
        """Minimises the summed cross-entropy and penalty / 2 times the squared weights, by L-BFGS."""
        counts = Counter(feature for one in words for feature in _features(one))
        places = {feature: place for place, feature in enumerate(sorted(counts))}
        labels = torch.tensor([names.index(text.label) for text in texts])
        rows = _rows(words, places)
        weights = torch.zeros(len(places) + 1, len(names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = F.cross_entropy(_scores(rows, weights), labels, reduction="sum")
            total = (total + penalty / 2 * weights[:-1].square().sum()) / len(labels)
            total.backward()
            return total

        optimizer.step(loss)
        return cls(places, tuple(names), weights.detach())

    def predict(self, words: Words) -> list[str]:
        """The most probable label of every text."""
        best = _scores(_rows(words, self.places), self.weights).argmax(dim=1)
        return [self.names[label] for label in best.tolist()]


def most_frequent(texts: Sequence[LabelledText]) -> str:
    """The label that most texts have."""
    return Counter(text.label for text in texts).most_common(1)[0][0]


def _features(words: Sequence[str]) -> set[str]:
    lowered = [word.lower() for word in words]
    return {*lowered, *(f"{first} {second}" for first, second in itertools.pairwise(lowered))}


def _rows(words: Words, places: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Places of the features that each text has, and of the bias, one text after the other; where each text begins."""
    rows = [sorted({places[one] for one in _features(text) if one in places} | {len(places)}) for text in words]
    starts = [0, *itertools.accumulate(map(len, rows))][:-1]
    return torch.tensor(list(itertools.chain(*rows))), torch.tensor(starts)


def _scores(rows: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """[texts, labels]: the sum of the weights at the places of each text."""
    return F.embedding_bag(rows[0], weights, rows[1], mode="sum")
