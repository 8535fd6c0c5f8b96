"""The served step of a music network as a graph: surprise, cells, the probability of every note."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import NoteNetwork
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.products import Operand, linear
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import Traversal


def note_graph(graph: GraphBuilder, network: NoteNetwork, traversal: Traversal) -> ModelProto:
    """The graph `values, states -> surprises, probabilities, next_states`; values are frames of 0 and 1.

    A row of states is the recurrent state and the logits of the next frame.
    """
    node = graph.node
    recurrent, predicted = graph.split("states", network.state_size, network.notes)
    frames = node("Cast", "values", to=TensorProto.FLOAT)
    state = split_state(graph, network, recurrent)
    output, after = stack(graph, network, Operand(frames), state, traversal)
    logits = linear(graph, Operand(output), "head.weight", graph.weight("head.bias"))
    graph.output("probabilities", node("Sigmoid", logits))
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, traversal.last(graph, logits), axis=1))
    # -log p of each note under its logit: softplus(logit) if it is silent, less the logit if it sounds
    predicted = traversal.before(graph, predicted, logits)
    losses = node("Sub", node("Softplus", predicted), node("Mul", frames, predicted))
    graph.output("surprises", node("ReduceSum", losses, graph.integers(1), keepdims=0))

    size = network.served_state_size
    return graph.model(
        {"values": (TensorProto.DOUBLE, ["n", network.notes]), "states": (TensorProto.FLOAT, [traversal.rows, size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "probabilities": (TensorProto.FLOAT, ["n", network.notes]),
            "next_states": (TensorProto.FLOAT, [traversal.rows, size]),
        },
    )
