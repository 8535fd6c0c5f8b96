"""Bundles with random weights: the real thing in every way but what they predict. For tests and benchmarks."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from hiddenstate_models.bundle import Bundle, LabelSettings, Task, TextSettings, ValueSettings, network_shapes
from hiddenstate_models.data.text import END, UNKNOWN, WORD_PATTERN
from hiddenstate_models.export.writing import BundleContents, write_bundle


def random_bundle(
    models_folder: Path,
    task: Task,
    *,
    name: str | None = None,
    version: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    int8: bool = False,
    **network: Any,
) -> Bundle:
    """Writes models_folder/NAME/VERSION, a tiny network unless `network` overrides fields of its configuration.

    The name is the task unless given.
    """
    fields = _TINY[task] | {"task": task} | network
    rng = np.random.default_rng(seed)
    weights = {
        key: rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)
        for key, shape in network_shapes(fields).tensors().items()
    }
    if "encoder.units" in weights:  # of a fixed scaling: positive
        weights["encoder.units"] = np.exp(weights["encoder.units"])
    contents = BundleContents(name=name or task, version=version, network=fields, weights=weights, **_settings(fields))
    return write_bundle(models_folder, contents, dtype=dtype, int8=int8)


_TINY: dict[Task, dict[str, Any]] = {
    "next-word": {
        "cell": "lstm",
        "hidden_sizes": [8, 8],
        "projection": None,
        "dropout": 0.0,
        "vocabulary_size": 50,
        "embedding_size": 8,
        "tied": True,
    },
    "next-value": {
        "cell": "gru",
        "hidden_sizes": [8],
        "projection": None,
        "dropout": 0.0,
        "columns": 1,
        "targets": [0],
        "distribution": "student-t",
    },
    "forecasting": {
        "cell": "gru",
        "hidden_sizes": [8],
        "projection": None,
        "dropout": 0.0,
        "columns": 1,
        "targets": [0],
        "distribution": "student-t",
        "horizon": 6,
        "seasons": [4],
    },
    "classification": {
        "cell": "lstm",
        "hidden_sizes": [8],
        "projection": None,
        "dropout": 0.0,
        "vocabulary_size": 50,
        "embedding_size": 8,
        "labels": 2,
        "pooling": "max",
    },
    "tagging": {
        "cell": "lstm",
        "hidden_sizes": [8],
        "projection": None,
        "dropout": 0.0,
        "vocabulary_size": 50,
        "embedding_size": 8,
        "labels": 5,
        "pooling": "last",
    },
    "music": {
        "cell": "gru",
        "hidden_sizes": [8],
        "projection": None,
        "dropout": 0.0,
        "lowest": 21,
        "notes": 88,
    },
}


def _settings(network: dict[str, Any]) -> dict[str, Any]:
    if network["task"] == "music":
        return {}
    if network["task"] in ("next-value", "forecasting"):
        columns = tuple(f"column-{i}" for i in range(network["columns"]))
        return {"values": ValueSettings(columns=columns, targets=tuple(network["targets"]))}
    words = [UNKNOWN, END, "the", "a", ",", ".", "'s"]
    if network["task"] == "tagging":
        words += ["<Aa-on>", "<Aa>", "<0-0-0>"]
    words += [f"w{i}" for i in range(len(words), network["vocabulary_size"])]
    ids = {word: i for i, word in enumerate(words[: network["vocabulary_size"]])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if network["task"] != "tagging":
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), "removed", invert=True)
    text = TextSettings(
        lowercase=network["task"] != "tagging",
        unknown_token=0,
        end_token=1,
        word_pattern=WORD_PATTERN,
        spelling_suffixes=(2, 0) if network["task"] == "tagging" else (),
    )
    settings = {"tokenizer": tokenizer.to_str(), "text": text}
    if "labels" in network:
        names = tuple(f"label-{i}" for i in range(network["labels"]))
        settings["labels"] = LabelSettings(names=names, look_ahead=1 if network["task"] == "tagging" else 0)
    return settings
