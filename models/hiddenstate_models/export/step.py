"""The served step of any network as an ONNX model, and a sequence of them."""

from collections.abc import Mapping

from onnx import ModelProto

from hiddenstate_models.bundle import (
    ForecastNetwork,
    LabelNetwork,
    Network,
    NoteNetwork,
    StoredTensor,
    ValueNetwork,
    WordNetwork,
)
from hiddenstate_models.export.forecasting import forecast_step
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.int8 import Int8Screening
from hiddenstate_models.export.labels import label_graph
from hiddenstate_models.export.music import note_graph
from hiddenstate_models.export.traversal import MANY_STEPS, ONE_STEP, Traversal
from hiddenstate_models.export.values import value_graph
from hiddenstate_models.export.words import word_graph


def step_model(
    tensors: Mapping[str, StoredTensor], network: Network, screening: Int8Screening | None = None
) -> ModelProto:
    """The graph of one step of many sessions; `screening` is for next-word networks."""
    if isinstance(network, ForecastNetwork):
        return forecast_step(GraphBuilder(tensors), network)
    return _graph(tensors, network, screening, ONE_STEP)


def sequence_model(
    tensors: Mapping[str, StoredTensor], network: Network, screening: Int8Screening | None = None
) -> ModelProto | None:
    """The graph of many steps of one session, each after the other; of the step's signature but for its one state.

    None for forecasting, whose decoder is most of a step.
    """
    if isinstance(network, ForecastNetwork):
        return None
    return _graph(tensors, network, screening, MANY_STEPS)


def _graph(
    tensors: Mapping[str, StoredTensor],
    network: WordNetwork | ValueNetwork | NoteNetwork | LabelNetwork,
    screening: Int8Screening | None,
    traversal: Traversal,
) -> ModelProto:
    graph = GraphBuilder(tensors)
    if isinstance(network, WordNetwork):
        return word_graph(graph, network, traversal, screening)
    if isinstance(network, ValueNetwork):
        return value_graph(graph, network, traversal)
    if isinstance(network, LabelNetwork):
        return label_graph(graph, network, traversal)
    return note_graph(graph, network, traversal)
