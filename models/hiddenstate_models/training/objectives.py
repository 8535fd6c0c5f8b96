"""Losses over a vocabulary: exact, and sampled for speed."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.networks.words import IGNORED, Vocabulary


class SampledSoftmax(nn.Module):
    """Cross-entropy whose normaliser is estimated by importance sampling (Bengio & Senecal, 2008).

    Half of the sample is the most frequent words, always; the rest is drawn anew for every chunk from the other
    words, with replacement, in proportion to count ** 0.75 and weighted by its inverse. The estimate of the
    normaliser is unbiased, so the loss is close to the full one and comparable with it.
    """

    frequent: Tensor
    rare: Tensor
    cumulative: Tensor
    log_weights: Tensor

    def __init__(self, counts: npt.NDArray[np.int64], samples: int) -> None:
        super().__init__()
        order = np.argsort(-counts, kind="stable")
        always = min(samples // 2, len(counts) - 1)
        self.draws = samples - always
        chances = np.maximum(counts[order[always:]], 1).astype(np.float64) ** 0.75
        chances /= chances.sum()
        for name, array in (
            ("frequent", order[:always]),
            ("rare", order[always:]),
            ("cumulative", np.cumsum(chances).astype(np.float32)),
            ("log_weights", -np.log(chances * self.draws).astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)

    def forward(self, head: Vocabulary, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats of targets [T, B] given outputs [T, B, output]; IGNORED ones do not count."""
        outputs, targets = outputs.flatten(0, 1), targets.flatten()
        known = targets.clamp(min=0)
        drawn = torch.searchsorted(self.cumulative, torch.rand(self.draws, device=outputs.device))
        drawn = drawn.clamp(max=len(self.rare) - 1)
        words = torch.cat((self.frequent, self.rare[drawn]))
        bias = head.bias[words] + F.pad(self.log_weights[drawn], (len(self.frequent), 0))
        others = F.linear(outputs, F.embedding(words, head.matrix), bias)
        # The target's own term is exact; what was drawn of it must not count again.
        others = others.masked_fill(words == known.unsqueeze(1), -1e4)
        target = (outputs * F.embedding(known, head.matrix)).sum(1) + head.bias[known]
        logits = torch.cat((target.unsqueeze(1).to(others.dtype), others), dim=1).float()
        losses = torch.logsumexp(logits, dim=1) - logits[:, 0]
        return losses.masked_fill(targets == IGNORED, 0).sum()


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole vocabulary."""

    def forward(self, head: Vocabulary, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats of targets [T, B] given outputs [T, B, output]; IGNORED ones do not count."""
        return head.loss(outputs, targets)
