"""The served step of a next-value network as a graph: surprise, scaling, cells, distribution."""

import math
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ValueNetwork
from hiddenstate_models.export.distributions import answer, predicted, read_head, surprises
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


def value_step(graph: GraphBuilder, network: ValueNetwork, products: Products) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the recurrent state, the scaling's state, and the last prediction, parameter by parameter:
    each target's location as an offset from the last value (so that small moves of large values stay visible),
    its scale and, for Student's t, its degrees of freedom. A scale of 0 says that there is no prediction yet.
    """
    columns, targets = network.columns, network.targets
    width = network.scaling_size + network.prediction_size
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
    answer(graph, location, *spread)
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", graph.node("Concat", *flat, scaled.state, offset, *spread, axis=1))
    return _model(graph, network, "n")


def value_sequence(graph: GraphBuilder, network: ValueNetwork, products: Products) -> ModelProto:
    """The same signature for n rows of values of one session after each other: outputs of each, the last state.

    Scaling and cells go step by step; surprises and predictions are made for all steps at once.
    """
    columns, targets = network.columns, network.targets
    prediction_size = network.prediction_size
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
    answer(graph, location, *spread)
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
    observed = predicted(graph, network, "values")
    moves = moves_since_last(graph, network.columns, network.targets, observed, scaling)
    graph.output("surprises", surprises(graph, len(network.targets), moves, *remembered))


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
    node = graph.node
    location, scale, *freedom = read_head(graph, network, products, output)
    known = node("Min", seen, graph.number(1.0))
    return node("Mul", units, location), node("Mul", node("Mul", units, scale), known), *freedom


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
