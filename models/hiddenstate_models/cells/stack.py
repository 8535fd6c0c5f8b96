"""Layers of one kind of cell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells.elman import Elman, NormalisedElman
from hiddenstate_models.cells.feedforward import FeedForward
from hiddenstate_models.cells.gru import GRU, NormalisedGRU
from hiddenstate_models.cells.initialisation import initialise
from hiddenstate_models.cells.jordan import Jordan
from hiddenstate_models.cells.layer import Layer, LayerSteps
from hiddenstate_models.cells.lstm import LSTM, CoupledLSTM, ExtendedLSTM
from hiddenstate_models.cells.options import CellOptions

_Maker: TypeAlias = Callable[[int, int, CellOptions], Layer]


class RecurrentStack(nn.Module):
    """Layers of one kind of cell, with dropout between them; `forward` and `step` give the same numbers."""

    def __init__(self, input_size: int, options: CellOptions) -> None:
        super().__init__()
        self.input_size = input_size
        self.options = options
        make, size = _maker(options), input_size
        layers: list[Layer] = []
        for hidden_size in options.hidden_sizes:
            layers.append(make(size, hidden_size, options))
            size = layers[-1].output_size
        self.layers = nn.ModuleList(layers)
        self.output_size = size
        self.row_sizes = [layer.row_size for layer in layers]
        self.state_size = sum(self.row_sizes)
        self.holds_output = self.row_sizes[-1] > 0 and not (options.residual and len(layers) > 1)
        """Whether a state begins its last layer's part with the stack's output."""
        self._recorded: list[LayerSteps] | None = None
        self._masks: dict[tuple[str, int], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every weight as the options say."""
        for layer in self.layers:
            initialise(cast(Layer, layer), self.options)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size], on the weights' device and in their dtype."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def forward(self, sequence: Tensor, state: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sequence [T, B, input], state [B, state_size] -> outputs [T, B, output], state after the last step.

        targets [T, B, output] teach a Jordan network: what each step's output should have been, for the next to read.
        """
        rows = []
        for depth, (layer, row) in enumerate(self._layers(state)):
            inputs = self.drop(sequence, depth) if depth else sequence
            outputs, row = self._advance(layer, depth, inputs, row, targets)
            sequence = outputs + sequence if depth and self.options.residual else outputs
            rows.append(row)
        return sequence, torch.cat(rows, dim=1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, input], state [B, state_size] -> output [B, output], state; no dropout: this is for serving."""
        if self._recorded is not None:
            outputs, state = self(x.unsqueeze(0), state)
            return outputs[0], state
        rows = []
        for depth, (layer, row) in enumerate(self._layers(state)):
            output, row = layer.step(x, row)
            x = output + x if depth and self.options.residual else output
            rows.append(row)
        return x, torch.cat(rows, dim=1)

    def drop(self, sequence: Tensor, place: int = 0) -> Tensor:
        """Dropout on [T, B, size] in training; variational, it drops the same units at every step.

        Within `one_sequence` it drops the same ones whenever it is called for the same place; 0 is the stack's output.
        """
        options = self.options
        if not options.variational or not self.training:
            return F.dropout(sequence, options.dropout, self.training)
        return sequence * self._mask(("units", place), torch.ones_like(sequence[:1]), options.dropout)

    @contextmanager
    def one_sequence(self) -> Iterator[None]:
        """Within it several calls go through one sequence: what is dropped for a whole sequence is drawn once."""
        self._masks = {}
        try:
            yield
        finally:
            self._masks = None

    def _mask(self, key: tuple[str, int], dropped: Tensor, share: float) -> Tensor:
        """`dropped`, a share of it zero and the rest scaled up."""
        if self._masks is None:
            return F.dropout(dropped, share)
        if key not in self._masks:
            self._masks[key] = F.dropout(dropped, share)
        return self._masks[key]

    def _layers(self, state: Tensor) -> Iterator[tuple[Layer, Tensor]]:
        return zip(cast(list[Layer], self.layers), torch.split(state, self.row_sizes, dim=1), strict=True)

    def _advance(
        self, layer: Layer, depth: int, inputs: Tensor, row: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self._recorded is not None:
            return _step_by_step(layer, inputs, row, self._recorded)
        weight_hh: Tensor | None = None
        if self.options.weight_dropout and self.training:
            weights = layer.get_parameter("weight_hh_l0")
            weight_hh = self._mask(("weights", depth), weights, self.options.weight_dropout)
        if targets is not None:
            return cast(Jordan, layer).taught(inputs, row, targets, weight_hh)
        return layer.sequence(inputs, row, weight_hh)

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
    if not layer.row_size:
        return layer.sequence(inputs, row)
    rows = [row]
    for x in inputs:
        _, row = layer.step(x, row)
        rows.append(row)
    recorded.append(LayerSteps(layer, inputs, rows))
    return torch.stack([row[:, : layer.output_size] for row in rows[1:]]), row


def _maker(options: CellOptions) -> _Maker:
    """What makes the layers of these options: those with fused kernels where they can do it."""
    match options.cell:
        case "none":
            return FeedForward
        case "jordan":
            return Jordan
        case "lstm" if options.coupled:
            return CoupledLSTM
        case "lstm":
            return ExtendedLSTM if options.layer_norm or options.peepholes else LSTM
        case "gru":
            return NormalisedGRU if options.layer_norm else GRU
        case _:
            return NormalisedElman if options.layer_norm else Elman
