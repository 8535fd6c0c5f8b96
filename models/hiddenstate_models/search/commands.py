"""What `hiddenstate-models search` does: trials, each an ordinary run, until there are enough of them."""

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hiddenstate_models.errors import ConfigurationError, TrainingError
from hiddenstate_models.search.space import Dimension, as_told, read_space
from hiddenstate_models.training import commands
from hiddenstate_models.training.bar import make_bar
from hiddenstate_models.training.checkpoint import has_checkpoint
from hiddenstate_models.training.loop import Progress, Update, decisive
from hiddenstate_models.training.recipe import Recipe, Settings, Told
from hiddenstate_models.training.report import clock
from hiddenstate_models.training.run import CHECKPOINT
from hiddenstate_models.training.runs import load_run
from hiddenstate_models.wording import counted

if TYPE_CHECKING:
    from optuna.trial import Trial

    from hiddenstate_models.search.study import Found, Pruning, Study


def search(
    recipe: Recipe[Settings],
    told: Told[Settings],
    folder: Path,
    space: Path | None,
    fixed: Iterable[str],
    *,
    trials: int,
    pruning: "Pruning",
) -> None:
    """Makes trials until there are `trials`, those of earlier calls included, and shows what they came to.

    A trial that cannot be trained is recorded as failed; Ctrl-C ends with what there is, and the trial under way goes
    on from its checkpoint the next time.

    Raises:
        ConfigurationError: Optuna is missing, several processes search, or the folder holds another search.
        DataError: the data cannot be used.
        TrainingError: no trial came to an end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError("a search runs in one process; train what it finds under torchrun")
    try:
        from hiddenstate_models.search import study as studies
    except ImportError as error:
        raise ConfigurationError("search needs Optuna: pip install 'hiddenstate[search]'") from error
    commands.require_data(told)
    dimensions = read_space(space, recipe, fixed)
    console = Console()
    with studies.opened(folder, recipe.task, told, dimensions, pruning) as study:
        found = study.found()
        console.print(_space_table(dimensions))
        console.print(
            f"{counted(trials, 'trial')}, {len(found)} of them there. Stopped, it goes on by the same command."
        )
        with _Display(console, trials) as display:
            try:
                while len(found) < trials:
                    display.begin(len(found))
                    found.append(_run(recipe, told, study, dimensions, display))
                    console.print(_line(found, trials), highlight=False, soft_wrap=True)
            except KeyboardInterrupt:
                console.print("Stopped. Go on by the same command.")
        _conclude(recipe, found, study, folder, console)


def _run(
    recipe: Recipe[Settings], told: Told[Settings], study: "Study", dimensions: Sequence[Dimension], display: "_Display"
) -> "Found":
    """The next trial.

    Raises:
        KeyboardInterrupt: a signal stopped it, perhaps between two updates.
    """
    trial, values = study.next()
    run = study.folder_of(trial.number)
    watcher = _Watcher(trial, display)
    resumed = has_checkpoint(run / CHECKPOINT)
    if not resumed:
        shutil.rmtree(run, ignore_errors=True)
    console = Console(quiet=True)
    try:
        if resumed:
            finished = commands.resume(
                recipe, run, watchers=(watcher,), console=console, should_stop=lambda: watcher.pruned
            )
        else:
            settings = as_told(told, recipe.group, dimensions, values)
            finished = commands.train(
                recipe, settings, run, watchers=(watcher,), console=console, should_stop=lambda: watcher.pruned
            )
    except (TrainingError, ConfigurationError) as error:
        return study.fail(trial, str(error))
    if finished:
        return study.finish(trial, load_run(run).progress.best_loss)
    if not watcher.pruned:
        raise KeyboardInterrupt
    return study.prune(trial)


class _Watcher:
    """Tells the study what every epoch came to, and hears from it whether to go on."""

    def __init__(self, trial: "Trial", display: "_Display") -> None:
        self._trial = trial
        self._display = display
        self.pruned = False

    def updated(self, update: Update, progress: Progress, /) -> None:
        """Shows how far the trial is."""
        self._display.show(f"trial {self._trial.number}, epoch {progress.epoch + 1}", update)

    def validated(self, progress: Progress, /) -> None:
        """Has the trial ended where others were better at its age."""
        self._trial.report(decisive(progress.history[-1]), progress.epoch)
        self.pruned = not progress.finished and self._trial.should_prune()


class _Display:
    """A bar on a terminal; elsewhere nothing."""

    def __init__(self, console: Console, trials: int) -> None:
        self._bar = make_bar(console, transient=True)
        self._task = self._bar.add_task("", total=trials, state="")

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def show(self, what: str, update: Update) -> None:
        self._bar.update(self._task, description=what, state=f"update {update.number:,}  loss {update.loss:.4g}")


def _space_table(dimensions: Sequence[Dimension]) -> Table:
    table = Table("searched for", "among", box=None, padding=(0, 2, 0, 0))
    for dimension in dimensions:
        table.add_row(f"[bold]{dimension.name}", str(dimension))
    return table


def _line(found: Sequence["Found"], trials: int) -> str:
    """The last one."""
    one = found[-1]
    best = one.state == "finished" and one == min(_finished(found), key=_score)
    came_to = one.reason if one.score is None else f"{one.score:.4g}{' (best so far)' if best else ''}"
    values = ", ".join(f"{name} {_short(value)}" for name, value in one.values.items())
    return f"{len(found)}/{trials}  trial {one.number} {one.state}: {came_to}; {values}"


def _conclude(recipe: Recipe[Any], found: Sequence["Found"], study: "Study", folder: Path, console: Console) -> None:
    if not found:
        return
    order = {"finished": 0, "pruned": 1, "failed": 2}
    ranked = sorted(found, key=lambda one: (order[one.state], _score(one), one.number))
    names = list(dict.fromkeys(name for one in found for name in one.values))
    table = Table("trial", "state", "validation", "epochs", "time", *names)
    for column in table.columns:
        column.justify = "left" if column.header == "state" else "right"
    for i, one in enumerate(ranked):
        run = load_run(study.folder_of(one.number)) if (study.folder_of(one.number) / "run.json").exists() else None
        table.add_row(
            str(one.number),
            one.state,
            "-" if one.score is None else f"{one.score:.4g}",
            str(run.progress.epoch) if run else "-",
            clock(run.progress.seconds) if run else "-",
            *(_short(one.values.get(name, "-")) for name in names),
            style="bold" if i == 0 and one.state == "finished" else "",
        )
    console.print(table)
    if not _finished(found):
        failed = [one for one in found if one.state == "failed"]
        if len(failed) == len(found):
            raise TrainingError(f"no trial could be trained; the last one: {failed[-1].reason}")
        return
    console.print(
        f"Best: trial {ranked[0].number}, whose run is {study.folder_of(ranked[0].number)}. Train with its settings:\n"
        f"  hiddenstate-models train {recipe.task} --config {study.best_file} --out runs/best\n"
        f"All runs: hiddenstate-models list {folder}",
        highlight=False,
        soft_wrap=True,
    )


def _finished(found: Sequence["Found"]) -> list["Found"]:
    return [one for one in found if one.state == "finished"]


def _score(one: "Found") -> float:
    return math.inf if one.score is None else one.score


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
