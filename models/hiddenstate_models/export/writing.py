"""Writes a bundle's folder, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from hiddenstate_models import bundle as layout
from hiddenstate_models.bundle import Bundle, LabelSettings, TextSettings, ValueSettings, WordNetwork
from hiddenstate_models.errors import BundleError
from hiddenstate_models.export.card import card
from hiddenstate_models.export.int8_loss import Probe, add_int8_step
from hiddenstate_models.export.step import sequence_model, step_model

DTYPES: dict[str, type[np.floating[Any]]] = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What goes into a bundle."""

    name: str
    version: int
    network: Mapping[str, Any]
    """The network's configuration as JSON types."""
    weights: Mapping[str, npt.NDArray[np.floating[Any]]]
    """The network's weights by their names in its state_dict."""
    tokenizer: str | None = None
    """tokenizer.json of a model that reads words."""
    text: TextSettings | None = None
    values: ValueSettings | None = None
    labels: LabelSettings | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Split -> model or baseline -> metric -> number."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """JSON types; the card shows `data` (lines on the data), `licence` and `command`."""
    learning_curve: Path | None = None


def write_bundle(
    models: Path,
    contents: BundleContents,
    *,
    dtype: str = "float32",
    int8: bool = False,
    probe: Probe | None = None,
) -> Bundle:
    """Writes models/NAME/VERSION and loads it, which checks it.

    The folder appears under its name only when it is complete. int8 adds a step in 8 bits, and what it costs
    to the scores: measured on `probe`, or on text that the model generates.

    Raises:
        BundleError: this version exists already, the contents do not fit each other, or int8 is asked of another
            than a next-word model, whose products are too small to gain from it.
    """
    if int8 and contents.network["task"] != "next-word":
        raise BundleError("int8 is for next-word models; others are so small that it makes them no faster")
    folder = models / contents.name / str(contents.version)
    if folder.exists():
        raise BundleError(f"{folder} exists; choose another version, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{contents.version}-", dir=folder.parent))
    try:
        _write_files(draft, contents, dtype, int8, probe)
        Bundle.load(draft)
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Bundle.load(folder)


def _write_files(
    folder: Path,
    contents: BundleContents,
    dtype: str,
    int8: bool,
    probe: Probe | None,
) -> None:
    weights = {name: np.ascontiguousarray(array, DTYPES[dtype]) for name, array in contents.weights.items()}
    save_file(weights, folder / layout.WEIGHTS_FILE)
    (folder / layout.WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it to its owner; servers run as someone else
    if contents.tokenizer is not None:
        (folder / layout.TOKENIZER_FILE).write_text(contents.tokenizer, encoding="utf-8")
    if contents.learning_curve is not None:
        shutil.copyfile(contents.learning_curve, folder / layout.CURVE_FILE)
    network = layout.network_shapes(contents.network)
    tensors = layout.read_header(folder / layout.WEIGHTS_FILE)
    for name, model_of in ((layout.STEP_FILE, step_model), (layout.SEQUENCE_FILE, sequence_model)):
        model = model_of(tensors, network)
        if model is not None:
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))

    config: dict[str, Any] = {
        "format": layout.FORMAT,
        "name": contents.name,
        "version": contents.version,
        "task": network.task,
        "network": dict(contents.network),
        "state_size": network.served_state_size,
        "parameters": sum(array.size for array in weights.values()),
        "scores": {split: dict(rows) for split, rows in contents.scores.items()},
        "training": dict(contents.training),
    }
    for key, settings in (("text", contents.text), ("values", contents.values), ("labels", contents.labels)):
        if settings is not None:
            config[key] = settings.model_dump(mode="json")
    if int8 and isinstance(network, WordNetwork) and contents.text is not None:
        config["scores"]["int8"] = add_int8_step(folder, network, contents.network, contents.text, probe).to_dict()
    (folder / layout.CARD_FILE).write_text(card(config, network), encoding="utf-8")
    config["files"] = {path.name: layout.file_facts(path).model_dump(mode="json") for path in sorted(folder.iterdir())}
    (folder / layout.CONFIG_FILE).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
