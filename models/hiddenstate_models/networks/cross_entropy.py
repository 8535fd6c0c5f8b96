"""Cross-entropy over a large vocabulary whose logits never exist all at once.

For N tokens and V words the logits are N x V numbers, and so are their softmax and its gradient: hundreds of megabytes
for an update that the rest of a network needs a few for. Taken some tokens at a time, each part's gradient is
computed while its logits are still there (Hsu et al., 2024; Wijmans et al., 2025).
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LOGITS = 2**23
"""Logits that exist at once: 32 MiB in float32."""


def cross_entropy(outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of targets [N] under softmax(outputs @ weight.T + bias).

    outputs [N, H], weight [V, H], bias [V]. Products run in autocast's type where it is on; the softmax and all sums
    at least in float32. Its gradient cannot be differentiated again.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _CrossEntropy.apply(outputs, weight, bias, targets))  # type: ignore[no-untyped-call]
    losses = [
        F.cross_entropy(F.linear(some, weight, bias).to(_at_least_float32(some)), expected, reduction="sum")
        for some, expected in zip(*_parts(outputs, targets, len(weight)), strict=True)
    ]
    return torch.stack(losses).sum()


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradients on the way forward, while the logits they come from exist."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        device = outputs.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else outputs.dtype
        total = outputs.new_zeros((), dtype=_at_least_float32(outputs))
        of_weight, of_bias, of_outputs = torch.zeros_like(weight), torch.zeros_like(bias), []
        with torch.autocast(device, enabled=False):
            matrix, offsets = weight.to(product), bias.to(product)
            for some, expected in zip(*_parts(outputs.to(product), targets, len(weight)), strict=True):
                scores = F.log_softmax(F.linear(some, matrix, offsets), dim=1, dtype=total.dtype)
                expected = expected.unsqueeze(1)
                total -= scores.gather(1, expected).sum()
                # The gradient of a token's loss by its logits: softmax - one-hot target.
                errors = scores.exp_().scatter_add_(1, expected, -torch.ones_like(expected, dtype=total.dtype))
                of_bias += errors.sum(0)
                errors = errors.to(product)
                of_outputs.append(errors @ matrix)
                of_weight += errors.T @ some
        ctx.save_for_backward(torch.cat(of_outputs).to(outputs.dtype), of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        of_outputs, of_weight, of_bias = ctx.saved_tensors
        return of_outputs * scale, of_weight * scale, of_bias * scale, None


def _parts(outputs: Tensor, targets: Tensor, vocabulary_size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows = max(1, _LOGITS // vocabulary_size)
    return outputs.split(rows), targets.split(rows)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
