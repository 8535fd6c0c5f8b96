"""What a bundle can be exported from: a training run's folder, or another bundle."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hiddenstate_models.bundle import (
    CONFIG_FILE,
    CURVE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Bundle,
    LabelSettings,
    TextSettings,
    ValueSettings,
)
from hiddenstate_models.data import sources, text
from hiddenstate_models.data.labelled import TAGGED_WORD_PATTERN
from hiddenstate_models.errors import DataError
from hiddenstate_models.export.int8_loss import Probe
from hiddenstate_models.export.writing import BundleContents, write_bundle
from hiddenstate_models.labeller import Labeller

RUN_FILE = "run.json"
BEST_WEIGHTS_FILE = "best.safetensors"
SCORES_FILE = "scores.json"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export; what is None is taken from the source or its task."""

    name: str | None = None
    version: int | None = None
    """None: one more than the newest there is."""
    dtype: Literal["float16", "float32"] | None = None
    """None: float16 for words, whose weights are many, float32 for values."""
    int8: bool | None = None
    """None: for next-word models."""
    probe: Sequence[str] = ()
    """Files to read, as training data is named, when int8 is measured; else what the run was validated on."""
    data: Sequence[str] = ()
    """Lines for the card on where the data comes from and under which licence."""
    licence: str | None = None
    """Of the weights."""


def export_source(source: Path, models: Path, options: ExportOptions) -> Bundle:
    """Writes models/NAME/VERSION from a run's best weights or from another bundle.

    Raises:
        DataError: source is neither a run nor a bundle, or the run has finished no epoch.
        BundleError: see `write_bundle`.
    """
    if (source / RUN_FILE).exists():
        contents, probe = _from_run(source)
    elif (source / CONFIG_FILE).exists():
        contents, probe = _from_bundle(source)
    else:
        raise DataError(f"{source} is neither a training run ({RUN_FILE}) nor a bundle ({CONFIG_FILE})")
    name = options.name or contents.name
    training = dict(contents.training)
    if options.data:
        training["data"] = list(options.data)
    if options.licence:
        training["licence"] = options.licence
    contents = replace(contents, name=name, version=options.version or next_version(models / name), training=training)
    if options.probe:
        if contents.tokenizer is None:
            raise DataError("--probe is text, and this model reads none")
        probe = named_probe(contents.tokenizer, options.probe)
    is_text = contents.text is not None
    is_next_word = contents.network["task"] == "next-word"
    return write_bundle(
        models,
        contents,
        dtype=options.dtype or ("float16" if is_text else "float32"),
        int8=is_next_word if options.int8 is None else options.int8,
        probe=probe,
    )


def _from_run(folder: Path) -> tuple[BundleContents, Probe | None]:
    weights = folder / BEST_WEIGHTS_FILE
    if not weights.exists():
        raise DataError(f"{folder} has no best weights yet: no epoch was finished")
    record = json.loads((folder / RUN_FILE).read_text())
    network, data = record["network"], record["data"]
    scores = folder / SCORES_FILE
    contents = BundleContents(
        name=record["task"],
        version=1,
        network=network,
        weights=load_file(weights),
        scores=json.loads(scores.read_text()) if scores.exists() else {},
        training={
            "command": record["command"],
            "data": [Path(path).name for path in data["training"]],
            "options": record["training"],
        },
        learning_curve=_existing(folder / CURVE_FILE),
    )
    if record["task"] == "music":
        return contents, None
    if record["task"] in ("next-value", "forecasting"):
        columns = tuple(data.get("columns") or _column_names(network["columns"]))
        return replace(contents, values=ValueSettings(columns=columns, targets=tuple(network["targets"]))), None
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    if record["task"] in ("classification", "tagging"):
        return _labels(contents, record, tokenizer), None
    words = text.vocabulary(tokenizer)
    settings = TextSettings(
        lowercase=data["options"]["lowercase"],
        unknown_token=words.index(text.UNKNOWN),
        end_token=words.index(text.END),
        word_pattern=text.WORD_PATTERN,
    )
    contents = replace(contents, tokenizer=tokenizer.to_str(), text=settings)
    return contents, _validation_probe(tokenizer, data)


def _labels(contents: BundleContents, record: dict[str, Any], tokenizer: Tokenizer) -> BundleContents:
    """As it is served: what characters say of a word is a part of its embedding."""
    weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in contents.weights.items()}
    labeller = Labeller.of_run(record, tokenizer, weights)
    config, lexicon = labeller.network.config, labeller.lexicon
    if not config.streams:
        raise DataError(
            "this model reads whole sentences (--bidirectional or --crf) and cannot be served word by word; "
            "use it by `hiddenstate-models tag`, or train one without them"
        )
    settings = TextSettings(
        lowercase=lexicon.lowercase,
        unknown_token=lexicon.unknown,
        end_token=lexicon.end,
        word_pattern=TAGGED_WORD_PATTERN if record["task"] == "tagging" else text.WORD_PATTERN,
        spelling_suffixes=lexicon.suffixes,
    )
    return replace(
        contents,
        network=config.served(),
        weights={name: tensor.numpy() for name, tensor in labeller.network.served_weights().items()},
        tokenizer=tokenizer.to_str(),
        text=settings,
        labels=LabelSettings(names=labeller.names, look_ahead=labeller.look_ahead),
    )


def _from_bundle(folder: Path) -> tuple[BundleContents, Probe | None]:
    bundle = Bundle.load(folder)
    config = bundle.config
    tokenizer = folder / TOKENIZER_FILE
    scores = {split: rows for split, rows in config.scores.items() if split != "int8"}
    contents = BundleContents(
        name=config.name,
        version=config.version,
        network=config.network,
        weights=load_file(folder / WEIGHTS_FILE),
        tokenizer=tokenizer.read_text(encoding="utf-8") if config.text else None,
        text=config.text,
        values=config.values,
        labels=config.labels,
        scores=scores,
        training=config.training,
        learning_curve=_existing(folder / CURVE_FILE),
    )
    return contents, None


def _validation_probe(tokenizer: Tokenizer, data: dict[str, Any]) -> Probe | None:
    """The run's validation text, where it still lies where it lay."""
    found = [source for pattern in data["validation"] for source in _matches(pattern)]
    if not found:
        return None
    documents = text.read_documents(found, data["options"]["documents"])
    return Probe("validation text", _tokens(tokenizer, documents))


def named_probe(tokenizer: str, named: Sequence[str]) -> Probe:
    """What these name, as training data is named."""
    found = sources.expand(named)
    name = ", ".join(source.label for source in found)
    return Probe(name, _tokens(Tokenizer.from_str(tokenizer), text.read_documents(found)))


def _tokens(tokenizer: Tokenizer, documents: Iterable[list[str]]) -> npt.NDArray[np.int64]:
    return text.encode(tokenizer, documents).tokens.astype(np.int64)


def _matches(pattern: str) -> list[sources.Source]:
    if pattern == sources.STANDARD_INPUT:
        return []
    try:
        return sources.expand([pattern])
    except DataError:
        return []


def next_version(folder: Path) -> int:
    """One more than the newest version of a model in its folder; 1 for the first."""
    versions = [int(entry.name) for entry in folder.glob("*") if entry.name.isdigit()]
    return max(versions, default=0) + 1


def _column_names(columns: int) -> list[str]:
    return ["value"] if columns == 1 else [f"value-{i + 1}" for i in range(columns)]


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
