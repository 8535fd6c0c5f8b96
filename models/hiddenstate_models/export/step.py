"""The served step of any network as an ONNX model, and a sequence of them."""

from collections.abc import Mapping

from onnx import ModelProto

from hiddenstate_models.bundle import Network, NoteNetwork, StoredTensor, WordNetwork
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.music import note_step
from hiddenstate_models.export.products import Float32Products, Limits, Products
from hiddenstate_models.export.values import value_run, value_step
from hiddenstate_models.export.words import word_run, word_step

_FLOAT32 = Float32Products()
_UNLIMITED = Limits()


def step_model(
    tensors: Mapping[str, StoredTensor],
    network: Network,
    products: Products = _FLOAT32,
    limits: Limits = _UNLIMITED,
) -> ModelProto:
    """The graph of one step of many sessions."""
    graph = GraphBuilder(tensors)
    if isinstance(network, WordNetwork):
        return word_step(graph, network, products, limits)
    if isinstance(network, NoteNetwork):
        return note_step(graph, network, products)
    return value_step(graph, network, products)


def sequence_model(
    tensors: Mapping[str, StoredTensor],
    network: WordNetwork | ValueNetwork,
    products: Products = _FLOAT32,
    limits: Limits = _UNLIMITED,
) -> ModelProto:
    """The graph of many steps of one session, each after the other; of the step's signature but for its one state."""
    graph = GraphBuilder(tensors)
    if isinstance(network, WordNetwork):
        return word_run(graph, network, products, limits)
    return value_run(graph, network, products)
