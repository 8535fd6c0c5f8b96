"""The served step of a music network as a graph: surprise, cells, the probability of every note."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import NoteNetwork
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.recurrent import split_state, stack_step


def note_step(graph: GraphBuilder, network: NoteNetwork, products: Products) -> ModelProto:
    """The graph `values, states -> surprises, probabilities, next_states`; values are frames of 0 and 1.

    A row of states is the recurrent state and the logits of the next frame.
    """
    node = graph.node
    recurrent, predicted = graph.split("states", network.state_size, network.notes)
    frames = node("Cast", "values", to=TensorProto.FLOAT)
    # -log p of each note under its logit: softplus(logit) if it is silent, less the logit if it sounds
    losses = node("Sub", node("Softplus", predicted), node("Mul", frames, predicted))
    graph.output("surprises", node("ReduceSum", losses, graph.integers(1), keepdims=0))

    state = split_state(graph, network, recurrent)
    output, after = stack_step(graph, network, products, Operand(frames, 1.0), state, Limits())
    logits = products.linear(graph, output, "head.weight", graph.weight("head.bias"))
    graph.output("probabilities", node("Sigmoid", logits))
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, logits, axis=1))

    size = network.served_state_size
    return graph.model(
        {"values": (TensorProto.DOUBLE, ["n", network.notes]), "states": (TensorProto.FLOAT, ["n", size])},
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "probabilities": (TensorProto.FLOAT, ["n", network.notes]),
            "next_states": (TensorProto.FLOAT, ["n", size]),
        },
    )
