"""The network whose memory is its output (Jordan, 1986)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenstate_models.cells.layer import SteppedLayer
from hiddenstate_models.cells.options import CellOptions


class Jordan(SteppedLayer):
    """h = tanh(W x + U y + b), y = V h + c: what a step knows of those before is the last output y, its state row.

    Where it is known what each output should have been, that can be fed back in its place: teacher forcing. Hidden
    units then depend on nothing that is still to be computed, and a sequence is a single product for all its steps.
    """

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        output_size = options.projection or hidden_size
        super().__init__(input_size, hidden_size, output_size, options)
        self.row_size = output_size
        bound = hidden_size**-0.5
        self.weight_hr_l0 = nn.Parameter(torch.empty(output_size, hidden_size).uniform_(-bound, bound))
        self.bias_hr_l0 = nn.Parameter(torch.empty(output_size).uniform_(-bound, bound))

    def project(self, x: Tensor) -> Tensor:
        """See SteppedLayer."""
        return self.affine(x, "ih") + self.get_parameter("bias_hh_l0")

    def advance(self, from_x: Tensor, row: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """See SteppedLayer."""
        output = F.linear((from_x + F.linear(row, weight_hh)).tanh(), self.weight_hr_l0, self.bias_hr_l0)
        return output, output

    def taught(
        self, inputs: Tensor, row: Tensor, targets: Tensor, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A sequence by teacher forcing: as `sequence`, but each step is fed the target [B, output] of the one before.

        Only the first step is fed the output in `row`.
        """
        weight_hh = self.get_parameter("weight_hh_l0") if weight_hh is None else weight_hh
        fed_back = torch.cat((row.unsqueeze(0), targets[:-1]))
        outputs, _ = self.advance(self.project(inputs), fed_back, weight_hh)
        return outputs, outputs[-1]
