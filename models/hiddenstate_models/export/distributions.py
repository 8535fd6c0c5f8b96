"""Distributions of values in a graph: read from a head's outputs, told to clients, and how likely a value was.

The formulas are those of `networks.distributions`. As in `export.scaling` all is turned: [targets, n].
"""

import math

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hiddenstate_models.bundle import SeriesShapes
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.networks.distributions import SMALLEST_DEGREES_OF_FREEDOM, SMALLEST_SCALE

_POLES = np.geomspace(0.37, 1.8, 6)


def read_head(graph: GraphBuilder, network: SeriesShapes, output: Tensor) -> tuple[Tensor, ...]:
    """Location, scale and, for Student's t, degrees of freedom in scaled units, float32 [targets, n] each, of
    outputs [n, output].
    """
    node, targets, others = graph.node, len(network.targets), network.parameters - 1
    bias = node("Unsqueeze", graph.weight("head.bias"), graph.integers(1))
    head = node("Gemm", graph.weight("head.weight"), output, bias, transB=1)
    location, positive = graph.split(head, targets, others * targets, axis=0)
    smallest = np.repeat([SMALLEST_SCALE, SMALLEST_DEGREES_OF_FREEDOM], targets)[: others * targets]
    positive = node("Add", node("Softplus", positive), graph.array(smallest.astype(np.float32)[:, None]))
    return location, *(graph.split(positive, *[targets] * others, axis=0) if others > 1 else [positive])


def surprises(
    graph: GraphBuilder, targets: int, observed: Tensor, before: Tensor, offset: Tensor, scale: Tensor, *freedom: Tensor
) -> Tensor:
    """-log p float32 [n] of what was observed, float64 [targets, n], under the prediction made before it, summed over
    the targets observed. NaN where nothing was observed or nothing had been predicted.

    `before` are the values before it, from which the prediction's `offset` counts.
    """
    node = graph.node

    def line(x: Tensor) -> Tensor:
        return x if targets == 1 else node("Reshape", x, graph.integers(1, -1))

    deviation = line(node("Div", node("Sub", node("Sub", observed, before), offset), scale))
    # A scale of 0 makes what is summed opposite infinities: NaN.
    terms = _student if freedom else _gaussian
    total = terms(graph, node("Mul", deviation, deviation), *map(line, (scale, *freedom)))
    if targets > 1:
        total = _sum_of_observed(graph, node("Reshape", total, graph.integers(targets, -1)))
    return node("Cast", total, to=TensorProto.FLOAT)


def _gaussian(graph: GraphBuilder, squares: Tensor, scale: Tensor) -> Tensor:
    """Of squared deviations [1, n] in scales [1, n]: [n]."""
    node = graph.node
    summands = node("Concat", squares, node("Log", scale), axis=0)
    total = node("MatMul", graph.array(np.array([0.5, 1.0])), summands)
    return node("Add", total, graph.number(math.log(2 * math.pi) / 2, np.float64))


def _student(graph: GraphBuilder, squares: Tensor, scale: Tensor, freedom: Tensor) -> Tensor:
    """(df + 1) / 2 log(1 + squares / df) + log(scale) - the logarithm of the density's constant: [n]."""
    node = graph.node
    logarithm = node(
        "Log", node("Add", node("Div", squares, freedom), graph.number(1.0, np.float64))
    )  # no Log1p in ONNX
    fractions = node("Reciprocal", node("Add", freedom, graph.array(_POLES[:, None])))
    summands = node("Concat", node("Mul", freedom, logarithm), logarithm, node("Log", scale), fractions, axis=0)
    total = node("MatMul", graph.array(np.array([0.5, 0.5, 1.0, *-_fractions()])), summands)
    return node("Add", total, graph.number(math.log(2 * math.pi) / 2, np.float64))


def _fractions() -> npt.NDArray[np.float64]:
    """Factors of 1 / (df + pole) whose sum is log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df / 2) / 2.

    It is right to 1e-9. ONNX has no log-gamma; this difference is smooth down to the smallest degrees of freedom a head
    can give.
    """
    inverses = np.polynomial.chebyshev.chebpts1(200) / 2 + 0.5
    freedom = SMALLEST_DEGREES_OF_FREEDOM / inverses
    halves = freedom / 2
    exact = [math.lgamma(x + 0.5) - math.lgamma(x) - math.log(x) / 2 for x in halves]
    factors, *_ = np.linalg.lstsq(1 / (freedom[:, None] + _POLES), np.array(exact), rcond=None)
    return np.asarray(factors, np.float64)


def _sum_of_observed(graph: GraphBuilder, terms: Tensor) -> Tensor:
    """Sums [targets, n] over what is not NaN -> [n], NaN where all is."""
    node, axis, zero = graph.node, graph.integers(0), graph.number(0.0, np.float64)
    missing = node("IsNaN", terms)
    total = node("ReduceSum", node("Where", missing, zero, terms), axis, keepdims=0)
    none_observed = node("ReduceMin", node("Cast", missing, to=TensorProto.INT32), axis, keepdims=0)
    nan = graph.number(math.nan, np.float64)
    return node("Where", node("Cast", none_observed, to=TensorProto.BOOL), nan, total)


def infinite_like(graph: GraphBuilder, x: Tensor) -> Tensor:
    """The degrees of freedom of a Gaussian, in the shape of x."""
    return graph.node("Expand", graph.number(math.inf), graph.node("Shape", x))
