"""Gradient clipping: by a unit's own weights, by value, by global norm, in that order.

All of it keeps a step from being too long; none of it brings a vanished gradient back.
"""

import torch
from torch import Tensor, nn

from hiddenstate_models.training.options import TrainingOptions

SMALLEST_WEIGHTS = 1e-3
"""Norm that a unit's weights count as at least, so that those at zero can leave it (Brock et al., 2021)."""


def clip_gradients(network: nn.Module, options: TrainingOptions) -> tuple[float, float]:
    """Clips in place as the options say; the global norm before and after."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norm = unclipped = torch.nn.utils.get_total_norm(gradients)
    if options.clip_adaptive:
        clip_adaptively(network, options.clip_adaptive)
    if options.clip_value:
        torch.nn.utils.clip_grad_value_(network.parameters(), options.clip_value)
    if options.clip_adaptive or options.clip_value:
        unclipped = torch.nn.utils.get_total_norm(gradients)
    if not options.clip_norm:
        return float(norm), float(unclipped)
    torch.nn.utils.clip_grads_with_norm_(network.parameters(), options.clip_norm, unclipped)
    return float(norm), min(float(unclipped), options.clip_norm)


def clip_adaptively(network: nn.Module, largest_ratio: float) -> None:
    """Adaptive gradient clipping (Brock et al., 2021): a gradient is short beside the weights that it is to change.

    Each unit's gradient, a row of a weight matrix or a whole bias, has at most `largest_ratio` times the norm of the
    unit's weights. The output layer (`head`) is left alone, as in the paper.
    """
    for name, parameter in network.named_parameters():
        if parameter.grad is None or name.startswith("head."):
            continue
        bound = largest_ratio * _unit_norms(parameter.detach()).clamp_min(SMALLEST_WEIGHTS)
        parameter.grad.mul_((bound / _unit_norms(parameter.grad)).clamp_max(1.0))


def _unit_norms(tensor: Tensor) -> Tensor:
    """[N, 1, ...] for a tensor [N, ...]: the norm of each unit's incoming weights; one norm for a vector."""
    dimensions = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dimensions, keepdim=True)
    return norms
