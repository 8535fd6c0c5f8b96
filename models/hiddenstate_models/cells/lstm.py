"""Long short-term memory."""

from torch import Tensor, cat, nn
from torch.nn import functional as F

from hiddenstate_models.cells.layer import Layer
from hiddenstate_models.cells.options import CellOptions


class LSTM(nn.LSTM, Layer):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with forget gates (Gers et al., 2000).

    With `projection`, the output and the recurrent input are projected to that size (Sak et al., 2014).
    """

    gates = 4

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, proj_size=options.projection or 0)
        self.output_size = options.projection or hidden_size
        self.row_size = self.output_size + hidden_size

    def sequence(self, inputs: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h, c = self._split(row)
        outputs, (h, c) = self(inputs, (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        return outputs, cat((h[0], c[0]), dim=1)

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h, c = self._split(row)
        i, f, g, o = self._gates(x, h)
        c = f * c + i * g
        h = o * c.tanh()
        if self.proj_size:
            h = F.linear(h, self.get_parameter("weight_hr_l0"))
        return h, cat((h, c), dim=1)

    def gate_values(self, x: Tensor, row: Tensor) -> dict[str, Tensor]:
        """See Layer."""
        i, f, _, o = self._gates(x, self._split(row)[0])
        return {"input": i, "forget": f, "output": o}

    def _gates(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input gate, forget gate, candidate, output gate."""
        i, f, g, o = (self.affine(x, "ih") + self.affine(h, "hh")).chunk(self.gates, dim=1)
        return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()

    def _split(self, row: Tensor) -> tuple[Tensor, Tensor]:
        return row[:, : self.output_size], row[:, self.output_size :]
