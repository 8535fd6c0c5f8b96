"""Losses over a vocabulary: the sampled softmax is what its formula says, and so is its gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hiddenstate_models.networks.words import IGNORED, NextWordConfig, Vocabulary
from hiddenstate_models.training.objectives import SampledSoftmax

COUNTS = np.array([3, 50, 8, 0, 21, 5, 13, 2, 34, 1])


def vocabulary() -> Vocabulary:
    """An output layer over ten words in float64."""
    torch.manual_seed(1)
    config = NextWordConfig(vocabulary_size=10, hidden_sizes=(4,), embedding_size=4, tied=False)
    head = Vocabulary(config, torch.nn.Embedding(10, 4), 4)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    return head.double()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    targets = torch.randint(0, 10, (5, 3))
    targets[4, 1:] = IGNORED
    return torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True), targets


def by_hand(sampled: SampledSoftmax, head: Vocabulary, outputs: Tensor, targets: Tensor) -> Tensor:
    """Target by target: its logit against an estimate of the sum over all other words."""
    drawn = sampled._draw()
    chances = torch.softmax(-sampled.log_weights.double(), 0)
    logits = head(outputs)
    total = torch.zeros((), dtype=logits.dtype)
    for row, target in zip(logits.flatten(0, 1), targets.flatten(), strict=True):
        if target == IGNORED:
            continue
        others = row[sampled.frequent[sampled.frequent != target]].exp().sum()
        for place in drawn:
            if sampled.rare[place] != target:
                others = others + row[sampled.rare[place]].exp() / (chances[place] * sampled.draws)
        total = total + (row[target].exp() + others).log() - row[target]
    return total


@pytest.mark.parametrize("samples", [1, 6, 40])
def test_the_sampled_softmax_is_its_formula(samples: int) -> None:
    sampled, head = SampledSoftmax(COUNTS, samples), vocabulary()
    outputs, targets = data()
    torch.manual_seed(3)
    loss = sampled(head, outputs, targets)
    gradients = torch.autograd.grad(3 * loss, [outputs, head.weight, head.bias])
    torch.manual_seed(3)
    expected = by_hand(sampled, head, outputs, targets)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(
        gradients, torch.autograd.grad(3 * expected, [outputs, head.weight, head.bias]), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_mixed_precision_changes_the_sampled_loss_by_its_rounding_alone() -> None:
    sampled, head = SampledSoftmax(COUNTS, 6), vocabulary().float()
    outputs, targets = data()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(sampled(head, outputs.float(), targets))
    assert losses[0].dtype == losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0.0)
    assert losses[0] != losses[1]


def test_biases_start_at_log_frequencies() -> None:
    head = vocabulary()
    head.start_from(torch.from_numpy(COUNTS))
    torch.testing.assert_close(head.bias.exp(), torch.from_numpy((COUNTS + 1) / (COUNTS + 1).sum()))
