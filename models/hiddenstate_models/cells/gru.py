"""The gated recurrent unit."""

from torch import Tensor, nn

from hiddenstate_models.cells.layer import Layer
from hiddenstate_models.cells.options import CellOptions


class GRU(nn.GRU, Layer):
    """Gated recurrent unit (Cho et al., 2014), the reset gate applied after the recurrent product as in cuDNN."""

    gates = 3

    def __init__(self, input_size: int, hidden_size: int, _options: CellOptions) -> None:
        super().__init__(input_size, hidden_size)
        self.row_size = self.output_size = hidden_size

    def sequence(self, inputs: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        outputs, h = self(inputs, row.unsqueeze(0).contiguous())
        return outputs, h[0]

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        from_x = self.affine(x, "ih").chunk(self.gates, dim=1)
        from_h = self.affine(row, "hh").chunk(self.gates, dim=1)
        r = (from_x[0] + from_h[0]).sigmoid()
        z = (from_x[1] + from_h[1]).sigmoid()
        n = (from_x[2] + r * from_h[2]).tanh()
        h = n + z * (row - n)
        return h, h

    def gate_values(self, x: Tensor, row: Tensor) -> dict[str, Tensor]:
        """See Layer."""
        reset, update, _ = (self.affine(x, "ih") + self.affine(row, "hh")).chunk(self.gates, dim=1)
        return {"reset": reset.sigmoid(), "update": update.sigmoid()}
