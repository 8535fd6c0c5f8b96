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
from hiddenstate_models.bundle import Bundle, TextSettings, ValueSettings
from hiddenstate_models.errors import BundleError
from hiddenstate_models.export.step import step_model

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
    """tokenizer.json of a word model."""
    text: TextSettings | None = None
    values: ValueSettings | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_curve: Path | None = None


def write_bundle(models: Path, contents: BundleContents, *, dtype: str = "float32") -> Bundle:
    """Writes models/NAME/VERSION and loads it, which checks it.

    The folder appears under its name only when it is complete.

    Raises:
        BundleError: this version exists already, or the contents do not fit each other.
    """
    folder = models / contents.name / str(contents.version)
    if folder.exists():
        raise BundleError(f"{folder} exists; choose another version, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{contents.version}-", dir=folder.parent))
    try:
        _write_files(draft, contents, dtype)
        Bundle.load(draft)
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Bundle.load(folder)


def _write_files(folder: Path, contents: BundleContents, dtype: str) -> None:
    weights = {name: np.ascontiguousarray(array, DTYPES[dtype]) for name, array in contents.weights.items()}
    save_file(weights, folder / layout.WEIGHTS_FILE)
    if contents.tokenizer is not None:
        (folder / layout.TOKENIZER_FILE).write_text(contents.tokenizer, encoding="utf-8")
    if contents.learning_curve is not None:
        shutil.copyfile(contents.learning_curve, folder / layout.CURVE_FILE)
    shapes = layout.network_shapes(contents.network)
    model = step_model(layout.read_header(folder / layout.WEIGHTS_FILE), shapes)
    (folder / layout.STEP_FILE).write_bytes(model.SerializeToString(deterministic=True))
    config = {
        "format": layout.FORMAT,
        "name": contents.name,
        "version": contents.version,
        "task": contents.network["task"],
        "network": dict(contents.network),
        "state_size": shapes.served_state_size,
        "parameters": sum(array.size for array in weights.values()),
        "scores": dict(contents.scores),
        "training": dict(contents.training),
    }
    for key, settings in (("text", contents.text), ("values", contents.values)):
        if settings is not None:
            config[key] = settings.model_dump(mode="json")
    config["files"] = {
        path.name: layout.file_facts(path).model_dump(mode="json") for path in sorted(folder.iterdir())
    }
    (folder / layout.CONFIG_FILE).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
