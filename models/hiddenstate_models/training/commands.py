"""What the train commands do: prepare the task, train, and say what to do next."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.training import run
from hiddenstate_models.training.configuration import CONFIGURATION_FILE, write_configuration
from hiddenstate_models.training.loop import Watcher
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Settings, Told
from hiddenstate_models.training.report import summary_table


def train(
    recipe: Recipe[Settings],
    told: Told[Settings],
    folder: Path,
    *,
    max_updates: int | None = None,
    watchers: Sequence[Watcher] = (),
) -> bool:
    """Trains in `folder`; True when finished, False when stopped half-way with a checkpoint to resume from.

    Raises:
        ConfigurationError: the folder holds a run already, or settings do not go together.
        DataError: the data cannot be used.
        TrainingError: see `Trainer.fit`.
    """
    if (folder / "run.json").exists():
        raise ConfigurationError(f"{folder} holds a run already: go on with it by --resume, or choose another --out")
    if not told.data:
        raise ConfigurationError("nothing to learn from: name files with --data")
    return _fit(recipe, told, folder, resume=False, max_updates=max_updates, watchers=watchers)


def resume(recipe: Recipe[Settings], folder: Path, *, max_updates: int | None = None) -> bool:
    """Goes on with the run in `folder` as it was told when it started; otherwise as `train`."""
    record = run.RunRecord.load(folder)
    if record.task != recipe.task:
        raise ConfigurationError(f"{folder} holds a {record.task} run: resume it by `train {record.task}`")
    read = record.data
    settings = cast(Any, recipe.settings)(**read["options"])
    told = Told(read["training"], read["validation"], settings, TrainingOptions(**record.training))
    return _fit(recipe, told, folder, resume=True, max_updates=max_updates, watchers=())


def _fit(
    recipe: Recipe[Settings],
    told: Told[Settings],
    folder: Path,
    *,
    resume: bool,
    max_updates: int | None,
    watchers: Sequence[Watcher],
) -> bool:
    fabric = run.make_fabric(told.training)
    torch.manual_seed(told.training.seed)
    prepared = recipe.prepare(told, folder if resume else None)
    if fabric.global_rank == 0 and not resume:
        options = asdict(cast(Any, told.settings))
        read = {"training": told.data, "validation": told.valid, "options": options, **prepared.read}
        record = run.RunRecord(recipe.task, dict(prepared.config), asdict(told.training), read, run.command_line())
        record.save(folder)
        write_configuration(folder / CONFIGURATION_FILE, recipe, told)
        for name, content in prepared.files.items():
            (folder / name).write_text(content, encoding="utf-8")
    console = Console(quiet=fabric.global_rank != 0)
    parameters = sum(parameter.numel() for parameter in prepared.network.parameters())
    device = f"{fabric.device}, {told.training.precision}"
    console.print(summary_table({**prepared.facts, "parameters": parameters, "device": device}))
    finished = run.train(
        folder,
        prepared.network,
        prepared.task,
        told.training,
        fabric=fabric,
        console=console,
        resume=resume,
        unit=recipe.unit,
        max_updates=max_updates,
        watchers=watchers,
    )
    if finished:
        console.print(f"Done. Learning curve: {folder}/learning-curve.png. Next: hiddenstate-models export {folder}")
    else:
        console.print(f"Stopped and saved. Go on with: --out {folder} --resume")
    return finished
