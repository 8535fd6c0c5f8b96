"""Stacks of recurrent cells that agree with themselves: a sequence at once, or one step at a time.

A stack is described by `CellOptions` and built by `RecurrentStack(input_size, options)`. Its interface is all that
networks know of cells:

    stack.forward(sequence [T, B, input], state [B, state_size]) -> outputs [T, B, output], state
    stack.step(x [B, input], state [B, state_size]) -> output [B, output], state
    stack.initial_state(B) -> zeros [B, state_size]
    stack.output_size, stack.state_size, stack.row_sizes (each layer's part of the state)

A state is one flat row per session, laid out layer by layer: `h | c` for an LSTM, `h` for a GRU and an Elman network.
`forward` is for training and scoring and uses torch's fused kernels, or on a processor, where only the LSTM has one,
the loops of recurrence.py; `step` is for serving and uses plain matrix products.
"""

from hiddenstate_models.cells.layer import Layer, LayerSteps
from hiddenstate_models.cells.options import Cell, CellOptions, Initialisation
from hiddenstate_models.cells.stack import RecurrentStack

__all__ = ["Cell", "CellOptions", "Initialisation", "Layer", "LayerSteps", "RecurrentStack"]
