"""The served step of a next-word network as a graph: surprise, embedding, cells, vocabulary, exact top k."""

from onnx import ModelProto, TensorProto

from hiddenstate_models.bundle import LOG_NORMALIZER_SIZE, WordNetwork
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.int8 import Int8Screening
from hiddenstate_models.export.products import Operand, chosen_products, linear
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.traversal import Traversal

TOP_K_BLOCK = 40
"""Maxima of blocks of logits are cheap to find and few to sort; blocks of about sqrt(size / k) leave least of both."""

CANDIDATES = 2
"""Words that are looked at exactly, for each that is asked for."""


def word_graph(
    graph: GraphBuilder, network: WordNetwork, traversal: Traversal, screening: Int8Screening | None = None
) -> ModelProto:
    """The graph `tokens, states, k -> surprises, top_tokens, top_probabilities, next_states`.

    A row of states is the recurrent state, the stack's output where that does not hold it, and the log-normaliser
    of the logits predicted from it, so that the surprise of the next token takes one row of the output layer. With
    `screening`, float32 logits are computed of candidates alone.
    """
    head = _Head(graph, network, screening)
    sizes = network.state_size, network.kept_output_size, LOG_NORMALIZER_SIZE
    recurrent, kept, log_normalizer = graph.split("states", *sizes)
    state = split_state(graph, network, recurrent)
    embedded = Operand(graph.node("Gather", graph.weight("encoder.weight"), "tokens"))
    # What is rounded to 8 bits may fall to either side: a sequence that differs by 1e-7 would be seen to differ.
    output, after = stack(graph, network, embedded, state, traversal, as_steps=screening is not None)
    log_normalizers = head.predict(output)
    predicted_from = traversal.before(graph, state[-1][0] if network.holds_output else kept, output)
    graph.output("surprises", head.surprises(predicted_from, traversal.before(graph, log_normalizer, log_normalizers)))
    pieces = [piece for layer in after for piece in layer]
    if not network.holds_output:
        pieces.append(traversal.last(graph, output))
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

    def __init__(self, graph: GraphBuilder, network: WordNetwork, screening: Int8Screening | None) -> None:
        self._graph, self._network, self._screening = graph, network, screening
        self._matrix = "encoder.weight" if network.tied else "head.weight"

    def surprises(self, predicted_from: Tensor, log_normalizers: Tensor) -> Tensor:
        """Of what was observed [n], under predictions made from outputs [n, output] with log-normalisers [n, 1]."""
        graph, one = self._graph, self._graph.integers(1)
        logits = self._exact(predicted_from, graph.node("Unsqueeze", "tokens", one))
        return graph.node("Squeeze", graph.node("Sub", log_normalizers, logits), one)

    def predict(self, output: Tensor) -> Tensor:
        """Makes predictions from outputs [n, output] the graph's; returns their log-normalisers [n, 1]."""
        graph = self._graph
        best, tokens, log_normalizers = self._best(output) if self._screening is None else self._screened(output)
        graph.output("top_tokens", graph.node("Cast", tokens, to=TensorProto.INT32))
        graph.output("top_probabilities", graph.node("Exp", graph.node("Sub", best, log_normalizers)))
        return log_normalizers

    def _best(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest logits, their words, and the log-normalisers [n, 1] of all."""
        graph, size = self._graph, self._network.vocabulary_size
        logits = linear(graph, Operand(output), self._matrix, graph.weight("head.bias"))
        best, tokens = exact_top_k(graph, logits, size, "k")
        return best, tokens, _log_normalizer(graph, logits, best, tokens)

    def _screened(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, of the words that are likeliest by screening; the others' part in the normaliser is as screened."""
        graph, size = self._graph, self._network.vocabulary_size
        assert self._screening is not None
        logits = self._screening.linear(graph, output, self._matrix, graph.weight("head.bias"))
        count = graph.node("Mul", "k", graph.integers(CANDIDATES))
        screened, candidates = exact_top_k(graph, logits, size, count)
        screened_normalizer = _log_normalizer(graph, logits, screened, candidates)
        exact = self._exact(output, candidates)
        best, places = _top_k(graph, exact, graph.node("Min", "k", graph.integers(size)))
        # In shares of the screened sum: what was too much or too little of the candidates, + the whole.
        shares = [graph.node("Exp", graph.node("Sub", x, screened_normalizer)) for x in (exact, screened)]
        correction = graph.node("ReduceSum", graph.node("Sub", *shares), graph.integers(1))
        log_share = graph.node("Log", graph.node("Add", correction, graph.number(1.0)))
        tokens = graph.node("GatherElements", candidates, places, axis=1)
        return best, tokens, graph.node("Add", screened_normalizer, log_share)

    def _exact(self, output: Tensor, tokens: Tensor) -> Tensor:
        """Logits of tokens [n, m] in float32."""
        return chosen_products(self._graph, output, self._matrix, "head.bias", tokens)


def exact_top_k(graph: GraphBuilder, logits: Tensor, size: int, k: Tensor) -> tuple[Tensor, Tensor]:
    """The k [1] largest of logits [n, size] and their places, best first; all of them where k is larger than size.

    The k largest lie in the k blocks with the largest maxima, so only those are sorted.
    """
    blocks = -(-size // TOP_K_BLOCK)
    padding = blocks * TOP_K_BLOCK - size
    if padding:
        lowest = graph.number(float("-inf"))
        logits = graph.node("Pad", logits, graph.integers(0, 0, 0, padding), lowest)
    blocked = graph.node("Reshape", logits, graph.integers(-1, blocks, TOP_K_BLOCK))
    maxima = graph.node("ReduceMax", blocked, graph.integers(2), keepdims=0)
    _, chosen = _top_k(graph, maxima, graph.node("Min", k, graph.integers(blocks)))
    index = graph.node("Unsqueeze", chosen, graph.integers(2))
    candidates = graph.node("GatherND", blocked, index, batch_dims=1)
    candidates = graph.node("Reshape", candidates, graph.integers(0, -1))
    best, places = _top_k(graph, candidates, graph.node("Min", k, graph.integers(size)))
    # a place among the candidates -> its block among the chosen -> its place among all
    block_size = graph.integers(TOP_K_BLOCK)
    slot = graph.node("Div", places, block_size)
    shift = graph.node("Sub", graph.node("GatherElements", chosen, slot, axis=1), slot)
    return best, graph.node("Add", places, graph.node("Mul", shift, block_size))


def _top_k(graph: GraphBuilder, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest of x [n, size], largest first, and their places; k [1] is at most size."""
    largest, places = graph.nodes("TopK", [x, k], 2)
    return largest, places


def _log_normalizer(graph: GraphBuilder, logits: Tensor, best: Tensor, tokens: Tensor) -> Tensor:
    """logsumexp of logits [n, size] -> [n, 1]: the largest logit less its log-probability, since softmax is fused."""
    first = (graph.integers(0), graph.integers(1), graph.integers(1))
    largest = graph.node("Slice", best, *first)
    probabilities = graph.node("Softmax", logits, axis=1)
    probability = graph.node("GatherElements", probabilities, graph.node("Slice", tokens, *first), axis=1)
    return graph.node("Sub", largest, graph.node("Log", probability))
