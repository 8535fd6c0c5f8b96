"""What a stack needs of a layer."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hiddenstate_models.cells.options import CellOptions


class Layer(nn.Module):
    """One layer of cells. Weights are called as in torch: weight_ih_l0 and bias_ih_l0 act on the input, weight_hh_l0
    and bias_hh_l0 on the state, gates below each other; weight_hr_l0 makes the output of the hidden units.
    """

    gates: ClassVar[int] = 1
    keeps: ClassVar[int | None] = None
    """Which of the gates keeps what the cells hold, if one does."""
    row_size: int
    """Numbers in the layer's part of a state, which begins with its output; none in a layer without memory."""
    output_size: int

    def sequence(self, inputs: Tensor, row: Tensor, weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """inputs [T, B, input], row [B, row_size] -> outputs [T, B, output], row after the last step.

        weight_hh takes the place of the recurrent weights where given.
        """
        raise NotImplementedError

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, input], row [B, row_size] -> output [B, output], row."""
        raise NotImplementedError

    def gate_values(self, _x: Tensor, _row: Tensor) -> dict[str, Tensor]:
        """What each gate lets through in a step from `row`, [B, units] in 0 to 1; empty for cells without gates."""
        return {}

    def affine(self, x: Tensor, kind: str) -> Tensor:
        """x [..., size] times the weights of the input ("ih") or the state ("hh"), bias added."""
        return F.linear(x, self.get_parameter(f"weight_{kind}_l0"), self.get_parameter(f"bias_{kind}_l0"))


class SteppedLayer(Layer):
    """A layer without a fused kernel: what inputs contribute is computed for all steps at once, the rest in a loop.

    A loop compiled by TorchScript took as long as the plain one.
    """

    def __init__(self, input_size: int, hidden_size: int, recurrent_size: int, options: CellOptions) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.output_size = options.projection or hidden_size
        self.normalised = options.layer_norm
        width = self.gates * hidden_size
        bound = hidden_size**-0.5  # as torch starts its own cells
        for name, shape in (
            ("weight_ih_l0", (width, input_size)),
            ("weight_hh_l0", (width, recurrent_size)),
            ("bias_ih_l0", (width,)),
            ("bias_hh_l0", (width,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def project(self, x: Tensor) -> Tensor:
        """What inputs [..., input] contribute, [..., gates * units]."""
        raise NotImplementedError

    def advance(self, from_x: Tensor, row: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
        """What a step's inputs contribute [B, gates * units], row [B, row_size] -> output [B, output], row."""
        raise NotImplementedError

    def sequence(self, inputs: Tensor, row: Tensor, weight_hh: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See Layer."""
        weight_hh = self.get_parameter("weight_hh_l0") if weight_hh is None else weight_hh
        outputs = []
        for from_x in self.project(inputs):
            output, row = self.advance(from_x, row, weight_hh)
            outputs.append(output)
        return torch.stack(outputs), row

    def step(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """See Layer."""
        return self.advance(self.project(x), row, self.get_parameter("weight_hh_l0"))

    def norm(self, x: Tensor, name: str, rows: slice = slice(None)) -> Tensor:
        """x [..., units] less its mean, divided by its deviation, times a learnt gain."""
        gain = self.get_parameter(f"norm_{name}_l0")[rows]
        return F.layer_norm(x, gain.shape, gain)


def fused(module: nn.RNNBase, inputs: Tensor, before: Any, weight_hh: Tensor | None) -> Any:
    """Runs torch's kernel, with other recurrent weights where given."""
    if weight_hh is None:
        return module(inputs, before)
    return functional_call(module, {"weight_hh_l0": weight_hh}, (inputs, before))


class LayerSteps(NamedTuple):
    """What went through one layer, step by step, as parts of autograd's graph."""

    layer: Layer
    inputs: Tensor
    """[T, B, input]"""
    rows: list[Tensor]
    """T + 1 of [B, row]: the state before the first step and after each."""
