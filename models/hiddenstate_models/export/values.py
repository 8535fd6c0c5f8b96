"""The served step of a next-value network as a graph: surprise, scaling, cells, distribution."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ValueNetwork
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.scaling import (
    ScaledStep,
    fixed_scaling_step,
    last_values,
    moves_since_last,
    scaling_step,
)
from hiddenstate_models.export.traversal import ONE_STEP
from hiddenstate_models.networks.distributions import SMALLEST_DEGREES_OF_FREEDOM, SMALLEST_SCALE

_POWERS = 7


def value_step(graph: GraphBuilder, network: ValueNetwork, products: Products) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the recurrent state, the scaling's state, and the last prediction, parameter by parameter:
    each target's location as an offset from the last value (so that small moves of large values stay visible),
    its scale and, for Student's t, its degrees of freedom. A scale of 0 says that there is no prediction yet.
    """
    columns, targets = network.columns, network.targets
    width = network.scaling_size + network.parameters * len(targets)
    recurrent, row = graph.split("states", network.state_size, width)
    pieces = network.scaling_size, *_parameter_sizes(network)
    scaling, *remembered = graph.split(_double(graph, row), *pieces)
    _observe(graph, network, scaling, remembered)

    scaled = _scaled(graph, network, "values", row, scaling, width)
    state = split_state(graph, network, recurrent)
    features = Operand(scaled.features, math.inf)
    output, after = stack(graph, network, products, features, state, Limits(), ONE_STEP)
    offset, *spread = _prediction(graph, network, products, output, scaled.units, scaled.seen)
    offset = _from_last(graph, network, offset, scaled.state)
    # one product where a choice and a sum would be two nodes
    predicted = graph.array(np.eye(columns)[:, list(targets)])
    location = graph.node("Gemm", scaled.values, predicted, _double(graph, offset), transA=1)
    _answer(graph, location, *spread)
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", graph.node("Concat", *flat, scaled.state, offset, *spread, axis=1))
    return _model(graph, network, "n")


def value_sequence(graph: GraphBuilder, network: ValueNetwork, products: Products) -> ModelProto:
    """The same signature for n rows of values of one session after each other: outputs of each, the last state.

    Scaling and cells go step by step; surprises and predictions are made for all steps at once.
    """
    columns, targets = network.columns, network.targets
    prediction_size = network.parameters * len(targets)
    sizes = network.state_size, network.scaling_size, prediction_size
    recurrent, scaling, remembered = graph.split("states", *sizes)
    layers = split_state(graph, network, recurrent)

    def one(state: Sequence[Tensor], elements: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        pieces = iter(state)
        cells = [tuple(next(pieces) for _ in layer) for layer in layers]
        before = next(pieces)
        wide = _double(graph, before)
        scaled = _scaled(graph, network, elements[0], before, wide, network.scaling_size)
        features = Operand(scaled.features, math.inf)
        output, after = stack(graph, network, products, features, cells, Limits(), ONE_STEP)
        now = [*(piece for layer in after for piece in layer), scaled.state]
        return now, [output.tensor, scaled.state, scaled.units, scaled.seen]

    axis = graph.integers(1)
    rows = graph.node("Unsqueeze", "values", axis)
    state = [*(piece for layer in layers for piece in layer), scaling]
    after, sequences = graph.scan(state, [(rows, TensorProto.DOUBLE)], one, 4)
    outputs, scalings, units, seen = (graph.node("Squeeze", sequence, axis) for sequence in sequences)
    offset, *spread = _prediction(graph, network, products, Operand(outputs, math.inf), units, seen)
    offset = _from_last(graph, network, offset, scalings)
    last = last_values(graph, columns, targets, _double(graph, scalings))
    location = graph.node("Add", last, _double(graph, offset))
    _answer(graph, location, *spread)
    predictions = graph.node("Concat", offset, *spread, axis=1)
    before = _double(graph, graph.shifted(remembered, predictions))
    _observe(
        graph,
        network,
        _double(graph, graph.shifted(scaling, scalings)),
        graph.split(before, *_parameter_sizes(network)),
    )
    graph.output("next_states", graph.node("Concat", *after, graph.last(predictions), axis=1))
    return _model(graph, network, 1)


def _observe(graph: GraphBuilder, network: ValueNetwork, scaling: Tensor, remembered: Sequence[Tensor]) -> None:
    """Makes the surprises of the values the graph's, given float64 states and predictions before them."""
    observed = _predicted(graph, network, "values")
    moves = moves_since_last(graph, network.columns, network.targets, observed, scaling)
    graph.output("surprises", _surprises(graph, len(network.targets), moves, *remembered))


def _scaled(
    graph: GraphBuilder, network: ValueNetwork, values: Tensor, row: Tensor, state: Tensor, width: int
) -> ScaledStep:
    """See `scaling_step`; by the network's kind of scaling."""
    if network.scaling == "fixed":
        return fixed_scaling_step(graph, network.columns, network.targets, values, row)
    return scaling_step(graph, network.columns, network.targets, values, row, state, width)


def _from_last(graph: GraphBuilder, network: ValueNetwork, offset: Tensor, scaling: Tensor) -> Tensor:
    """Offsets from the last value out of those from where predictions start: there, or at means that are fixed."""
    if network.scaling == "online":
        return offset
    node, means = graph.node, graph.node("Gather", graph.weight("encoder.means"), graph.integers(*network.targets))
    last = last_values(graph, network.columns, network.targets, _double(graph, scaling))
    return node("Add", offset, node("Cast", node("Sub", _double(graph, means), last), to=TensorProto.FLOAT))


def _prediction(
    graph: GraphBuilder, network: ValueNetwork, products: Products, output: Operand, units: Tensor, seen: Tensor
) -> tuple[Tensor, ...]:
    """Offset, scale and degrees of freedom, float32 [n, targets] each, of outputs [n, output]."""
    node, targets = graph.node, len(network.targets)
    head = products.linear(graph, output, "head.weight", graph.weight("head.bias"))
    location, positive = graph.split(head, targets, (network.parameters - 1) * targets)
    smallest = np.repeat([SMALLEST_SCALE, SMALLEST_DEGREES_OF_FREEDOM], targets)[: (network.parameters - 1) * targets]
    positive = node("Add", node("Softplus", positive), graph.array(smallest.astype(np.float32)))
    scale, *freedom = graph.split(positive, *[targets] * (network.parameters - 1))
    known = node("Min", seen, graph.number(1.0))
    return node("Mul", units, location), node("Mul", node("Mul", units, scale), known), *freedom


def _answer(graph: GraphBuilder, location: Tensor, scale: Tensor, *freedom: Tensor) -> None:
    """Makes predictions the graph's: NaN where nothing has been seen."""
    node = graph.node
    never, nan = node("Equal", scale, graph.number(0.0)), graph.number(math.nan, np.float64)
    graph.output("locations", node("Where", never, nan, location))
    graph.output("scales", node("Where", never, nan, _double(graph, scale)))
    graph.output("degrees_of_freedom", freedom[0] if freedom else _infinite_like(graph, scale))


def _parameter_sizes(network: ValueNetwork) -> list[int]:
    return [len(network.targets)] * network.parameters


def _model(graph: GraphBuilder, network: ValueNetwork, rows: str | int) -> ModelProto:
    """`rows` of states, n rows of values."""
    size, targets = network.served_state_size, len(network.targets)
    return graph.model(
        {"values": (TensorProto.DOUBLE, ["n", network.columns]), "states": (TensorProto.FLOAT, [rows, size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "locations": (TensorProto.DOUBLE, ["n", targets]),
            "scales": (TensorProto.DOUBLE, ["n", targets]),
            "degrees_of_freedom": (TensorProto.FLOAT, ["n", targets]),
            "next_states": (TensorProto.FLOAT, [rows, size]),
        },
    )


def _double(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.DOUBLE)


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
