"""Losses over a vocabulary: exact, and sampled for speed."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hiddenstate_models.networks.words import IGNORED, Vocabulary


class SampledSoftmax(nn.Module):
    """Cross-entropy whose normaliser is estimated by importance sampling (Bengio & Senecal, 2008).

    Half of the sample is the most frequent words, always; the rest is drawn anew for every chunk from the other
    words, with replacement, in proportion to count ** 0.75 and weighted by its inverse. The estimate of the
    normaliser is unbiased, so the loss is close to the full one and comparable with it. Its gradient cannot be
    differentiated again.
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
        expected = targets.clamp(min=0)
        drawn, times = torch.unique(self._draw(), return_counts=True)
        words = torch.cat((self.frequent, self.rare[drawn]))
        log_weights = F.pad(self.log_weights[drawn] + times.log(), (len(self.frequent), 0))
        places = torch.full_like(head.bias, -1, dtype=torch.int64)
        places[words] = torch.arange(len(words), device=words.device)
        # Looked up together, so that the vocabulary's gradient is made once.
        both = torch.cat((words, expected))
        rows, biases = F.embedding(both, head.matrix), head.bias[both]
        known = (targets != IGNORED).to(rows.dtype)
        return cast(
            Tensor,
            _SampledCrossEntropy.apply(outputs, rows, biases, log_weights, places[expected], known),  # type: ignore[no-untyped-call]
        )

    def _draw(self) -> Tensor:
        """Places among the rare words [draws]; the same in all processes, as if they were one."""
        chances = torch.rand(self.draws, device=self.cumulative.device)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(chances, src=0)
        return torch.searchsorted(self.cumulative, chances).clamp(max=len(self.rare) - 1)


class _SampledCrossEntropy(torch.autograd.Function):
    """Each target's own logit against those of S words; computes the gradients on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, rows: Tensor, biases: Tensor, log_weights: Tensor, places: Tensor, known: Tensor
    ) -> Tensor:
        """outputs [N, H]; rows [S + N, H] and biases [S + N] of the words and of the targets; log_weights [S];
        places [N]: the target's among the words, -1 where it is none of them; known [N]: 0 for what is ignored."""
        size, device = len(log_weights), outputs.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        with torch.autocast(device, enabled=False):
            matrix, targets = rows[:size].to(product), rows[size:]
            others = F.linear(outputs.to(product), matrix, (biases[:size] + log_weights).to(product)).to(rows.dtype)
            # The target's own term is exact; what was drawn of it must not count again.
            column = places.clamp(min=0).unsqueeze(1)
            again = others.gather(1, column).masked_fill((places >= 0).unsqueeze(1), -torch.inf)
            others.scatter_(1, column, again)
            target = (outputs * targets).sum(1, dtype=rows.dtype) + biases[size:]
            largest = torch.maximum(others.amax(1), target)
            others = others.sub_(largest.unsqueeze(1)).exp_()
            own = (target - largest).exp()
            normaliser = others.sum(1) + own
            # Gradients by the logits: softmax, less 1 for the target; its scale goes to the smaller factors.
            scale = (known / normaliser).unsqueeze(1)
            of_target = own.unsqueeze(1) * scale - known.unsqueeze(1)
            others = others.to(product)
            of_outputs = (others @ matrix).to(rows.dtype) * scale + of_target * targets
            of_words = (others.T @ (outputs * scale).to(product)).to(rows.dtype)
            of_word_biases = (others.T @ scale.to(product)).to(rows.dtype)
            of_rows = torch.cat((of_words, outputs * of_target))
            of_biases = torch.cat((of_word_biases, of_target)).squeeze(1)
            loss = known @ (normaliser.log() + largest - target)
        ctx.save_for_backward(of_outputs.to(outputs.dtype), of_rows, of_biases)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        of_outputs, of_rows, of_biases = ctx.saved_tensors
        return of_outputs * scale, of_rows * scale, of_biases * scale, None, None, None


def smoothing(head: Vocabulary, outputs: Tensor, targets: Tensor) -> Tensor:
    """What a weight w of label smoothing (Szegedy et al., 2016) adds to the summed loss, over w; shapes as below.

    (1 - w) of the loss and w of the mean loss over all words is the loss and w times the target's logit less the mean
    logit: the normaliser cancels, so a sampled one does as well.
    """
    known = targets != IGNORED
    outputs, targets = outputs[known], targets[known]
    away = F.embedding(targets, head.matrix) - head.matrix.mean(0)
    return (outputs * away).sum() + (head.bias[targets] - head.bias.mean()).sum()


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole vocabulary."""

    def forward(self, head: Vocabulary, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats of targets [T, B] given outputs [T, B, output]; IGNORED ones do not count."""
        return head.loss(outputs, targets)
