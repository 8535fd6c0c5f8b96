"""Scores of a next-word network and of a Kneser-Ney 5-gram on the same text."""

import math

import torch

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.data.text import Corpus
from hiddenstate_models.networks.words import IGNORED, NextWordNetwork
from hiddenstate_models.training.next_word import read_through

Metrics = dict[str, float]
"""Metric -> number."""

_TOPS = (1, 3)


@torch.no_grad()
def network_scores(network: NextWordNetwork, corpus: Corpus) -> Metrics:
    """Perplexity over the full vocabulary, and the share of words among the 1 and 3 most probable ones.

    Every token counts but a document's first; the state is carried through each document from a fresh one.
    """
    network.eval()
    loss, words = 0.0, 0
    hits = torch.zeros(max(_TOPS), dtype=torch.int64)
    for outputs, targets in read_through(network, corpus):
        known = targets != IGNORED
        logits, expected = network.head(outputs[known]), targets[known].unsqueeze(1)
        loss += float((logits.logsumexp(1, keepdim=True) - logits.gather(1, expected)).sum())
        hits += (logits.topk(max(_TOPS)).indices == expected).sum(0)
        words += len(expected)
    accuracies = hits.cumsum(0) / words
    return _metrics(loss / words, [float(accuracies[top - 1]) for top in _TOPS])


def baseline_scores(baseline: KneserNey, corpus: Corpus) -> Metrics:
    """The same of an n-gram model; its accuracies on a sample of 5,000 words."""
    return _metrics(-float(baseline.log_probabilities(corpus).mean()), baseline.accuracies(corpus, _TOPS))


def _metrics(loss: float, accuracies: list[float]) -> Metrics:
    named = {f"top-{top} accuracy": accuracy for top, accuracy in zip(_TOPS, accuracies, strict=True)}
    return {"perplexity": math.exp(loss), **named}
