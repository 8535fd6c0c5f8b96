"""What can be evaluated: a run's best weights, or a bundle."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hiddenstate_models.bundle import TOKENIZER_FILE, WEIGHTS_FILE, Bundle
from hiddenstate_models.errors import DataError
from hiddenstate_models.export.sources import BEST_WEIGHTS_FILE, RUN_FILE
from hiddenstate_models.labeller import Labeller
from hiddenstate_models.training.run import RunRecord

LABEL_TASKS = ("classification", "tagging")


def load_weights(source: Path) -> dict[str, torch.Tensor]:
    """In float32."""
    path = source / BEST_WEIGHTS_FILE
    tensors = load_file(path if path.exists() else source / WEIGHTS_FILE)
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}


def load_labeller(source: Path) -> Labeller:
    """A run's or a bundle's network with its words and labels.

    Raises:
        DataError: it labels nothing.
    """
    if (source / RUN_FILE).exists():
        record = RunRecord.load(source)
        if record.task in LABEL_TASKS:
            tokenizer = Tokenizer.from_file(str(source / TOKENIZER_FILE))
            return Labeller.of_run(asdict(record), tokenizer, load_weights(source))
        task = record.task
    else:
        bundle = Bundle.load(source)
        if bundle.config.labels is not None:
            return Labeller.of_bundle(bundle, load_weights(source))
        task = bundle.config.task
    raise DataError(f"{source} holds a {task} model, which labels nothing")
