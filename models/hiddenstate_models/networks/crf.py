"""A linear-chain conditional random field over the labels of a sentence (Lafferty et al., 2001)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hiddenstate_models.data.entities import may_follow

_FORBIDDEN = -1e4


class Crf(nn.Module):
    """Scores whole sequences of labels: the emissions of each step and the transitions between them.

    All sequences of a batch begin at step 0; `lengths` [B] (at least 1) says how many of the T steps count.
    """

    allowed: Tensor
    first: Tensor

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        """[label, label after it]"""
        self.start = nn.Parameter(torch.zeros(labels))
        self.end = nn.Parameter(torch.zeros(labels))
        self.register_buffer("allowed", torch.zeros(labels, labels), persistent=False)
        self.register_buffer("first", torch.zeros(labels), persistent=False)

    def constrain(self, names: Sequence[str]) -> None:
        """Never finds an I-TYPE that continues nothing, by the labels' names."""
        self.first.copy_(torch.tensor([0.0 if may_follow(name, None) else _FORBIDDEN for name in names]))
        self.allowed.copy_(
            torch.tensor([[0.0 if may_follow(name, before) else _FORBIDDEN for name in names] for before in names])
        )

    def loss(self, emissions: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """Summed -log p in nats of labels [T, B] given emissions [T, B, labels]."""
        return (self._log_normalizers(emissions, lengths) - self._scores(emissions, labels, lengths)).sum()

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The most probable labels int64 [T, B] (Viterbi, 1967); 0 after a sequence's end."""
        transitions = self.transitions + self.allowed
        score = emissions[0] + self.start + self.first
        best: list[Tensor] = []
        for t in range(1, len(emissions)):
            candidates = score.unsqueeze(2) + transitions
            highest, origin = candidates.max(dim=1)
            goes_on = (t < lengths).unsqueeze(1)
            score = torch.where(goes_on, highest + emissions[t], score)
            # where a sequence has ended, the way back stays at its last label
            best.append(torch.where(goes_on, origin, torch.arange(score.shape[1], device=score.device)))
        label = (score + self.end).argmax(dim=1)
        path = [label]
        for origin in reversed(best):
            label = origin.gather(1, label.unsqueeze(1)).squeeze(1)
            path.append(label)
        steps = torch.arange(len(emissions), device=lengths.device).unsqueeze(1)
        return torch.stack(path[::-1]).masked_fill(steps >= lengths, 0)

    def _scores(self, emissions: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """[B]: unnormalised log-probability of the labels."""
        counts = torch.arange(len(labels), device=lengths.device).unsqueeze(1) < lengths
        labels = labels.masked_fill(~counts, 0)
        emitted = emissions.gather(2, labels.unsqueeze(2)).squeeze(2)
        moved = self.transitions[labels[:-1], labels[1:]]
        last = labels.gather(0, (lengths - 1).unsqueeze(0)).squeeze(0)
        total = emitted.masked_fill(~counts, 0).sum(0) + moved.masked_fill(~counts[1:], 0).sum(0)
        return total + self.start[labels[0]] + self.end[last]

    def _log_normalizers(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """[B]: log of the sum over all sequences of labels."""
        score = emissions[0] + self.start
        for t in range(1, len(emissions)):
            moved = (score.unsqueeze(2) + self.transitions).logsumexp(dim=1) + emissions[t]
            score = torch.where((t < lengths).unsqueeze(1), moved, score)
        return (score + self.end).logsumexp(dim=1)
