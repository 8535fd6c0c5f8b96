"""What a stack needs of a layer."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """One layer of cells. Weights are called as in torch: weight_ih_l0 and bias_ih_l0 act on the input, weight_hh_l0
    and bias_hh_l0 on the state, gates below each other; weight_hr_l0 projects an LSTM's output.
    """

    gates: ClassVar[int]
    row_size: int
    """Numbers in the layer's part of a state."""
    output_size: int

    def sequence(self, inputs: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """inputs [T, B, input], row [B, row_size] -> outputs [T, B, output], row after the last step."""
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


class LayerSteps(NamedTuple):
    """What went through one layer, step by step, as parts of autograd's graph."""

    layer: Layer
    inputs: Tensor
    """[T, B, input]"""
    rows: list[Tensor]
    """T + 1 of [B, row]: the state before the first step and after each."""
