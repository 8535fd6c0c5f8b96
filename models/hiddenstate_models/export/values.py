"""The served step of a next-value network as a graph: surprise, scaling, cells, distribution."""

import math

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ValueNetwork
from hiddenstate_models.distributions import SMALLEST_DEGREES_OF_FREEDOM, SMALLEST_SCALE
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.recurrent import split_state, stack_step
from hiddenstate_models.export.scaling import scaling_step

_POWERS = 7


def value_step(graph: GraphBuilder, network: ValueNetwork, products: Products) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the recurrent state, the scaling's state, and the last prediction, parameter by parameter:
    each target's location as an offset from the last value (so that small moves of large values stay visible),
    its scale and, for Student's t, its degrees of freedom. A scale of 0 says that there is no prediction yet.
    """
    node, targets = graph.node, len(network.targets)
    pieces = (network.state_size, network.scaling_size, network.parameters * targets)
    recurrent, scaling, memory = graph.split("states", *pieces)
    scaled = scaling_step(graph, network.columns, "values", scaling)
    moves = _predicted(graph, network, scaled.moves)
    remembered = graph.split(memory, *[targets] * network.parameters)
    graph.output("surprises", _surprises(graph, targets, moves, *remembered))

    state = split_state(graph, network, recurrent)
    output, after = stack_step(graph, network, products, Operand(scaled.features, math.inf), state, Limits())
    head = products.linear(graph, output, "head.weight", graph.weight("head.bias"))
    location, scale, *freedom = graph.split(head, *[targets] * network.parameters)
    scale = node("Add", node("Softplus", scale), graph.number(SMALLEST_SCALE))
    freedom = [node("Add", node("Softplus", x), graph.number(SMALLEST_DEGREES_OF_FREEDOM)) for x in freedom]

    units = _predicted(graph, network, scaled.units)
    known = node("Min", _predicted(graph, network, scaled.seen), graph.number(1.0))
    offset = node("Mul", units, location)
    scale = node("Mul", node("Mul", units, scale), known)
    anchors = _predicted(graph, network, scaled.anchors)
    never, nan = node("Equal", scale, graph.number(0.0)), graph.number(math.nan, np.float64)
    location = node("Add", anchors, node("Cast", offset, to=TensorProto.DOUBLE))
    graph.output("locations", node("Where", never, nan, location))
    graph.output("scales", node("Where", never, nan, node("Cast", scale, to=TensorProto.DOUBLE)))
    graph.output("degrees_of_freedom", freedom[0] if freedom else _infinite_like(graph, scale))
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, scaled.state, offset, scale, *freedom, axis=1))

    size = network.served_state_size
    return graph.model(
        {"values": (TensorProto.DOUBLE, ["n", network.columns]), "states": (TensorProto.FLOAT, ["n", size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "locations": (TensorProto.DOUBLE, ["n", targets]),
            "scales": (TensorProto.DOUBLE, ["n", targets]),
            "degrees_of_freedom": (TensorProto.FLOAT, ["n", targets]),
            "next_states": (TensorProto.FLOAT, ["n", size]),
        },
    )


def _predicted(graph: GraphBuilder, network: ValueNetwork, columns: Tensor) -> Tensor:
    """The targets among [n, columns]."""
    if network.targets == tuple(range(network.columns)):
        return columns
    return graph.node("Gather", columns, graph.integers(*network.targets), axis=1)


def _infinite_like(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Expand", graph.number(math.inf), graph.node("Shape", x))


def _surprises(
    graph: GraphBuilder, targets: int, moves: Tensor, offset: Tensor, scale: Tensor, *freedom: Tensor
) -> Tensor:
    """-log p [n] of the moves [n, targets] under the prediction before them, summed over the targets observed.

    NaN where nothing was observed or nothing had been predicted.
    """
    node, nan = graph.node, graph.number(math.nan, np.float64)
    distance = node("Sub", moves, _double(graph, offset))
    deviation = node("Div", distance, _double(graph, scale))
    squares = node("Mul", deviation, deviation)
    terms = _student_t(graph, squares, *freedom) if freedom else _gaussian(graph, squares)
    constant = node("Add", node("Log", scale), graph.number(math.log(2 * math.pi) / 2))
    terms = node("Add", terms, _double(graph, constant))
    terms = node("Where", node("Greater", scale, graph.number(0.0)), terms, nan)
    total = _sum_of_observed(graph, terms) if targets > 1 else node("Squeeze", terms, graph.integers(1))
    return node("Cast", total, to=TensorProto.FLOAT)


def _gaussian(graph: GraphBuilder, squares: Tensor) -> Tensor:
    """-log of a Gaussian's density at squared deviations, less its constant."""
    return graph.node("Mul", squares, graph.number(0.5, np.float64))


def _student_t(graph: GraphBuilder, squares: Tensor, freedom: Tensor) -> Tensor:
    """-log of Student's t density at squared deviations float64 [n, targets], less that of a Gaussian's constant."""
    node = graph.node
    half = node("Mul", node("Add", freedom, graph.number(1.0)), graph.number(0.5))
    ratio = node("Div", squares, _double(graph, freedom))
    tail = node("Log", node("Add", ratio, graph.number(1.0, np.float64)))  # no Log1p in ONNX
    # powers of 2 / freedom as one vectorised Exp
    exponents = graph.array(np.arange(_POWERS + 1, dtype=np.float32))
    logarithm = node("Log", node("Div", graph.number(2.0), freedom))
    powers = node("Exp", node("Mul", node("Unsqueeze", logarithm, graph.integers(2)), exponents))
    excess = node("Squeeze", node("MatMul", powers, graph.array(_gamma_coefficients())), graph.integers(2))
    return node("Sub", node("Mul", _double(graph, half), tail), _double(graph, excess))


def _gamma_coefficients() -> npt.NDArray[np.float32]:
    """Polynomial in u = 2 / df for log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df / 2) / 2, right to 1e-8.

    ONNX has no log-gamma; this difference is smooth down to the smallest degrees of freedom a head can give.
    """
    largest = 2 / SMALLEST_DEGREES_OF_FREEDOM

    def excess(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([math.lgamma(1 / x + 0.5) - math.lgamma(1 / x) + math.log(x) / 2 for x in u])

    fit = np.polynomial.Chebyshev.interpolate(excess, _POWERS, domain=[0, largest])
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)[:, None]


def _sum_of_observed(graph: GraphBuilder, terms: Tensor) -> Tensor:
    """Sums [n, targets] over what is not NaN -> [n], NaN where all is."""
    node, axis, zero = graph.node, graph.integers(1), graph.number(0.0, np.float64)
    missing = node("IsNaN", terms)
    total = node("ReduceSum", node("Where", missing, zero, terms), axis, keepdims=0)
    none_observed = node("ReduceMin", node("Cast", missing, to=TensorProto.INT32), axis, keepdims=0)
    nan = graph.number(math.nan, np.float64)
    return node("Where", node("Cast", none_observed, to=TensorProto.BOOL), nan, total)


def _double(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.DOUBLE)
