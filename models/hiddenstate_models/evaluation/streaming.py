"""Sequences of any length, read in pieces with the state carried, in the memory of one piece and one state."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Stateful(Protocol):
    """A stack of cells, or a network round one."""

    def __call__(self, sequence: Tensor, state: Tensor) -> tuple[Any, Tensor]:
        """sequence [T, B, ...], state [B, state_size] -> outputs [T, B, ...] each, state after the last step."""
        ...


@torch.no_grad()
def stream(network: Stateful, pieces: Iterable[Tensor], state: Tensor) -> Iterator[Any]:
    """Outputs of each piece [T, B, ...] of a sequence, as those of the whole; T may differ from piece to piece.

    Nothing is kept of a piece once the next one is asked for.
    """
    for piece in pieces:
        outputs, state = network(piece, state)
        yield outputs
