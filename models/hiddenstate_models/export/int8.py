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


class Int8Products:
    """Products of 8-bit inputs and 7-bit weights, summed in int32 and scaled to float32."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
        """weights: the stored tensors by name."""
        self._weights = weights

    def linear(self, graph: GraphBuilder, x: Operand, weight: str, addend: Tensor, rows: Rows = None) -> Tensor:
        """See Products."""
        quantised, scale, zero = _quantise_input(graph, x)
        matrix, scales = self._quantised(graph, weight, rows)
        product = graph.node("MatMulIntegerToFloat", quantised, matrix, scale, scales, zero, domain=MICROSOFT_DOMAIN)
        return graph.node("Add", product, addend)

    def row_products(self, graph: GraphBuilder, x: Operand, weight: str, rows: Tensor) -> Tensor:
        """See Products."""
        quantised, scale, zero = _quantise_input(graph, x)
        matrix, scales = self._quantised(graph, weight, None)
        chosen = graph.node("Cast", graph.node("Gather", matrix, rows, axis=1), to=TensorProto.FLOAT)
        inputs = graph.node("DequantizeLinear", quantised, scale, zero)
        products = graph.node("Mul", graph.node("Transpose", inputs), chosen)
        sums = graph.node("ReduceSum", products, graph.integers(0), keepdims=0)
        return graph.node("Mul", sums, graph.node("Gather", scales, rows))

    def _quantised(self, graph: GraphBuilder, name: str, rows: Rows) -> tuple[Tensor, Tensor]:
        """The transposed weight [inputs, outputs] as int8, and the scale of every output."""
        weight = self._weights[name][slice(*rows) if rows else slice(None)].astype(np.float32)
        scales = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / WEIGHT_STEPS
        return graph.array(np.rint(weight / scales[:, None]).astype(np.int8).T), graph.array(scales)


def _quantise_input(graph: GraphBuilder, x: Operand) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero = graph.number(x.limit / INPUT_STEPS), graph.number(INPUT_ZERO, np.uint8)
    return graph.node("QuantizeLinear", x.tensor, scale, zero), scale, zero
