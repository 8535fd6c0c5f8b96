import math

import numpy as np
import pytest

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.data.text import Corpus

WORDS = 12


def corpus(*documents: list[int]) -> Corpus:
    starts = np.cumsum([0, *map(len, documents[:-1])])
    return Corpus(np.concatenate([np.array(d, np.int32) for d in documents]), starts.astype(np.int64))


def random_documents(count: int, seed: int) -> list[list[int]]:
    """Documents that begin with 1 and walk mostly upwards, so that contexts tell something."""
    generator = np.random.default_rng(seed)
    documents = []
    for length in generator.integers(2, 60, count):
        walk = np.cumsum(generator.choice([1, 2, 5], length, p=[0.7, 0.2, 0.1]))
        documents.append([1, *(2 + walk % (WORDS - 4)).tolist()])
    return documents


@pytest.fixture(scope="module")
def model() -> KneserNey:
    return KneserNey.fit(corpus(*random_documents(200, seed=0)), WORDS)


@pytest.mark.parametrize("context", [[1], [1, 3], [3, 4], [4, 5, 6, 7, 8, 9], [11], [1, 11, 5], [9, 9, 9, 9]])
def test_probabilities_sum_to_one(model: KneserNey, context: list[int]) -> None:
    probabilities = model.distribution(np.array(context))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()


def test_scores_are_the_distributions_entries(model: KneserNey) -> None:
    documents = random_documents(5, seed=1)
    expected = [math.log(model.distribution(np.array(d[:i]))[d[i]]) for d in documents for i in range(1, len(d))]
    np.testing.assert_allclose(model.log_probabilities(corpus(*documents)), expected, rtol=1e-9)


def test_comes_close_to_what_made_the_documents(model: KneserNey) -> None:
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    loss = -model.log_probabilities(corpus(*random_documents(100, seed=2))).mean()
    assert entropy - 0.05 < loss < entropy + 0.15


def test_by_hand() -> None:
    """Counts of counts are too few here for estimates, so discounts are .5, 1 and 1.5."""
    bigrams = KneserNey.fit(corpus([0, 1, 2, 1, 2]), 3, order=2)
    # Different words before: 1 follows 0 and 2, 2 follows 1 only. Discounted by 1 and .5, half is left for all three.
    unigram = [0.5 / 3, 1 / 3 + 0.5 / 3, 0.5 / 3 + 0.5 / 3]
    # After 1 came 2 twice: discounted by 1, half is left.
    np.testing.assert_allclose(bigrams.distribution(np.array([1])), np.array(unigram) / 2 + [0, 0, 0.5])


def test_no_ngram_crosses_documents() -> None:
    apart = KneserNey.fit(corpus([1, 2, 3], [1, 4, 5]), WORDS)
    assert apart.distribution(np.array([3]))[1] == apart.distribution(np.array([3]))[0]


def test_accuracies(model: KneserNey) -> None:
    top_1, top_3, every = model.accuracies(corpus(*random_documents(40, seed=3)), (1, 3, WORDS), sample=500)
    assert 0.55 < top_1 < 0.85 < top_3 <= every == 1
