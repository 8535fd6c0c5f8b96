"""A run's progress on disk: tensors as safetensors, the rest as JSON, replaced atomically."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiddenstate_models.errors import DataError


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Averaged weights; empty where none are."""
    optimizer: dict[str, Any]
    """The optimizer's `state_dict()`."""
    state: Tensor
    """[lanes, state_size]: what the lanes carry into the next window."""
    progress: dict[str, Any]
    """JSON types: where the run is and what it has seen."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint in `folder`; an interruption leaves the old one or the new one, never a mixture."""
    tensors = {f"weights.{name}": tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in checkpoint.average.items()}
    tensors["state"] = checkpoint.state
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in checkpoint.optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    record = {
        "progress": checkpoint.progress,
        "optimizer": {"groups": checkpoint.optimizer["param_groups"], "scalars": scalars},
    }
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        fresh / "tensors.safetensors",
    )
    (fresh / "progress.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` has something to read."""
    return _whole(folder).exists()


def load_progress(folder: Path) -> dict[str, Any]:
    """Only where a run is, as `save_checkpoint` wrote it.

    Raises:
        DataError: there is no whole checkpoint in `folder`.
    """
    progress: dict[str, Any] = _read_record(_whole(folder))["progress"]
    return progress


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        DataError: there is no whole checkpoint in `folder`.
    """
    source = _whole(folder)
    record = _read_record(source)
    try:
        tensors = load_file(source / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"no checkpoint to resume from in {folder}: {error}") from error
    entries: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in record["optimizer"]["scalars"].items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, entry = rest.partition(".")
            entries.setdefault(int(index), {})[entry] = tensor

    if "state" not in tensors:
        raise _of_another_version(source)

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return Checkpoint(
        weights=under("weights."),
        average=under("average."),
        optimizer={"state": entries, "param_groups": record["optimizer"]["groups"]},
        state=tensors["state"],
        progress=record["progress"],
    )


def _whole(folder: Path) -> Path:
    """The checkpoint, or the one before it where a replacement was interrupted."""
    return folder if folder.exists() else folder.with_name(folder.name + ".old")


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"no checkpoint to resume from in {folder}: {error}") from error
    if not isinstance(record, dict) or not {"progress", "optimizer"} <= record.keys():
        raise _of_another_version(folder)
    return record


def _of_another_version(folder: Path) -> DataError:
    return DataError(
        f"{folder} is no checkpoint of this version of hiddenstate: begin anew, or go on with the other one"
    )
