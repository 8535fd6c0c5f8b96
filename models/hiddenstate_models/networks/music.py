"""The music network: frames of a piano roll -> stack of cells -> the probability of every note in the next frame."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import Cell, CellOptions, RecurrentStack

IGNORED = -1
"""What a target holds where no loss is counted: padding after a piece's end."""


@dataclass(frozen=True, kw_only=True)
class MusicConfig(CellOptions):
    """A network that reads frames of `notes` keys, the first of MIDI number `lowest`, and predicts the next one."""

    cell: Cell = "lstm"
    hidden_sizes: tuple[int, ...] = (256,)
    lowest: int = 21
    notes: int = 88

    task: Literal["music"] = "music"


class MusicNetwork(nn.Module):
    """Stack and head; given the frames before, notes are independent of each other. `forward` and `step` agree.

    A piece begins with a silent frame, from which its first one is predicted.
    """

    def __init__(self, config: MusicConfig) -> None:
        super().__init__()
        self.config = config
        self.cells = RecurrentStack(config.notes, config)
        self.head = nn.Linear(self.cells.output_size, config.notes)

    @torch.no_grad()
    def expect(self, frequencies: Tensor) -> None:
        """Begins with the output layer's bias at how often each note sounds, [notes] above 0 and below 1."""
        self.head.bias.copy_(frequencies.logit())

    @property
    def state_size(self) -> int:
        """Numbers in a session's recurrent state."""
        return self.cells.state_size

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size]."""
        return self.cells.initial_state(batch)

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """frames [T, B, notes] of 0 and 1, state [B, state_size] -> logits [T, B, notes], state after the last."""
        outputs, state = self.cells(frames.to(state.dtype), state)
        return self.head(self.cells.drop(outputs)), state

    def step(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B, notes], state [B, state_size] -> logits [B, notes], state."""
        output, state = self.cells.step(frames.to(state.dtype), state)
        return self.head(output), state


def frame_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p [...] in nats of whole frames: targets [..., notes] under logits [..., notes], summed over the notes.

    0 where targets are IGNORED.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits.dtype), reduction="none")
    total: Tensor = losses.masked_fill(targets == IGNORED, 0).sum(-1)
    return total
