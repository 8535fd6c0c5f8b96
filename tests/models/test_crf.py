"""The conditional random field against every sequence of labels there is."""

import itertools

import pytest
import torch

from hiddenstate_models.data.entities import may_follow
from hiddenstate_models.networks.crf import Crf

NAMES = ("O", "B-X", "I-X", "I-Y")
LENGTHS = torch.tensor([4, 1, 3])


@pytest.fixture
def crf() -> Crf:
    torch.manual_seed(0)
    crf = Crf(len(NAMES)).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


@pytest.fixture
def emissions() -> torch.Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(4, 3, len(NAMES), dtype=torch.float64)


@torch.no_grad()
def score(crf: Crf, emissions: torch.Tensor, labels: tuple[int, ...]) -> float:
    total = crf.start[labels[0]] + crf.end[labels[-1]] + sum(emissions[t, label] for t, label in enumerate(labels))
    return float(total + sum(crf.transitions[pair] for pair in itertools.pairwise(labels)))


def sequences(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(len(NAMES)), repeat=length))


def test_loss(crf: Crf, emissions: torch.Tensor) -> None:
    labels = torch.tensor([[1, 3, 2], [2, -100, 0], [0, -100, 3], [3, -100, -100]])
    expected = 0.0
    for lane, length in enumerate(LENGTHS.tolist()):
        scores = torch.tensor([score(crf, emissions[:, lane], one) for one in sequences(length)])
        expected += float(scores.logsumexp(0)) - score(crf, emissions[:, lane], tuple(labels[:length, lane].tolist()))
    loss = crf.loss(emissions, labels, LENGTHS)
    assert float(loss.detach()) == pytest.approx(expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in crf.parameters())


@pytest.mark.parametrize("constrained", [False, True])
def test_decode(crf: Crf, emissions: torch.Tensor, constrained: bool) -> None:
    if constrained:
        crf.constrain(NAMES)
    found = crf.decode(emissions, LENGTHS)
    for lane, length in enumerate(LENGTHS.tolist()):
        allowed = [
            one
            for one in sequences(length)
            if not constrained
            or all(may_follow(b, a) for a, b in itertools.pairwise([None, *(NAMES[label] for label in one)]) if b)
        ]
        best = max(allowed, key=lambda one: score(crf, emissions[:, lane], one))
        assert tuple(found[:length, lane].tolist()) == best
        assert (found[length:, lane] == 0).all()
