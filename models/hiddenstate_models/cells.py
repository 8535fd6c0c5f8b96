"""Stacks of recurrent cells that agree with themselves: a sequence at once, or one step at a time.

A stack's state is one flat row per session, laid out layer by layer: `h | c` for an LSTM, `h` for a GRU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerSteps(NamedTuple):
    """What went through one layer, step by step, as parts of autograd's graph."""

    layer: nn.Module
    inputs: Tensor
    """[T, B, input]"""
    rows: list[Tensor]
    """T + 1 of [B, row]: the state before the first step and after each."""


class RecurrentStack(nn.Module):
    """Layers of one kind of cell, with dropout between them.

    `forward` runs whole sequences through torch's fused kernels, `step` one time step through plain matrix
    products; both give the same numbers. Recurrent weights start orthogonal, gate by gate (Saxe et al., 2014),
    input weights by Glorot's rule (Glorot & Bengio, 2010).
    """

    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        *,
        projection: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must name at least one layer of at least one unit, not {hidden_sizes}")
        self.input_size = input_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.projection = projection
        self.dropout = dropout
        output_sizes = [projection or size for size in hidden_sizes]
        input_sizes = [input_size, *output_sizes[:-1]]
        self.output_size = output_sizes[-1]
        self.layers = nn.ModuleList(map(self._layer, input_sizes, hidden_sizes))
        self.row_sizes = [self._row_size(size) for size in hidden_sizes]
        self.state_size = sum(self.row_sizes)
        self._recorded: list[LayerSteps] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every weight as the class's docstring says."""
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("weight_hh"):
                    for gate in parameter.data.chunk(self.gates):
                        nn.init.orthogonal_(gate)
                elif name.startswith("weight"):
                    nn.init.xavier_uniform_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [batch, state_size], on the weights' device and in their dtype."""
        return next(self.parameters()).new_zeros(batch, self.state_size)

    def forward(self, sequence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """sequence [T, B, input], state [B, state_size] -> outputs [T, B, output], state after the last step."""
        rows = []
        for depth, (layer, row) in enumerate(zip(self.layers, torch.split(state, self.row_sizes, dim=1), strict=True)):
            if depth:
                sequence = F.dropout(sequence, self.dropout, self.training)
            advance = self._sequence if self._recorded is None else self._step_by_step
            sequence, row = advance(layer, sequence, row)
            rows.append(row)
        return sequence, torch.cat(rows, dim=1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, input], state [B, state_size] -> output [B, output], state; no dropout: this is for serving."""
        rows = []
        for layer, row in zip(self.layers, torch.split(state, self.row_sizes, dim=1), strict=True):
            x, row = self._step(layer, x, row)
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

    def layer_step(self, layer: nn.Module, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """One of the stack's layers: x [B, input], row [B, row] -> output [B, output], row, which begins with it."""
        return self._step(layer, x, row)

    def _step_by_step(self, layer: nn.Module, sequence: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        rows, outputs = [row], []
        for x in sequence:
            output, row = self._step(layer, x, row)
            rows.append(row)
            outputs.append(row[:, : output.shape[1]])
        assert self._recorded is not None
        self._recorded.append(LayerSteps(layer, sequence, rows))
        return torch.stack(outputs), row

    def _layer(self, input_size: int, hidden_size: int) -> nn.Module:
        raise NotImplementedError

    def _row_size(self, hidden_size: int) -> int:
        raise NotImplementedError

    def _sequence(self, layer: nn.Module, sequence: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _step(self, layer: nn.Module, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class LSTM(RecurrentStack):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with forget gates (Gers et al., 2000).

    Forget-gate biases start at 1 (Jozefowicz et al., 2015). With `projection`, each layer's output and recurrent
    input are projected to that size (Sak et al., 2014).
    """

    gates = 4

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in self.layers:
            _, forget, _, _ = layer.get_parameter("bias_ih_l0").data.chunk(self.gates)
            nn.init.ones_(forget)

    def _layer(self, input_size: int, hidden_size: int) -> nn.LSTM:
        return nn.LSTM(input_size, hidden_size, proj_size=self.projection or 0)

    def _row_size(self, hidden_size: int) -> int:
        return (self.projection or hidden_size) + hidden_size

    def _split(self, row: Tensor) -> tuple[Tensor, Tensor]:
        output = self.projection or row.shape[1] // 2
        return row[:, :output], row[:, output:]

    def _sequence(self, layer: nn.Module, sequence: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self._split(row)
        outputs, (h, c) = layer(sequence, (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        return outputs, torch.cat((h[0], c[0]), dim=1)

    def _step(self, layer: nn.Module, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self._split(row)
        gates = _linear(x, layer, "ih") + _linear(h, layer, "hh")
        i, f, g, o = gates.chunk(self.gates, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        if self.projection:
            h = F.linear(h, layer.get_parameter("weight_hr_l0"))
        return h, torch.cat((h, c), dim=1)


class GRU(RecurrentStack):
    """Gated recurrent unit (Cho et al., 2014), the reset gate applied after the recurrent product as in cuDNN."""

    gates = 3

    def _layer(self, input_size: int, hidden_size: int) -> nn.GRU:
        if self.projection:
            raise ValueError("projection is for LSTMs; a GRU has none")
        return nn.GRU(input_size, hidden_size)

    def _row_size(self, hidden_size: int) -> int:
        return hidden_size

    def _sequence(self, layer: nn.Module, sequence: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        outputs, h = layer(sequence, row.unsqueeze(0).contiguous())
        return outputs, h[0]

    def _step(self, layer: nn.Module, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        from_x = _linear(x, layer, "ih").chunk(self.gates, dim=1)
        from_h = _linear(row, layer, "hh").chunk(self.gates, dim=1)
        r = (from_x[0] + from_h[0]).sigmoid()
        z = (from_x[1] + from_h[1]).sigmoid()
        n = (from_x[2] + r * from_h[2]).tanh()
        h = n + z * (row - n)
        return h, h


def _linear(x: Tensor, layer: nn.Module, kind: str) -> Tensor:
    return F.linear(x, layer.get_parameter(f"weight_{kind}_l0"), layer.get_parameter(f"bias_{kind}_l0"))


CELLS: dict[str, type[RecurrentStack]] = {"lstm": LSTM, "gru": GRU}
