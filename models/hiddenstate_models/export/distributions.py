"""Distributions of values in a graph: read from a head's outputs, told to clients, and how likely a value was.

The formulas are those of `networks.distributions`.
"""

import math

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hiddenstate_models.bundle import SeriesShapes
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Operand, Products
from hiddenstate_models.networks.distributions import SMALLEST_DEGREES_OF_FREEDOM, SMALLEST_SCALE

_POWERS = 7


def read_head(graph: GraphBuilder, network: SeriesShapes, products: Products, output: Operand) -> tuple[Tensor, ...]:
    """Location, scale and, for Student's t, degrees of freedom in scaled units, [n, targets] each."""
    node, targets, others = graph.node, len(network.targets), network.parameters - 1
    head = products.linear(graph, output, "head.weight", graph.weight("head.bias"))
    location, positive = graph.split(head, targets, others * targets)
    smallest = np.repeat([SMALLEST_SCALE, SMALLEST_DEGREES_OF_FREEDOM], targets)[: others * targets]
    positive = node("Add", node("Softplus", positive), graph.array(smallest.astype(np.float32)))
    return location, *graph.split(positive, *[targets] * others)


def answer(graph: GraphBuilder, location: Tensor, scale: Tensor, *freedom: Tensor) -> None:
    """Makes predictions the graph's: NaN where nothing has been seen."""
    node = graph.node
    never, nan = node("Equal", scale, graph.number(0.0)), graph.number(math.nan, np.float64)
    graph.output("locations", node("Where", never, nan, location))
    graph.output("scales", node("Where", never, nan, node("Cast", scale, to=TensorProto.DOUBLE)))
    graph.output("degrees_of_freedom", freedom[0] if freedom else _infinite_like(graph, scale))


def predicted(graph: GraphBuilder, network: SeriesShapes, columns: Tensor) -> Tensor:
    """The targets among [n, columns]."""
    if network.targets == tuple(range(network.columns)):
        return columns
    return graph.node("Gather", columns, graph.integers(*network.targets), axis=1)


def surprises(
    graph: GraphBuilder, targets: int, moves: Tensor, offset: Tensor, scale: Tensor, *freedom: Tensor
) -> Tensor:
    """-log p [n] of the moves [n, targets] under the prediction before them, summed over the targets observed.

    NaN where nothing was observed or nothing had been predicted.
    """
    node = graph.node
    deviation = node("Div", node("Sub", moves, offset), scale)
    squares = node("Mul", deviation, deviation)
    # A scale of 0 makes the next sum one of opposite infinities: NaN.
    terms = node("Add", _tail(graph, squares, *freedom), node("Log", scale))
    terms = node("Sub", terms, _excess(graph, targets, *freedom))
    total = _sum_of_observed(graph, terms) if targets > 1 else node("Squeeze", terms, graph.integers(1))
    return node("Cast", total, to=TensorProto.FLOAT)


def _tail(graph: GraphBuilder, squares: Tensor, *freedom: Tensor) -> Tensor:
    """The part of -log p that grows with squared deviations float64 [n, targets], of a Gaussian or Student's t."""
    node, half = graph.node, graph.number(0.5, np.float64)
    if not freedom:
        return node("Mul", squares, half)
    one = graph.number(1.0, np.float64)
    logarithm = node("Log", node("Add", node("Div", squares, *freedom), one))  # no Log1p in ONNX
    return node("Mul", node("Mul", node("Add", *freedom, one), half), logarithm)


def _excess(graph: GraphBuilder, targets: int, *freedom: Tensor) -> Tensor:
    """The logarithm of the density's constant: of a Gaussian, or of Student's t with freedom float64 [n, targets]."""
    node = graph.node
    gaussian = -math.log(2 * math.pi) / 2
    if not freedom:
        return graph.number(gaussian, np.float64)
    # powers of 1 / freedom as one vectorised Exp
    exponents = -np.arange(_POWERS + 1, dtype=np.float64)
    coefficients = _gamma_coefficients() * 2.0 ** -exponents[:, None]
    coefficients[0] += gaussian
    logarithm = node("Log", *freedom)
    if targets > 1:
        logarithm = node("Unsqueeze", logarithm, graph.integers(2))
    powers = node("Exp", node("Mul", logarithm, graph.array(exponents)))
    excess = node("MatMul", powers, graph.array(coefficients))
    return node("Squeeze", excess, graph.integers(2)) if targets > 1 else excess


def _gamma_coefficients() -> npt.NDArray[np.float64]:
    """Polynomial in u = 2 / df for log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df / 2) / 2, right to 1e-8.

    ONNX has no log-gamma; this difference is smooth down to the smallest degrees of freedom a head can give.
    """
    largest = 2 / SMALLEST_DEGREES_OF_FREEDOM

    def excess(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([math.lgamma(1 / x + 0.5) - math.lgamma(1 / x) + math.log(x) / 2 for x in u])

    fit = np.polynomial.Chebyshev.interpolate(excess, _POWERS, domain=[0, largest])
    return np.asarray(fit.convert(kind=np.polynomial.Polynomial).coef, np.float64)[:, None]


def _sum_of_observed(graph: GraphBuilder, terms: Tensor) -> Tensor:
    """Sums [n, targets] over what is not NaN -> [n], NaN where all is."""
    node, axis, zero = graph.node, graph.integers(1), graph.number(0.0, np.float64)
    missing = node("IsNaN", terms)
    total = node("ReduceSum", node("Where", missing, zero, terms), axis, keepdims=0)
    none_observed = node("ReduceMin", node("Cast", missing, to=TensorProto.INT32), axis, keepdims=0)
    nan = graph.number(math.nan, np.float64)
    return node("Where", node("Cast", none_observed, to=TensorProto.BOOL), nan, total)


def _infinite_like(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Expand", graph.number(math.inf), graph.node("Shape", x))
