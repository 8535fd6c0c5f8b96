"""Long short-term memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells.layer import Layer, SteppedLayer, fused
from hiddenstate_models.cells.options import CellOptions


class LSTM(nn.LSTM, Layer):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with forget gates (Gers et al., 2000).

    With `projection`, the output and the recurrent input are projected to that size (Sak et al., 2014).
    """

    gates = 4
    keeps = 1

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__(input_size, hidden_size, proj_size=options.projection or 0)
        self.output_size = options.projection or hidden_size
        self.row_size = self.output_size + hidden_size

    def sequence(self, inputs: Tensor, row: Tensor, weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h, c = self._split(row)
        before = h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()
        outputs, (h, c) = fused(self, inputs, before, weight_hh)
        return outputs, torch.cat((h[0], c[0]), dim=1)

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        h, c = self._split(row)
        i, f, g, o = self._gates(x, h)
        c = f * c + i * g
        h = o * c.tanh()
        if self.proj_size:
            h = F.linear(h, self.get_parameter("weight_hr_l0"))
        return h, torch.cat((h, c), dim=1)

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


class ExtendedLSTM(SteppedLayer):
    """An LSTM with layer normalisation (Ba et al., 2016), with peepholes (Gers & Schmidhuber, 2000), or both.

    Normalised are what the input and the state contribute to all gates, and the cells on their way to the output.
    A peephole shows a gate its own cell: input and forget gates the one before the step, output gates the one after.
    """

    gates = 4
    keeps = 1

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        output_size = options.projection or hidden_size
        super().__init__(input_size, hidden_size, output_size, options)
        self.row_size = output_size + hidden_size
        self._projected, self._peepholes = options.projection is not None, options.peepholes
        if self._projected:
            bound = hidden_size**-0.5
            self.weight_hr_l0 = nn.Parameter(torch.empty(output_size, hidden_size).uniform_(-bound, bound))
        if options.layer_norm:
            self.norm_ih_l0 = nn.Parameter(torch.ones(self.gates * hidden_size))
            self.norm_hh_l0 = nn.Parameter(torch.ones(self.gates * hidden_size))
            self.norm_ch_l0 = nn.Parameter(torch.ones(hidden_size))
            self.bias_ch_l0 = nn.Parameter(torch.zeros(hidden_size))
        if self._peepholes:
            self.peephole_l0 = nn.Parameter(torch.zeros(self.gates - 1, hidden_size))

    def project(self, x: Tensor) -> Tensor:
        """See SteppedLayer."""
        from_x = F.linear(x, self.get_parameter("weight_ih_l0"))
        if self.normalised:
            from_x = self.norm(from_x, "ih")
        return from_x + self.get_parameter("bias_ih_l0") + self.get_parameter("bias_hh_l0")

    def advance(self, from_x: Tensor, row: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """See SteppedLayer."""
        h, c = row[:, : self.output_size], row[:, self.output_size :]
        *inner, g, o = self._contributions(from_x, h, weight_hh)
        i, f = self._inner_gates(inner, c)
        c = f * c + i * g.tanh()
        h = self._peeped(o, -1, c).sigmoid() * self._shown(c).tanh()
        if self._projected:
            h = F.linear(h, self.get_parameter("weight_hr_l0"))
        return h, torch.cat((h, c), dim=1)

    def gate_values(self, x: Tensor, row: Tensor) -> dict[str, Tensor]:
        """See Layer."""
        h, c = row[:, : self.output_size], row[:, self.output_size :]
        *inner, g, o = self._contributions(self.project(x), h, self.get_parameter("weight_hh_l0"))
        i, f = self._inner_gates(inner, c)
        o = self._peeped(o, -1, f * c + i * g.tanh()).sigmoid()
        return {"input": i, "forget": f, "output": o}

    def _contributions(self, from_x: Tensor, h: Tensor, weight_hh: Tensor) -> tuple[Tensor, ...]:
        from_h = F.linear(h, weight_hh)
        if self.normalised:
            from_h = self.norm(from_h, "hh")
        return (from_x + from_h).chunk(self.gates, dim=1)

    def _inner_gates(self, inner: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
        """Input and forget gates."""
        i, f = inner
        return self._peeped(i, 0, c).sigmoid(), self._peeped(f, 1, c).sigmoid()

    def _peeped(self, gate: Tensor, place: int, c: Tensor) -> Tensor:
        return gate + self.peephole_l0[place] * c if self._peepholes else gate

    def _shown(self, c: Tensor) -> Tensor:
        """The cells as the output gates have them."""
        return self.norm(c, "ch") + self.bias_ch_l0 if self.normalised else c


class CoupledLSTM(ExtendedLSTM):
    """An LSTM that adds as much as it forgets: its input gates are 1 - its forget gates (Greff et al., 2017)."""

    gates = 3
    keeps = 0

    def _inner_gates(self, inner: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
        (f,) = inner
        f = self._peeped(f, 0, c).sigmoid()
        return 1 - f, f
