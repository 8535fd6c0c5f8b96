"""Layers of one kind of cell."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells.elman import Elman
from hiddenstate_models.cells.gru import GRU
from hiddenstate_models.cells.initialisation import initialise
from hiddenstate_models.cells.layer import Layer, LayerSteps
from hiddenstate_models.cells.lstm import LSTM
from hiddenstate_models.cells.options import Cell, CellOptions

_LAYERS: Mapping[Cell, Callable[[int, int, CellOptions], Layer]] = {
    "rnn-tanh": Elman,
    "rnn-relu": Elman,
    "lstm": LSTM,
    "gru": GRU,
}


class RecurrentStack(nn.Module):
    """Layers of one kind of cell, with dropout between them; `forward` and `step` give the same numbers."""

    def __init__(self, input_size: int, options: CellOptions) -> None:
        super().__init__()
        self.input_size = input_size
        self.options = options
        make, size = _LAYERS[options.cell], input_size
        layers: list[Layer] = []
        for hidden_size in options.hidden_sizes:
            layers.append(make(size, hidden_size, options))
            size = layers[-1].output_size
        self.layers = nn.ModuleList(layers)
        self.output_size = size
        self.row_sizes = [layer.row_size for layer in layers]
        self.state_size = sum(self.row_sizes)
        self._recorded: list[LayerSteps] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every weight as the options say."""
        for layer in self.layers:
            initialise(cast(Layer, layer), self.options)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size], on the weights' device and in their dtype."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def forward(self, sequence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """sequence [T, B, input], state [B, state_size] -> outputs [T, B, output], state after the last step."""
        rows = []
        for depth, (layer, row) in enumerate(zip(self.layers, torch.split(state, self.row_sizes, dim=1), strict=True)):
            if depth:
                sequence = F.dropout(sequence, self.options.dropout, self.training)
            if self._recorded is None:
                sequence, row = cast(Layer, layer).sequence(sequence, row)
            else:
                sequence, row = _step_by_step(cast(Layer, layer), sequence, row, self._recorded)
            rows.append(row)
        return sequence, torch.cat(rows, dim=1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, input], state [B, state_size] -> output [B, output], state; no dropout: this is for serving."""
        rows = []
        for layer, row in zip(self.layers, torch.split(state, self.row_sizes, dim=1), strict=True):
            x, row = cast(Layer, layer).step(x, row)
            rows.append(row)
        return x, torch.cat(rows, dim=1)

    @contextmanager
    def recording(self) -> Iterator[list[LayerSteps]]:
        """Within it `forward` goes step by step, and adds each layer's steps to the list.

        A layer's outputs are then read out of its states, so that a loss's gradient by a state is all of the error
        that arrives there: from the outputs and from the steps after it.
        """
        steps: list[LayerSteps] = []
        self._recorded = steps
        try:
            yield steps
        finally:
            self._recorded = None


def _step_by_step(layer: Layer, inputs: Tensor, row: Tensor, recorded: list[LayerSteps]) -> tuple[Tensor, Tensor]:
    rows = [row]
    for x in inputs:
        _, row = layer.step(x, row)
        rows.append(row)
    recorded.append(LayerSteps(layer, inputs, rows))
    return torch.stack([row[:, : layer.output_size] for row in rows[1:]]), row
