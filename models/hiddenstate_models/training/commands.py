"""What the train commands do: prepare the task, train, and say what to do next."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from rich.console import Console

from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.training import run
from hiddenstate_models.training.checkpoint import has_checkpoint
from hiddenstate_models.training.configuration import CONFIGURATION_FILE, write_configuration
from hiddenstate_models.training.dry_run import measure
from hiddenstate_models.training.failures import memory_explained
from hiddenstate_models.training.gradients import save_gradients
from hiddenstate_models.training.loop import Watcher
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.processes import make_fabric, restarts
from hiddenstate_models.training.recipe import Prepared, Recipe, Settings, Told
from hiddenstate_models.training.report import summary_table

CHANGEABLE = (
    "epochs",
    "learning_rate",
    "schedule",
    "decay",
    "decay_after",
    "warmup",
    "clip_norm",
    "clip_value",
    "clip_adaptive",
    "gradient_regulariser",
    "patience",
    "precision",
    "accelerator",
    "checkpoint_minutes",
)
"""Options that a run may be given anew when it is resumed: nothing that it carries depends on them."""


def train(
    recipe: Recipe[Settings],
    told: Told[Settings],
    folder: Path,
    *,
    max_updates: int | None = None,
    watchers: Sequence[Watcher] = (),
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> bool:
    """Trains in `folder`; True when finished, False when stopped half-way with a checkpoint to resume from.

    It stops where a signal or `should_stop` asks for it, and tells what it does on `console`. A process that torchrun
    has started again goes on from the run's last checkpoint.

    Raises:
        ConfigurationError: the folder holds a run already, or settings do not go together.
        DataError: the data cannot be used.
        TrainingError: see `Trainer.fit`.
    """
    begun = (folder / "run.json").exists()
    # By the workers that were here before, not by somebody else.
    again = begun and restarts() > 0 and run.RunRecord.load(folder).command == run.command_line()
    if again and has_checkpoint(folder / run.CHECKPOINT):
        return resume(
            recipe, folder, max_updates=max_updates, watchers=watchers, should_stop=should_stop, console=console
        )
    if begun and not again:
        raise ConfigurationError(f"{folder} holds a run already: go on with it by --resume, or choose another --out")
    require_data(told)
    return _fit(
        recipe,
        told,
        folder,
        resumed=None,
        max_updates=max_updates,
        watchers=watchers,
        should_stop=should_stop,
        console=console,
    )


def resume(
    recipe: Recipe[Settings],
    folder: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    max_updates: int | None = None,
    watchers: Sequence[Watcher] = (),
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> bool:
    """Goes on with the run in `folder` as it was told when it started, but for `changes` of CHANGEABLE options.

    Raises:
        ConfigurationError: the folder holds another task's run, or an option cannot be changed on the way.
        DataError: there is no run, or its data or vocabulary are not what they were.
    """
    record = run.RunRecord.load(folder)
    if record.task != recipe.task:
        raise ConfigurationError(f"{folder} holds a {record.task} run: resume it by `train {record.task}`")
    fixed = [name for name in changes or () if name not in CHANGEABLE]
    if fixed:
        raise ConfigurationError(
            f"a run that is resumed keeps its {', '.join(fixed)}; what can be changed is {', '.join(CHANGEABLE)}"
        )
    record = replace(record, training={**record.training, **(changes or {})})
    read = record.data
    settings = run.as_saved(recipe.settings, read["options"], folder)
    training = run.as_saved(TrainingOptions, record.training, folder)
    told = Told(read["training"], read["validation"], settings, training)
    return _fit(
        recipe,
        told,
        folder,
        resumed=record,
        max_updates=max_updates,
        watchers=watchers,
        should_stop=should_stop,
        console=console,
    )


def dry_run(recipe: Recipe[Settings], told: Told[Settings]) -> None:
    """Says what a run would learn from, and what memory and time it would take, and writes nothing."""
    require_data(told)
    fabric = make_fabric(told.training)
    prepared = _prepare(recipe, told, None)
    console = Console(quiet=fabric.global_rank != 0)
    console.print(summary_table(_facts(prepared, told.training, fabric)))
    with memory_explained(lambda: "in the first updates", told.training):
        console.print(summary_table(measure(prepared, told.training, fabric, console, recipe.unit)))


def require_data(told: Told[Any]) -> None:
    """Raises ConfigurationError where no data is named."""
    if not told.data:
        raise ConfigurationError("nothing to learn from: name files with --data")


def _prepare(recipe: Recipe[Settings], told: Told[Settings], resumed: Path | None) -> Prepared:
    torch.manual_seed(told.training.seed)
    with memory_explained(lambda: "while the data was read and the network built", told.training):
        return recipe.prepare(told, resumed)


def _facts(prepared: Prepared, options: TrainingOptions, fabric: Fabric) -> dict[str, object]:
    device = f"{fabric.device}, {options.precision}"
    return {**prepared.facts, "parameters": prepared.parameters, "device": device}


def _require_the_same(record: run.RunRecord, prepared: Prepared, folder: Path) -> None:
    """Refuses to go on with other data or another vocabulary than the run began with."""
    for kind, then, now in (
        ("network", record.network, prepared.config),
        ("data", record.facts, prepared.facts),
    ):
        for name, value in then.items():
            found = json.loads(json.dumps(now.get(name)))
            if found != value:
                raise DataError(
                    f"{folder} cannot be resumed: its {kind} would not be the same, {name} was {value} and is {found} "
                    f"now. Put back the files that the run began with, or begin anew by --config {folder}/config.toml."
                )


def _fit(
    recipe: Recipe[Settings],
    told: Told[Settings],
    folder: Path,
    *,
    resumed: run.RunRecord | None,
    max_updates: int | None,
    watchers: Sequence[Watcher],
    should_stop: Callable[[], bool],
    console: Console | None,
) -> bool:
    fabric = make_fabric(told.training)
    prepared = _prepare(recipe, told, folder if resumed else None)
    options = asdict(cast(Any, told.settings))
    read = {"training": told.data, "validation": told.valid, "options": options, **prepared.read}
    record = resumed or run.RunRecord(
        task=recipe.task,
        network=dict(prepared.config),
        training=asdict(told.training),
        data=read,
        command=run.command_line(),
        facts=dict(prepared.facts),
        parameters=prepared.parameters,
    )
    if resumed is not None:
        _require_the_same(resumed, prepared, folder)
    if fabric.global_rank == 0:
        record.save(folder)
        write_configuration(folder / CONFIGURATION_FILE, recipe, told)
        for name, content in prepared.files.items():
            (folder / name).write_text(content, encoding="utf-8")
    console = console or Console(quiet=fabric.global_rank != 0)
    console.print(summary_table(_facts(prepared, told.training, fabric)))
    finished = run.train(
        folder,
        prepared.network,
        prepared.task,
        told.training,
        fabric=fabric,
        console=console,
        resume=resumed is not None,
        unit=recipe.unit,
        max_updates=max_updates,
        watchers=watchers,
        should_stop=should_stop,
    )
    if finished:
        if fabric.global_rank == 0:
            _save_gradients(folder, prepared, told, console)
        console.print(f"Done. Learning curve: {folder}/learning-curve.png. Next: hiddenstate-models export {folder}")
    else:
        console.print(f"Stopped and saved. Go on with: --out {folder} --resume")
    return finished


def _save_gradients(folder: Path, prepared: Prepared, told: Told[Any], console: Console) -> None:
    try:
        found = save_gradients(folder, prepared.network, prepared.task, prepared.config, told)
    except DataError as error:
        console.print(f"No picture of the gradients: {error}")
    else:
        console.print(f"{found.verdict.headline} More: hiddenstate-models gradients {folder}", highlight=False)
