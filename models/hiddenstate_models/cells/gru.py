"""The gated recurrent unit."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells import recurrence
from hiddenstate_models.cells.layer import Layer, SteppedLayer, fused
from hiddenstate_models.cells.options import CellOptions


class GRU(nn.GRU, Layer):
    """Gated recurrent unit (Cho et al., 2014), the reset gate applied after the recurrent product as in cuDNN."""

    gates = 3
    keeps = 1

    def __init__(self, input_size: int, hidden_size: int, _options: CellOptions) -> None:
        super().__init__(input_size, hidden_size)
        self.row_size = self.output_size = hidden_size

    def sequence(self, inputs: Tensor, row: Tensor, weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See Layer."""
        if recurrence.runs(inputs):
            weight = self.get_parameter("weight_hh_l0") if weight_hh is None else weight_hh
            outputs = recurrence.gated(self.affine(inputs, "ih"), row, weight, self.get_parameter("bias_hh_l0"))
            return outputs, outputs[-1]
        outputs, h = fused(self, inputs, row.unsqueeze(0).contiguous(), weight_hh)
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


class NormalisedGRU(SteppedLayer):
    """A GRU that normalises what input and state contribute, to both gates together and to the candidate by itself
    (Ba et al., 2016).
    """

    gates = 3
    keeps = 1

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, hidden_size, options)
        self.row_size = hidden_size
        self.norm_ih_l0 = nn.Parameter(torch.ones(self.gates * hidden_size))
        self.norm_hh_l0 = nn.Parameter(torch.ones(self.gates * hidden_size))

    def project(self, x: Tensor) -> Tensor:
        """See SteppedLayer."""
        return self._normed(F.linear(x, self.get_parameter("weight_ih_l0")), "ih")

    def advance(self, from_x: Tensor, row: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """See SteppedLayer."""
        r, z, n_h = self._normed(F.linear(row, weight_hh), "hh").chunk(self.gates, dim=1)
        r_x, z_x, n_x = from_x.chunk(self.gates, dim=1)
        z = (z_x + z).sigmoid()
        n = (n_x + (r_x + r).sigmoid() * n_h).tanh()
        h = n + z * (row - n)
        return h, h

    def gate_values(self, x: Tensor, row: Tensor) -> dict[str, Tensor]:
        """See Layer."""
        from_h = self._normed(F.linear(row, self.get_parameter("weight_hh_l0")), "hh")
        reset, update, _ = (self.project(x) + from_h).chunk(self.gates, dim=1)
        return {"reset": reset.sigmoid(), "update": update.sigmoid()}

    def _normed(self, contributions: Tensor, kind: str) -> Tensor:
        gates, candidate = slice(2 * self.hidden_size), slice(2 * self.hidden_size, None)
        parts = [self.norm(contributions[..., rows], kind, rows) for rows in (gates, candidate)]
        return torch.cat(parts, dim=-1) + self.get_parameter(f"bias_{kind}_l0")
