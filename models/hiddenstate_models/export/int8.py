"""Int8 products for a step, and what they cost in accuracy.

Weights are quantised per output, to seven bits: on CPUs without VNNI the 8-bit products of unsigned and signed
numbers saturate in 16-bit sums (`reduce_range`). Inputs are quantised by fixed scales, since a cell's output
never leaves [-1, 1] and an embedding's range is known: scales taken from the batch, as in the usual dynamic
quantisation, would make a session's predictions depend on who shares its batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hiddenstate_models.export.graph import MICROSOFT_DOMAIN, GraphBuilder, Rows, Tensor
from hiddenstate_models.export.products import Operand

WEIGHT_STEPS = 63
INPUT_STEPS = 127
INPUT_ZERO = 128
_INT8, _SCALES = ".int8", ".scales"


def quantised(weights: Mapping[str, npt.NDArray[np.floating[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Matrices [outputs, inputs] in int8 and their scales [outputs], by the names that `Int8Products` looks for."""
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, weight in weights.items():
        exact = weight.astype(np.float32)
        scales = np.maximum(np.abs(exact).max(axis=1), np.finfo(np.float32).tiny) / WEIGHT_STEPS
        stored[name + _INT8] = np.rint(exact / scales[:, None]).astype(np.int8)
        stored[name + _SCALES] = scales
    return stored


class Int8Products:
    """Products of 8-bit inputs and 7-bit weights, summed in int32 and scaled to float32."""

    def linear(self, graph: GraphBuilder, x: Operand, weight: str, addend: Tensor, rows: Rows = None) -> Tensor:
        """See Products."""
        quantised, scale, zero = _quantise_input(graph, x)
        matrix = graph.node("Transpose", graph.weight(weight + _INT8, rows))
        scales = graph.weight(weight + _SCALES, rows)
        product = graph.node("MatMulIntegerToFloat", quantised, matrix, scale, scales, zero, domain=MICROSOFT_DOMAIN)
        return graph.node("Add", product, addend)

    def row_products(self, graph: GraphBuilder, x: Operand, weight: str, rows: Tensor) -> Tensor:
        """See Products."""
        quantised, scale, zero = _quantise_input(graph, x)
        chosen = graph.node("Cast", graph.node("Gather", graph.weight(weight + _INT8), rows), to=TensorProto.FLOAT)
        inputs = graph.node("DequantizeLinear", quantised, scale, zero)
        sums = graph.node("ReduceSum", graph.node("Mul", inputs, chosen), graph.integers(1), keepdims=0)
        return graph.node("Mul", sums, graph.node("Gather", graph.weight(weight + _SCALES), rows))


def _quantise_input(graph: GraphBuilder, x: Operand) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero = graph.number(x.limit / INPUT_STEPS), graph.number(INPUT_ZERO, np.uint8)
    return graph.node("QuantizeLinear", x.tensor, scale, zero), scale, zero
