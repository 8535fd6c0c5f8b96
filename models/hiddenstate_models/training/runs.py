"""Finished and stopped runs as they lie in their folders, to be listed and compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hiddenstate_models.errors import DataError
from hiddenstate_models.training.checkpoint import load_progress
from hiddenstate_models.training.loop import Progress
from hiddenstate_models.training.run import CHECKPOINT, RunRecord, as_saved

State = Literal["finished", "stopped", "not begun"]


@dataclass(frozen=True)
class Run:
    """What a run was told and how far it came."""

    folder: Path
    record: RunRecord
    progress: Progress
    """Of the last checkpoint."""

    @property
    def state(self) -> State:
        """Stopped is what has a checkpoint and is not finished, whether or not it goes on at this moment."""
        if self.progress.finished:
            return "finished"
        return "stopped" if self.progress.update else "not begun"

    @property
    def network(self) -> str:
        """Cell and units, as far as the task's network has such."""
        network = self.record.network
        return f"{network.get('cell', '-')} {','.join(map(str, network.get('hidden_sizes', ())))}".strip()

    @property
    def best(self) -> dict[str, float]:
        """Validation scores of the best epoch; empty before there is one."""
        for entry in self.progress.history:
            if entry["epoch"] == self.progress.best_epoch:
                return {name: value for name, value in entry.items() if name not in ("epoch", "training_loss")}
        return {}

    @property
    def settings(self) -> dict[str, object]:
        """All that the run was told, by the name of its flag."""
        data = self.record.data
        files = {"data": data["training"], "valid": data["validation"]}
        return {"task": self.record.task, **files, **data["options"], **self.record.training}


def load_run(folder: Path) -> Run:
    """Reads a run's folder without its tensors.

    Raises:
        DataError: the folder holds no run, or a damaged one.
    """
    record = RunRecord.load(folder)
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        return Run(folder, record, Progress())
    return Run(folder, record, as_saved(Progress, load_progress(checkpoint), checkpoint, complete=True))


def find_runs(folder: Path) -> list[Run]:
    """All runs in a folder and the folders in it, by path.

    Raises:
        DataError: there are none, or one is damaged.
    """
    runs = [load_run(path.parent) for path in sorted(folder.rglob("run.json"))]
    if not runs:
        raise DataError(f"no run lies in {folder}; training makes some: hiddenstate-models train --help")
    return runs


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which the runs differ: each one's value, "-" where its task has no such setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [_short(run.settings.get(name, "-")) for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
