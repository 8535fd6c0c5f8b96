"""The simple recurrent network (Elman, 1990), its units tanh or rectified linear."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import recurrence
from hiddenstate_models.cells.layer import Layer, SteppedLayer, fused
from hiddenstate_models.cells.options import CellOptions


class Elman(nn.RNN, Layer):
    """h = f(W x + U h + b), f the tanh of `rnn-tanh` or the ReLU of `rnn-relu`."""

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, nonlinearity=options.cell.removeprefix("rnn-"))
        self.row_size = self.output_size = hidden_size

    def sequence(self, inputs: Tensor, row: Tensor, weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See Layer."""
        if recurrence.runs(inputs):
            weight = self.get_parameter("weight_hh_l0") if weight_hh is None else weight_hh
            from_x = self.affine(inputs, "ih") + self.get_parameter("bias_hh_l0")
            outputs = recurrence.simple(from_x, row, weight, rectified=self.nonlinearity == "relu")
            return outputs, outputs[-1]
        outputs, h = fused(self, inputs, row.unsqueeze(0).contiguous(), weight_hh)
        return outputs, h[0]

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h = self.affine(x, "ih") + self.affine(row, "hh")
        h = h.tanh() if self.nonlinearity == "tanh" else h.relu()
        return h, h


class NormalisedElman(SteppedLayer):
    """h = f(g * norm(W x + U h) + b) (Ba et al., 2016)."""

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, hidden_size, options)
        self.row_size = hidden_size
        self.norm_hh_l0 = nn.Parameter(torch.ones(hidden_size))
        self._function = torch.tanh if options.cell == "rnn-tanh" else torch.relu

    def project(self, x: Tensor) -> Tensor:
        """See SteppedLayer."""
        return F.linear(x, self.get_parameter("weight_ih_l0"))

    def advance(self, from_x: Tensor, row: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """See SteppedLayer."""
        bias = self.get_parameter("bias_ih_l0") + self.get_parameter("bias_hh_l0")
        h = self._function(self.norm(from_x + F.linear(row, weight_hh), "hh") + bias)
        return h, h
