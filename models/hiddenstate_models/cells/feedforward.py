"""No cells at all: what a network is worth without memory."""

import torch
from torch import Tensor, nn

from hiddenstate_models.cells.layer import Layer
from hiddenstate_models.cells.options import CellOptions


class FeedForward(Layer):
    """h = tanh(W x + b): one to one, each output from its own input alone."""

    def __init__(self, input_size: int, hidden_size: int, _options: CellOptions) -> None:
        super().__init__()
        self.output_size, self.row_size = hidden_size, 0
        bound = input_size**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))

    def sequence(self, inputs: Tensor, row: Tensor, _weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See Layer."""
        return self.affine(inputs, "ih").tanh(), row

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        return self.sequence(x, row)
