"""The served step of a forecasting network as a graph: surprise, scaling, encoder, and the decoder unrolled.

As in `export.scaling`, what is not a state is turned: [..., n].
"""

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ForecastNetwork
from hiddenstate_models.export import scaling
from hiddenstate_models.export.distributions import infinite_like, read_head, surprises
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Operand
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import ONE_STEP
from hiddenstate_models.networks.scaling import LARGEST_RATIO


def forecast_step(graph: GraphBuilder, network: ForecastNetwork) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the encoder's state, the scaling's, the last moves of the targets, the oldest first, and what
    was predicted to be next, as in a next-value network's row.
    """
    node, targets, horizon, double = graph.node, len(network.targets), network.horizon, TensorProto.DOUBLE
    sizes = network.state_size, network.scaling_size, network.memory * targets, network.prediction_size
    recurrent, row, moves, remembered = graph.split("states", *sizes)
    before, _ = scaling.read_state(graph, network, row)
    remembered = node("Cast", node("Transpose", remembered), to=double)
    observed = node("Transpose", "values")
    scaled = scaling.scaled(graph, network, observed, before, ONE_STEP)
    parameters = graph.split(remembered, *[targets] * network.parameters, axis=0)
    chosen = scaling.chosen(graph, network, observed)
    graph.output("surprises", surprises(graph, targets, chosen, scaled.before, *parameters))

    units = _float(graph, scaled.units)
    moves = _moves_after(graph, network, moves, scaled, before.seen)
    deviations, ahead = _seasons(graph, network, moves, units)
    features = node("Concat", scaled.features, *(node("Asinh", deviation) for deviation in deviations), axis=0)
    state = split_state(graph, network, recurrent)
    _, after = stack(graph, network, Operand(features, turned=True), state, ONE_STEP)

    linear = _linear(graph, network)
    location = node("Mul", units, graph.number(0.0))
    state, steps = after, []
    for seasonal in ahead:
        inputs = node("Concat", location, *seasonal, axis=0)
        squashed = Operand(node("Asinh", inputs), turned=True)
        output, state = stack(graph, network, squashed, state, ONE_STEP, "decoder")
        residual, scale, *freedom = read_head(graph, network, output)
        location = node("Add", residual, node("MatMul", linear, inputs))
        steps.append((location, scale, *freedom))
        location = node("Clip", location, graph.number(-LARGEST_RATIO), graph.number(LARGEST_RATIO))

    shape = graph.integers(horizon, targets, -1)
    locations, scales, *freedoms = (
        node("Reshape", node("Concat", *field, axis=0), shape) for field in zip(*steps, strict=True)
    )
    offsets = node("Mul", scaled.units, node("Cast", locations, to=double))
    scales = node("Mul", node("Mul", scaled.units, node("Cast", scales, to=double)), scaled.known)
    # 0 / 0 is NaN, which says that nothing has been seen.
    anchors, shown = node("Div", scaled.values, scaled.known), node("Div", scales, scaled.known)
    turned = [2, 0, 1]
    graph.output("locations", node("Transpose", node("Add", anchors, offsets), perm=turned))
    scales_shown = node("Transpose", shown, perm=turned)
    graph.output("scales", scales_shown)
    freedom_shown = node("Transpose", freedoms[0], perm=turned) if freedoms else infinite_like(graph, scales_shown)
    graph.output("degrees_of_freedom", freedom_shown)

    fields = (_float(graph, offsets), _float(graph, scales), *freedoms)
    ahead_one = [graph.split(x, 1, horizon - 1, axis=0)[0] if horizon > 1 else x for x in fields]
    kept = [node("Squeeze", x, graph.integers(0)) for x in ahead_one]
    rows = node("Concat", *(_float(graph, piece) for piece in scaled.state), axis=0)
    pieces = [node("Transpose", rows), moves, node("Transpose", node("Concat", *kept, axis=0))]
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, *pieces, axis=1))

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


def _moves_after(
    graph: GraphBuilder, network: ForecastNetwork, moves: Tensor, scaled: scaling.Scaled, seen: Tensor
) -> Tensor:
    """The last moves [n, memory * targets] with this one: 0 if the value was missing or, with none `seen` before, the
    first.
    """
    node, targets = graph.node, len(network.targets)
    if not network.memory:
        return moves
    known = node("Min", scaling.chosen(graph, network, seen), graph.number(1.0, np.float64))
    move = node("Mul", node("Sub", scaled.values, scaled.before), known)
    _, kept = graph.split(moves, targets, (network.memory - 1) * targets)
    return node("Concat", kept, node("Transpose", _float(graph, move)), axis=1)


def _seasons(
    graph: GraphBuilder, network: ForecastNetwork, moves: Tensor, units: Tensor
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What the seasons say, in units: how far the value is from those a season before it; and by step of the forecast
    the values a season before that step, from the last one on. Each is float32 [seasons * targets, n], or left out.

    Both are sums of the last moves, so that one product with a constant matrix finds them all.
    """
    node, targets, seasons = graph.node, len(network.targets), len(network.seasons)
    if not seasons:
        return [], [[] for _ in range(network.horizon)]
    rows = [_last(network.memory, season) for season in network.seasons]
    rows += [-_last(network.memory, -step % season) for step in range(1, network.horizon + 1)
             for season in network.seasons]  # fmt: skip
    matrix = np.kron(np.stack(rows), np.eye(targets)).astype(np.float32)
    sums = node("Gemm", graph.array(matrix), moves, graph.number(0.0), transB=1)
    by_target = node("Reshape", sums, graph.integers(len(rows), targets, -1))
    ratios = node("Div", by_target, units)
    ratios = node("Clip", ratios, graph.number(-LARGEST_RATIO), graph.number(LARGEST_RATIO))
    flat = node("Reshape", ratios, graph.integers(len(rows) * targets, -1))
    deviations, *ahead = graph.split(flat, *[seasons * targets] * (1 + network.horizon), axis=0)
    return [deviations], [[each] for each in ahead]


def _last(memory: int, count: int) -> npt.NDArray[np.float64]:
    """[memory]: 1 at the last `count` places."""
    chosen = np.zeros(memory)
    chosen[memory - count :] = 1
    return chosen


def _linear(graph: GraphBuilder, network: ForecastNetwork) -> Tensor:
    """The linear path's weights as a matrix [targets, (1 + seasons) * targets], the same for every target."""
    targets, kinds = len(network.targets), 1 + len(network.seasons)
    weights = graph.node("Reshape", graph.weight("linear"), graph.integers(1, kinds, 1))
    each = graph.node("Mul", weights, graph.array(np.eye(targets, dtype=np.float32)[:, None]))
    return graph.node("Reshape", each, graph.integers(targets, kinds * targets))


def _float(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.FLOAT)
