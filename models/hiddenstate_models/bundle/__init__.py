"""A bundle: a folder NAME/VERSION with everything needed to serve a trained network, checked when loaded.

    config.json         what the network is, how it was trained, its scores, and the hashes of the other files
    model.safetensors   the weights, once
    tokenizer.json      the vocabulary, for models that read words
    step.onnx           one served step of many sessions; its weights are read from model.safetensors
    sequence.onnx       many steps of one session, where the network's task has it
    *.int8.*            weights in 8 bits and graphs that read them, where exported
    card.md             for people: data, licence, scores beside baselines, the command that trained it

Neither torch nor onnx is needed to load one.
"""

from hiddenstate_models.bundle.config import (
    CARD_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    FORMAT,
    INT8_SEQUENCE_FILE,
    INT8_STEP_FILE,
    INT8_WEIGHTS_FILE,
    SEQUENCE_FILE,
    STEP_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    FileFacts,
    LabelSettings,
    Task,
    TextSettings,
    ValueSettings,
)
from hiddenstate_models.bundle.loading import Bundle, file_facts, shipped_bundles
from hiddenstate_models.bundle.shapes import (
    FEATURES,
    LOG_NORMALIZER_SIZE,
    SCALING_ROWS,
    CellShapes,
    ForecastNetwork,
    LabelNetwork,
    Network,
    NoteNetwork,
    SeriesShapes,
    Shape,
    ValueNetwork,
    WordNetwork,
    network_shapes,
)
from hiddenstate_models.bundle.weights import StoredTensor, read_header

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "CURVE_FILE",
    "FEATURES",
    "FORMAT",
    "INT8_SEQUENCE_FILE",
    "INT8_STEP_FILE",
    "INT8_WEIGHTS_FILE",
    "LOG_NORMALIZER_SIZE",
    "SCALING_ROWS",
    "SEQUENCE_FILE",
    "STEP_FILE",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "Bundle",
    "BundleConfig",
    "CellShapes",
    "FileFacts",
    "ForecastNetwork",
    "LabelNetwork",
    "LabelSettings",
    "Network",
    "NoteNetwork",
    "SeriesShapes",
    "Shape",
    "StoredTensor",
    "Task",
    "TextSettings",
    "ValueNetwork",
    "ValueSettings",
    "WordNetwork",
    "file_facts",
    "network_shapes",
    "read_header",
    "shipped_bundles",
]
