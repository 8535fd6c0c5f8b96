"""The cross-entropy that never holds all logits is the plain one: loss, gradients, in parts of any size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hiddenstate_models.networks import cross_entropy as module
from hiddenstate_models.networks.cross_entropy import cross_entropy
from hiddenstate_models.networks.words import IGNORED, NextWordConfig, NextWordNetwork

TOKENS, WORDS, UNITS = 11, 50, 7


def plain(outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(outputs, weight, bias).double(), targets, reduction="sum")


def made_up(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Outputs, weight and bias; targets."""
    torch.manual_seed(0)
    inputs = (
        torch.randn(TOKENS, UNITS, dtype=dtype),
        torch.randn(WORDS, UNITS, dtype=dtype),
        torch.randn(WORDS).to(dtype),
    )
    for one in inputs:
        one.requires_grad_()
    return inputs, torch.randint(WORDS, (TOKENS,))


def loss_and_gradients(loss: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    inputs, targets = made_up(dtype)
    total = loss(*inputs, targets)
    (total * 0.3).backward()
    return [total.detach(), *(one.grad for one in inputs if one.grad is not None)]


@pytest.mark.parametrize("rows", [1, 4, 11, 100])
def test_in_parts_it_is_the_plain_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS", rows * WORDS)
    expected = loss_and_gradients(plain, torch.float64)
    assert len(expected) == 4
    for got, want in zip(loss_and_gradients(cross_entropy, torch.float64), expected, strict=True):
        torch.testing.assert_close(got, want)
    inputs, targets = made_up(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(*inputs, targets), expected[0])


def test_mixed_precision_rounds_products_only() -> None:
    expected = loss_and_gradients(plain, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_and_gradients(cross_entropy, torch.float32)
    for one, want in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, want.float(), rtol=0.02, atol=0.02)


def test_only_some_logits_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS", 2 * WORDS)
    sizes: list[int] = []
    softmax = F.log_softmax

    def watched(logits: Tensor, **arguments: object) -> Tensor:
        sizes.append(logits.numel())
        return softmax(logits, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "log_softmax", watched)
    loss_and_gradients(cross_entropy, torch.float32)
    assert max(sizes) == 2 * WORDS
    assert sum(sizes) == TOKENS * WORDS


def test_padding_counts_for_nothing() -> None:
    network = NextWordNetwork(NextWordConfig(hidden_sizes=(4,), embedding_size=4, vocabulary_size=9))
    outputs, targets = torch.randn(3, 2, 4), torch.randint(9, (3, 2))
    targets[1:, 1] = IGNORED
    alone = network.head.loss(outputs[:, :1], targets[:, :1]) + network.head.loss(outputs[:1, 1:], targets[:1, 1:])
    torch.testing.assert_close(network.head.loss(outputs, targets), alone)
    assert network.head.loss(outputs, torch.full_like(targets, IGNORED)).item() == 0
