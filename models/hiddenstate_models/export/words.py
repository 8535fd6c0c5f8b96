"""The served step of a next-word network as a graph: surprise, embedding, cells, vocabulary, exact top k."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import LOG_NORMALIZER_SIZE, WordNetwork
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import Traversal

# Maxima of blocks of logits are cheap to find and few to sort.
TOP_K_BLOCK = 100


def word_graph(
    graph: GraphBuilder, network: WordNetwork, products: Products, limits: Limits, traversal: Traversal
) -> ModelProto:
    """The graph `tokens, states, k -> surprises, top_tokens, top_probabilities, next_states`.

    A row of states is the recurrent state, the stack's output where that does not hold it, and the log-normaliser
    of the logits predicted from it, so that the surprise of the next token takes one row of the output layer. limits
    bound what int8 products multiply.
    """
    head = _Head(graph, network, products, limits)
    sizes = network.state_size, network.kept_output_size, LOG_NORMALIZER_SIZE
    recurrent, kept, log_normalizer = graph.split("states", *sizes)
    state = split_state(graph, network, recurrent)
    embedded = Operand(graph.node("Gather", graph.weight("encoder.weight"), "tokens"), limits.input)
    output, after = stack(graph, network, products, embedded, state, limits, traversal)
    log_normalizers = head.predict(output)
    predicted_from = traversal.before(graph, state[-1][0] if network.holds_output else kept, output.tensor)
    graph.output("surprises", head.surprises(predicted_from, traversal.before(graph, log_normalizer, log_normalizers)))
    pieces = [piece for layer in after for piece in layer]
    if not network.holds_output:
        pieces.append(traversal.last(graph, output.tensor))
    graph.output("next_states", graph.node("Concat", *pieces, traversal.last(graph, log_normalizers), axis=1))

    size = network.served_state_size
    return graph.model(
        {
            "tokens": (TensorProto.INT64, ["n"]),
            "states": (TensorProto.FLOAT, [traversal.rows, size]),
            "k": (TensorProto.INT64, [1]),
        },
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "top_tokens": (TensorProto.INT32, ["n", "top"]),
            "top_probabilities": (TensorProto.FLOAT, ["n", "top"]),
            "next_states": (TensorProto.FLOAT, [traversal.rows, size]),
        },
    )


class _Head:
    """The output layer, whose input is the last layer's output."""

    def __init__(self, graph: GraphBuilder, network: WordNetwork, products: Products, limits: Limits) -> None:
        self._graph, self._network, self._products = graph, network, products
        self._matrix = "encoder.weight" if network.tied else "head.weight"
        self._limit = limits.output(network)

    def surprises(self, predicted_from: Tensor, log_normalizers: Tensor) -> Tensor:
        """Of what was observed [n], under predictions made from outputs [n, output] with log-normalisers [n, 1]."""
        graph = self._graph
        operand = Operand(predicted_from, self._limit)
        product = self._products.row_products(graph, operand, self._matrix, "tokens")
        logit = graph.node("Add", product, graph.node("Gather", graph.weight("head.bias"), "tokens"))
        return graph.node("Sub", graph.node("Squeeze", log_normalizers, graph.integers(1)), logit)

    def predict(self, output: Operand) -> Tensor:
        """Makes predictions from outputs [n, output] the graph's; returns their log-normalisers [n, 1]."""
        graph = self._graph
        logits = self._products.linear(graph, output, self._matrix, graph.weight("head.bias"))
        best, tokens = exact_top_k(graph, logits, self._network.vocabulary_size)
        log_normalizers = _log_normalizer(graph, logits, best, tokens)
        graph.output("top_tokens", graph.node("Cast", tokens, to=TensorProto.INT32))
        graph.output("top_probabilities", graph.node("Exp", graph.node("Sub", best, log_normalizers)))
        return log_normalizers


def exact_top_k(graph: GraphBuilder, logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The k largest of logits [n, size] and their places, best first; all of them where k is larger than size.

    The k largest lie in the k blocks with the largest maxima, so only those are sorted.
    """
    blocks = -(-size // TOP_K_BLOCK)
    padding = blocks * TOP_K_BLOCK - size
    if padding:
        lowest = graph.number(float("-inf"))
        logits = graph.node("Pad", logits, graph.integers(0, 0, 0, padding), lowest)
    blocked = graph.node("Reshape", logits, graph.integers(-1, blocks, TOP_K_BLOCK))
    maxima = graph.node("ReduceMax", blocked, graph.integers(2), keepdims=0)
    _, chosen = graph.nodes("TopK", [maxima, graph.node("Min", "k", graph.integers(blocks))], 2)
    index = graph.node("Unsqueeze", chosen, graph.integers(2))
    candidates = graph.node("GatherND", blocked, index, batch_dims=1)
    candidates = graph.node("Reshape", candidates, graph.integers(0, -1))
    best, places = graph.nodes("TopK", [candidates, graph.node("Min", "k", graph.integers(size))], 2)
    # a place among the candidates -> its block among the chosen -> its place among all
    block_size = graph.integers(TOP_K_BLOCK)
    slot = graph.node("Div", places, block_size)
    shift = graph.node("Sub", graph.node("GatherElements", chosen, slot, axis=1), slot)
    return best, graph.node("Add", places, graph.node("Mul", shift, block_size))


def _log_normalizer(graph: GraphBuilder, logits: Tensor, best: Tensor, tokens: Tensor) -> Tensor:
    """logsumexp of logits [n, size] -> [n, 1]: the largest logit less its log-probability, since softmax is fused."""
    first = (graph.integers(0), graph.integers(1), graph.integers(1))
    largest = graph.node("Slice", best, *first)
    probabilities = graph.node("Softmax", logits, axis=1)
    probability = graph.node("GatherElements", probabilities, graph.node("Slice", tokens, *first), axis=1)
    return graph.node("Sub", largest, graph.node("Log", probability))
