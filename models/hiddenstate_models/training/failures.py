"""What stops training from outside, told in a sentence: what happened, where, and what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hiddenstate_models.errors import DivergenceError, TrainingError
from hiddenstate_models.training.options import TrainingOptions

_HOST_MESSAGES = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
"""How torch's own allocator says in a plain RuntimeError that the host is out of memory."""


@contextmanager
def memory_explained(where: Callable[[], str], options: TrainingOptions) -> Iterator[None]:
    """Turns running out of memory, the host's or a GPU's, into a TrainingError; `where` is asked when it happens.

    Raises:
        TrainingError: the memory did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            memory = "the GPU's memory"
        elif isinstance(error, MemoryError) or any(message in str(error) for message in _HOST_MESSAGES):
            memory = "memory"
        else:
            raise
        raise TrainingError(
            f"out of {memory} {where()}: {str(error).splitlines()[0]} Lower --lanes (now {options.lanes}) or --k2 (now "
            f"{options.k2}), or make the network smaller; --dry-run tells what a run needs. What was saved is kept."
        ) from error


def check_finite(network: nn.Module, where: str) -> None:
    """Keeps weights that are no numbers from being saved.

    Raises:
        DivergenceError: some weight is not finite.
    """
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise diverged(f"weights of {name} are no finite numbers any more {where}")


def diverged(what: str) -> DivergenceError:
    """The error for training that has left the realm of numbers."""
    return DivergenceError(
        f"{what}. The last checkpoint is from before and kept: go on from it by --resume with a lower --learning-rate "
        "or a lower --clip-norm."
    )
