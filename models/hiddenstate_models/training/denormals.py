"""Numbers too small for a normal float, which processors take many times as long for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Within it they count as zero, in this thread.

    Training makes them by itself: of gradients that vanish, and of the mean gradient that Adam keeps of a word which
    has not come for some hundred updates.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
