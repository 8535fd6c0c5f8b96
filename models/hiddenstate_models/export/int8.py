"""Which words could be next, found by an output layer in int8; how probable those are is computed in float32.

Weights are quantised per word, to seven bits: on CPUs without VNNI the 8-bit products of unsigned and signed
numbers saturate in 16-bit sums (`reduce_range`). Outputs are quantised by a fixed scale, since a cell's output
never leaves [-1, 1]: a scale taken from the batch, as in the usual dynamic quantisation, would make a session's
predictions depend on who shares its batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiddenstate_models.export.graph import MICROSOFT_DOMAIN, GraphBuilder, Tensor

WEIGHT_STEPS = 63
INPUT_STEPS = 127
INPUT_ZERO = 128
_INT8, _SCALES = ".int8", ".scales"


def quantised(name: str, weight: npt.NDArray[np.floating[Any]]) -> dict[str, npt.NDArray[Any]]:
    """A matrix [outputs, inputs] in int8 and its scales [outputs], by the names that `Int8Screening` looks for."""
    exact = weight.astype(np.float32)
    scales = np.maximum(np.abs(exact).max(axis=1), np.finfo(np.float32).tiny) / WEIGHT_STEPS
    return {name + _INT8: np.rint(exact / scales[:, None]).astype(np.int8), name + _SCALES: scales}


@dataclass(frozen=True)
class Int8Screening:
    """Products of 8-bit inputs and 7-bit weights, summed in int32 and scaled to float32."""

    limit: float
    """Of the inputs' magnitude; what is larger counts as this."""

    def linear(self, graph: GraphBuilder, x: Tensor, weight: str, bias: Tensor) -> Tensor:
        """About x [n, inputs] @ weight.T + bias [n, outputs]."""
        scale, zero = graph.number(self.limit / INPUT_STEPS), graph.number(INPUT_ZERO, np.uint8)
        matrix = graph.node("Transpose", graph.weight(weight + _INT8))
        operands = [graph.node("QuantizeLinear", x, scale, zero), matrix, scale, graph.weight(weight + _SCALES), zero]
        return graph.node("MatMulIntegerToFloat", *operands, "", bias, domain=MICROSOFT_DOMAIN)
