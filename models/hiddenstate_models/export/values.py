"""The served step of a next-value network as a graph: surprise, scaling, cells, distribution."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import ValueNetwork
from hiddenstate_models.export import scaling
from hiddenstate_models.export.distributions import infinite_like, read_head, surprises
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.products import Operand
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import Traversal


def value_graph(graph: GraphBuilder, network: ValueNetwork, traversal: Traversal) -> ModelProto:
    """The graph `values, states -> surprises, locations, scales, degrees_of_freedom, next_states`.

    A row of states is the recurrent state, the scaling's state, and the last prediction, parameter by parameter:
    each target's location as an offset from the last value (so that small moves of large values stay visible),
    its scale and, for Student's t, its degrees of freedom. A scale of 0 says that there is no prediction yet.
    """
    node, targets, double = graph.node, len(network.targets), TensorProto.DOUBLE
    recurrent, row = graph.split("states", network.state_size, network.scaling_size + network.prediction_size)
    before, remembered = scaling.read_state(graph, network, row, *[targets] * network.parameters)
    observed = node("Transpose", "values")
    scale_values = scaling.scaled if network.scaling == "online" else scaling.fixed
    scaled = scale_values(graph, network, observed, before, traversal)

    features = Operand(scaled.features, turned=True)
    state = split_state(graph, network, recurrent)
    output, after = stack(graph, network, features, state, traversal)
    location, scale, *freedom = read_head(graph, network, output)
    offset = node("Mul", scaled.units, node("Cast", location, to=double))
    scale = node("Mul", node("Mul", scaled.units, node("Cast", scale, to=double)), scaled.known)
    # 0 / 0 is NaN, which says that nothing has been seen.
    anchors, shown = node("Div", scaled.values, scaled.known), node("Div", scale, scaled.known)
    if network.scaling == "fixed":
        means = node("Unsqueeze", graph.weight("encoder.means"), graph.integers(1))
        offset = node(
            "Add", offset, node("Sub", node("Cast", scaling.chosen(graph, network, means), to=double), scaled.values)
        )
    graph.output("locations", node("Transpose", node("Add", anchors, offset)))
    shown = node("Transpose", shown)
    graph.output("scales", shown)
    graph.output("degrees_of_freedom", node("Transpose", freedom[0]) if freedom else infinite_like(graph, shown))

    now = [offset, scale, *(node("Cast", x, to=double) for x in freedom)]
    then = [traversal.before(graph, first, x, -1) for first, x in zip(remembered, now, strict=True)]
    chosen = scaling.chosen(graph, network, observed)
    graph.output("surprises", surprises(graph, targets, chosen, scaled.before, *then))
    rows = node("Concat", *scaled.state, *(traversal.last(graph, x, -1) for x in now), axis=0)
    kept = node("Transpose", node("Cast", rows, to=TensorProto.FLOAT))
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, kept, axis=1))

    size, n = network.served_state_size, traversal.rows
    return graph.model(
        {"values": (double, ["n", network.columns]), "states": (TensorProto.FLOAT, [n, size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "locations": (double, ["n", targets]),
            "scales": (double, ["n", targets]),
            "degrees_of_freedom": (TensorProto.FLOAT, ["n", targets]),
            "next_states": (TensorProto.FLOAT, [n, size]),
        },
    )
