"""The served step of a forecasting network as a graph: surprise, scaling, encoder, and the decoder unrolled."""

import math

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ForecastNetwork
from hiddenstate_models.export.distributions import answer, predicted, read_head, surprises
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.scaling import moves_since_last, scaling_step
from hiddenstate_models.export.traversal import ONE_STEP
from hiddenstate_models.networks.scaling import LARGEST_RATIO


def forecast_step(graph: GraphBuilder, network: ForecastNetwork, products: Products) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the encoder's state, the scaling's, the last moves of the targets, the oldest first, and what
    was predicted to be next, as in a next-value network's row.
    """
    node, targets, horizon, double = graph.node, len(network.targets), network.horizon, TensorProto.DOUBLE
    rest = network.scaling_size + network.memory * targets + network.prediction_size
    recurrent, row = graph.split("states", network.state_size, rest)
    pieces = network.scaling_size, network.memory * targets, network.prediction_size
    scaling, moves, remembered = graph.split(row, *pieces)
    observed = predicted(graph, network, "values")
    exact = node("Cast", scaling, to=double)
    move = moves_since_last(graph, network.columns, network.targets, observed, exact)
    parameters = graph.split(node("Cast", remembered, to=double), *[targets] * network.parameters)
    graph.output("surprises", surprises(graph, targets, move, *parameters))

    scaled = scaling_step(graph, network.columns, network.targets, "values", scaling, exact, network.scaling_size)
    moves = _moves_after(graph, network, moves, move, scaled.seen)
    deviations, ahead = _seasons(graph, network, moves, scaled.units)
    features = node("Concat", scaled.features, *(node("Asinh", deviation) for deviation in deviations), axis=1)
    state = split_state(graph, network, recurrent)
    _, after = stack(graph, network, products, Operand(features, math.inf), state, Limits(), ONE_STEP)

    linear = _linear(graph, network)
    location = node("Mul", scaled.units, graph.number(0.0))
    state, steps = after, []
    for seasonal in ahead:
        inputs = node("Concat", location, *seasonal, axis=1)
        squashed = Operand(node("Asinh", inputs), math.inf)
        output, state = stack(graph, network, products, squashed, state, Limits(), ONE_STEP, "decoder")
        residual, scale, *freedom = read_head(graph, network, products, output)
        location = node("Add", residual, node("MatMul", inputs, linear))
        steps.append((location, scale, *freedom))
        location = node("Clip", location, graph.number(-LARGEST_RATIO), graph.number(LARGEST_RATIO))

    known = node("Min", scaled.seen, graph.number(1.0))
    shape = graph.integers(-1, horizon, targets)
    locations, scales, *freedoms = (
        node("Reshape", node("Concat", *field, axis=1), shape) for field in zip(*steps, strict=True)
    )
    middle = graph.integers(1)
    units = node("Unsqueeze", scaled.units, middle)
    offsets = node("Mul", units, locations)
    scales = node("Mul", node("Mul", units, scales), node("Unsqueeze", known, middle))
    columns = graph.array(np.eye(network.columns)[:, list(network.targets)])
    anchors = node("Unsqueeze", node("Gemm", scaled.values, columns, transA=1), middle)
    answer(graph, node("Add", anchors, node("Cast", offsets, to=double)), scales, *freedoms)

    def first(x: Tensor) -> Tensor:
        return node("Squeeze", node("Gather", x, graph.integers(0), axis=1), middle)

    flat = [piece for layer in after for piece in layer]
    kept = (offsets, scales, *freedoms)
    graph.output("next_states", node("Concat", *flat, scaled.state, moves, *map(first, kept), axis=1))

    size = network.served_state_size
    return graph.model(
        {"values": (double, ["n", network.columns]), "states": (TensorProto.FLOAT, ["n", size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "locations": (double, ["n", horizon, targets]),
            "scales": (double, ["n", horizon, targets]),
            "degrees_of_freedom": (TensorProto.FLOAT, ["n", horizon, targets]),
            "next_states": (TensorProto.FLOAT, ["n", size]),
        },
    )


def _moves_after(graph: GraphBuilder, network: ForecastNetwork, moves: Tensor, move: Tensor, seen: Tensor) -> Tensor:
    """The last moves [n, memory * targets] with this one, float64 [n, targets]; 0 if it was missing or the first."""
    node, targets = graph.node, len(network.targets)
    if not network.memory:
        return moves
    first = node("LessOrEqual", seen, graph.number(1.0))
    still = node("Or", first, node("IsNaN", move))
    move = node("Cast", node("Where", still, graph.number(0.0, np.float64), move), to=TensorProto.FLOAT)
    _, kept = graph.split(moves, targets, (network.memory - 1) * targets)
    return node("Concat", kept, move, axis=1)


def _seasons(
    graph: GraphBuilder, network: ForecastNetwork, moves: Tensor, units: Tensor
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What the seasons say, in units: how far the value is from those a season before it; and by step of the forecast
    the values a season before that step, from the last one on. Each is float32 [n, seasons * targets], or left out.

    Both are sums of the last moves, so that one product with a constant matrix finds them all.
    """
    node, targets, seasons = graph.node, len(network.targets), len(network.seasons)
    if not seasons:
        return [], [[] for _ in range(network.horizon)]
    columns = [_last(network.memory, season) for season in network.seasons]
    columns += [-_last(network.memory, -step % season) for step in range(1, network.horizon + 1)
                for season in network.seasons]  # fmt: skip
    sums = node("MatMul", moves, graph.array(np.kron(np.stack(columns, axis=1), np.eye(targets)).astype(np.float32)))
    by_target = node("Reshape", sums, graph.integers(-1, len(columns), targets))
    ratios = node("Div", by_target, node("Unsqueeze", units, graph.integers(1)))
    ratios = node("Clip", ratios, graph.number(-LARGEST_RATIO), graph.number(LARGEST_RATIO))
    flat = node("Reshape", ratios, graph.integers(-1, len(columns) * targets))
    deviations, *ahead = graph.split(flat, *[seasons * targets] * (1 + network.horizon))
    return [deviations], [[each] for each in ahead]


def _last(memory: int, count: int) -> npt.NDArray[np.float64]:
    """[memory]: 1 at the last `count` places."""
    chosen = np.zeros(memory)
    chosen[memory - count :] = 1
    return chosen


def _linear(graph: GraphBuilder, network: ForecastNetwork) -> Tensor:
    """The linear path's weights as a matrix [(1 + seasons) * targets, targets], the same for every target."""
    targets, kinds = len(network.targets), 1 + len(network.seasons)
    weights = graph.node("Reshape", graph.weight("linear"), graph.integers(kinds, 1, 1))
    each = graph.node("Mul", weights, graph.array(np.eye(targets, dtype=np.float32)))
    return graph.node("Reshape", each, graph.integers(kinds * targets, targets))
