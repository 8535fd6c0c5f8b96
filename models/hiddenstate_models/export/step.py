"""The served step of any network as an ONNX model."""

from collections.abc import Mapping

from onnx import ModelProto

from hiddenstate_models.bundle import StoredTensor, WordNetwork
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.products import Float32Products, Limits, Products
from hiddenstate_models.export.words import word_step


def step_model(
    tensors: Mapping[str, StoredTensor],
    network: WordNetwork,
    products: Products | None = None,
    limits: Limits = Limits(),
) -> ModelProto:
    """The graph of one step over the weights in model.safetensors; in float32 unless other products are given."""
    return word_step(GraphBuilder(tensors), network, products or Float32Products(), limits)
