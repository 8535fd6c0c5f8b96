"""The gradient-norm regulariser of Pascanu et al. (2013), against vanishing gradients where gates do not suffice.

Omega asks that error, on its way back through one recurrent step, keep its norm:

    (|dE/dh_(t+1) . dh_(t+1)/dh_t| / |dE/dh_(t+1)| - 1)^2, averaged over steps, lanes and layers.

As in the paper, only the immediate derivative is taken: states and errors count as constants, so what changes is the
Jacobian of each step by itself. The state h_t is all that a layer carries, for an LSTM h and c together.

Fused kernels do not tell their states between steps or the error that reaches them, so the network runs step by step
(`RecurrentStack.recording`). One backward pass gives the errors; the Jacobians' products are then computed for all
steps at once, since nothing depends any more on another step.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from hiddenstate_models.cells import LayerSteps, RecurrentStack
from hiddenstate_models.errors import ConfigurationError

Recorded = list[tuple[RecurrentStack, list[LayerSteps]]]


@contextmanager
def recording(network: nn.Module) -> Iterator[Recorded]:
    """Within it the network's recurrent stacks go step by step and are recorded.

    Raises:
        ConfigurationError: there are none.
    """
    stacks = [module for module in network.modules() if isinstance(module, RecurrentStack) and module.state_size]
    if not stacks:
        raise ConfigurationError("the gradient regulariser has no recurrent layers to work on in this network")
    with ExitStack() as recordings:
        yield [(stack, recordings.enter_context(stack.recording())) for stack in stacks]


def gradient_norm_penalty(loss: Tensor, recorded: Recorded) -> Tensor:
    """Omega of a recorded forward pass for a loss computed from it, whose scale does not matter.

    Steps that no error reaches, such as those of padding, count as perfect.
    """
    steps = [one for _, layers in recorded for one in layers]
    rows = [row for one in steps for row in one.rows[1:]]
    errors = iter(torch.autograd.grad(loss, rows, retain_graph=True, materialize_grads=True))
    penalties = [_penalties(one, [next(errors) for _ in one.rows[1:]]) for one in steps]
    return torch.cat(penalties).mean()


def _penalties(steps: LayerSteps, errors: Sequence[Tensor]) -> Tensor:
    """[T * B]: how far each step is from keeping the norm of its error."""
    before = torch.cat(steps.rows[:-1]).detach().requires_grad_()
    error = torch.cat(list(errors))
    # Errors that have nearly vanished would have a square of zero.
    largest = error.abs().amax(dim=1, keepdim=True)
    arrives = largest.squeeze(1) > 0
    error = error / torch.where(largest > 0, largest, 1)
    _, after = steps.layer.step(steps.inputs.flatten(0, 1).detach(), before)
    (passed,) = torch.autograd.grad(after, before, error, create_graph=True)
    length = torch.linalg.vector_norm(error, dim=1)
    ratio = torch.linalg.vector_norm(passed, dim=1) / torch.where(arrives, length, 1)
    return torch.where(arrives, (ratio - 1).square(), 0)
