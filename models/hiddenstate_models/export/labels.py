"""The served step of a network that labels text as a graph: embedding, cells, pooling, probabilities."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import LabelNetwork
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Operand, linear
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import Traversal


def label_graph(graph: GraphBuilder, network: LabelNetwork, traversal: Traversal) -> ModelProto:
    """The graph `tokens, states -> probabilities, next_states`.

    A row of states is the recurrent state and what pooling keeps of the outputs so far.
    """
    node = graph.node
    pools = network.pooling != "last"
    recurrent, *kept = graph.split("states", network.state_size, network.pool_size) if pools else ["states"]
    embedded = Operand(node("Gather", graph.weight("encoder.weight"), "tokens"))
    state = split_state(graph, network, recurrent)
    labelled, after = stack(graph, network, embedded, state, traversal)
    if pools:
        labelled, kept = _pooled(graph, network, labelled, kept, traversal)
    logits = linear(graph, Operand(labelled), "head.weight", graph.weight("head.bias"))
    graph.output("probabilities", node("Softmax", logits, axis=1))
    flat = [piece for layer in after for piece in layer]
    graph.output("next_states", node("Concat", *flat, *kept, axis=1))

    size = network.served_state_size
    return graph.model(
        {"tokens": (TensorProto.INT64, ["n"]), "states": (TensorProto.FLOAT, [traversal.rows, size])},
        {
            "probabilities": (TensorProto.FLOAT, ["n", network.labels]),
            "next_states": (TensorProto.FLOAT, [traversal.rows, size]),
        },
    )


def _pooled(
    graph: GraphBuilder, network: LabelNetwork, outputs: Tensor, kept: list[Tensor], traversal: Traversal
) -> tuple[Tensor, list[Tensor]]:
    """What is labelled, and what is kept for the next step: the maximum, or the sum and after it the number."""
    operator = "Max" if network.pooling == "max" else "Add"
    if network.pooling == "mean":
        outputs = graph.node("Pad", outputs, graph.integers(0, 0, 0, 1), graph.number(1.0))
    pooled, after = traversal.through(
        graph, lambda inputs, state: (graph.node(operator, *inputs, *state),), [outputs], kept
    )
    if network.pooling == "mean":
        total, count = graph.split(pooled, network.output_size, 1)
        pooled = graph.node("Div", total, count)
    return pooled, list(after)
