"""GRU and simple network over a sequence on a processor, their gradients written out.

Torch has a fused kernel for the LSTM there and none for these: it records a dozen operations a step. Here what all
steps share is done at once, before and after the loop, and a step is left with its matrix product and what needs it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def runs(tensor: Tensor) -> bool:
    """Whether a sequence with this tensor is for these functions: on a processor, in full precision."""
    return tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def simple(from_x: Tensor, h: Tensor, weight: Tensor, *, rectified: bool) -> Tensor:
    """What inputs and biases contribute [T, B, H], state [B, H], weights [H, H] -> outputs [T, B, H].

    Each is the tanh, or with `rectified` what is positive, of its contribution and the weighted state before it.
    """
    return cast(Tensor, _Simple.apply(from_x, h, weight, rectified))  # type: ignore[no-untyped-call]


def gated(from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What inputs contribute [T, B, 3 H], state [B, H], weights [3 H, H] and bias [3 H] -> outputs [T, B, H].

    Reset gate, update gate and candidate lie below each other, as in torch.nn.GRU.
    """
    return cast(Tensor, _Gated.apply(from_x, h, weight, bias))  # type: ignore[no-untyped-call]


class _Simple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_x: Tensor, h: Tensor, weight: Tensor, rectified: bool) -> Tensor:
        states = torch.cat((h.unsqueeze(0), from_x))
        transposed = weight.t()
        for before, after in zip(states[:-1].unbind(), states[1:].unbind(), strict=True):
            after.addmm_(before, transposed)
            after.relu_() if rectified else after.tanh_()
        ctx.save_for_backward(states, weight)
        ctx.rectified = rectified
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, weight = ctx.saved_tensors
        slopes = (states[1:] > 0).to(states.dtype) if ctx.rectified else 1 - states[1:].square()
        errors = torch.cat((torch.zeros_like(states[:1]), by_outputs))
        for before, after, slope in _backwards(errors[:-1], errors[1:], slopes):
            after.mul_(slope)
            before.addmm_(after, weight)
        return errors[1:], errors[0], _by_weight(errors[1:], states[:-1]), None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        units = h.shape[1]
        values = from_x.clone()  # what the gates let through, and the candidate
        states = h.new_empty(len(from_x) + 1, *h.shape)
        states[0] = h
        kept = torch.empty_like(states[1:])  # what the state contributes to the candidate, before it is reset
        from_h = torch.empty_like(from_x[0])
        of_gates, of_candidate = from_h[:, : 2 * units], from_h[:, 2 * units :]
        transposed = weight.t()
        steps = (values[..., : 2 * units], *values.chunk(3, dim=2), kept, states[:-1], states[1:])
        for gates, reset, update, candidate, contribution, before, after in zip(
            *(part.unbind() for part in steps), strict=True
        ):
            torch.addmm(bias, before, transposed, out=from_h)
            gates.add_(of_gates).sigmoid_()
            contribution.copy_(of_candidate)
            candidate.addcmul_(reset, contribution).tanh_()
            torch.lerp(candidate, before, update, out=after)
        ctx.save_for_backward(values, kept, states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor) -> tuple[Tensor, ...]:
        values, kept, states, weight = ctx.saved_tensors
        reset, update, candidate = values.chunk(3, dim=2)
        # What an error of a step's output, times these, is at the sums within: gate, gate, the state's contribution.
        by_candidate = (1 - update) * (1 - candidate.square())
        errors_within = torch.stack(
            (
                by_candidate * kept * reset * (1 - reset),
                (states[:-1] - candidate) * update * (1 - update),
                by_candidate * reset,
            ),
            dim=2,
        )
        errors = torch.cat((torch.zeros_like(states[:1]), by_outputs))
        for before, after, kept_share, within in _backwards(errors[:-1], errors[1:], update, errors_within):
            within.mul_(after.unsqueeze(1))
            before.addcmul_(after, kept_share).addmm_(within.flatten(1), weight)
        by_state = errors_within.flatten(2)
        by_x = torch.cat((by_state[..., : 2 * reset.shape[2]], by_candidate * errors[1:]), dim=2)
        return by_x, errors[0], _by_weight(by_state, states[:-1]), by_state.sum((0, 1))


def _backwards(*steps: Tensor) -> Any:
    """The steps of tensors [T, ...] together, the last one first."""
    return zip(*(reversed(part.unbind()) for part in steps), strict=True)


def _by_weight(errors: Tensor, states: Tensor) -> Tensor:
    """Errors at the sums [T, B, N] and the states that were weighted [T, B, H] -> gradient [N, H]."""
    return errors.flatten(0, 1).t() @ states.flatten(0, 1)
