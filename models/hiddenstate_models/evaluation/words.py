"""Scores of a next-word network and of a Kneser-Ney 5-gram on the same text."""

import math
from collections.abc import Iterable
from itertools import chain

import torch

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.data.text import Corpus
from hiddenstate_models.networks.words import IGNORED, NextWordNetwork
from hiddenstate_models.training.next_word import read_through

Metrics = dict[str, float]
"""Metric -> number."""

_TOPS = (1, 3)


@torch.no_grad()
def network_scores(network: NextWordNetwork, corpora: Iterable[Corpus]) -> Metrics:
    """Perplexity over the full vocabulary, and the share of words among the 1 and 3 most probable ones.

    Every token counts but a document's first; the state is carried through each document from a fresh one.
    """
    network.eval()
    loss, words = 0.0, 0
    hits = torch.zeros(max(_TOPS), dtype=torch.int64)
    for outputs, targets in chain.from_iterable(read_through(network, corpus) for corpus in corpora):
        known = targets != IGNORED
        logits, expected = network.head(outputs[known]), targets[known].unsqueeze(1)
        loss += float((logits.logsumexp(1, keepdim=True) - logits.gather(1, expected)).sum())
        hits += (logits.topk(max(_TOPS)).indices == expected).sum(0)
        words += len(expected)
    accuracies = hits.cumsum(0) / words
    return _metrics(loss / words, [float(accuracies[top - 1]) for top in _TOPS])


def baseline_scores(baseline: KneserNey, corpora: Iterable[Corpus]) -> Metrics:
    """The same of an n-gram model; its accuracies on a sample of 5,000 words of the first corpus."""
    loss, words = 0.0, 0
    accuracies: list[float] = []
    for corpus in corpora:
        logarithms = baseline.log_probabilities(corpus)
        loss, words = loss - float(logarithms.sum()), words + len(logarithms)
        accuracies = accuracies or baseline.accuracies(corpus, _TOPS)
    return _metrics(loss / words, accuracies)


def _metrics(loss: float, accuracies: list[float]) -> Metrics:
    named = {f"top-{top} accuracy": accuracy for top, accuracy in zip(_TOPS, accuracies, strict=True)}
    return {"perplexity": math.exp(loss), **named}
