"""Synthetic sequences whose loss says how far back a network remembers."""

from typing import Final

import torch
from torch import Tensor

SYMBOLS: Final = 8
"""Symbols to remember; 0 is the blank, and the one after the last symbol asks for the answer."""
COPIED: Final = 10
"""Symbols in a sequence of the copy-memory problem."""
BLANK, ASK = 0, SYMBOLS + 1


def adding_problem(length: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [T, B, 2] and targets [B]: the sum of the two values that are marked, one in either half.

    The first input is uniform in [0, 1), the second 1 at the two marks and 0 elsewhere (Hochreiter & Schmidhuber, 1997;
    Le et al., 2015). Always answering 1 has a squared error of 1/6 = .167.
    """
    values = torch.rand(length, batch, generator=generator)
    first = torch.randint(length // 2, (batch,), generator=generator)
    second = torch.randint(length // 2, length, (batch,), generator=generator)
    lanes = torch.arange(batch)
    marks = torch.zeros(length, batch)
    marks[first, lanes] = 1
    marks[second, lanes] = 1
    return torch.stack((values, marks), dim=2), values[first, lanes] + values[second, lanes]


def copy_memory(delay: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets [delay + 20, B]: ten symbols, blanks, the sign that asks for them, ten blanks to say them in.

    As in Arjovsky et al. (2016), after Hochreiter & Schmidhuber (1997). A network without memory says blanks and then
    any symbol, at a mean loss of 10 ln 8 / (delay + 20) nats.
    """
    symbols = torch.randint(1, SYMBOLS + 1, (COPIED, batch), generator=generator)
    inputs = torch.full((delay + 2 * COPIED, batch), BLANK)
    inputs[:COPIED] = symbols
    inputs[delay + COPIED - 1] = ASK
    targets = torch.full_like(inputs, BLANK)
    targets[-COPIED:] = symbols
    return inputs, targets
