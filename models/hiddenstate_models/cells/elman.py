"""The simple recurrent network (Elman, 1990), its units tanh or rectified linear."""

from torch import Tensor, nn

from hiddenstate_models.cells.layer import Layer
from hiddenstate_models.cells.options import CellOptions


class Elman(nn.RNN, Layer):
    """h = f(W x + U h + b), f the tanh of `rnn-tanh` or the ReLU of `rnn-relu`."""

    gates = 1

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, nonlinearity=options.cell.removeprefix("rnn-"))
        self.row_size = self.output_size = hidden_size

    def sequence(self, inputs: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        outputs, h = self(inputs, row.unsqueeze(0).contiguous())
        return outputs, h[0]

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h = self.affine(x, "ih") + self.affine(row, "hh")
        h = h.tanh() if self.nonlinearity == "tanh" else h.relu()
        return h, h
