"""What the experiments commands do: run what is missing, and report what there is."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.experiments import report
from hiddenstate_models.experiments.catalog import EXPERIMENTS
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Result
from hiddenstate_models.experiments.results import Results
from hiddenstate_models.experiments.runner import Run, missing, run_all
from hiddenstate_models.experiments.wording import figures
from hiddenstate_models.training.bar import make_bar
from hiddenstate_models.wording import counted


def list_experiments(console: Console) -> None:
    """Names, questions, and what --data must name."""
    table = Table("name", "question", "--data", box=None, padding=(0, 2, 1, 0))
    for experiment in EXPERIMENTS.values():
        table.add_row(f"[bold]{experiment.name}", experiment.question, experiment.needs or "-")
    console.print(table)


def run(
    name: str, data: Sequence[str], out: Path, chosen: str, *, seeds: int, jobs: int, quick: bool, console: Console
) -> None:
    """Runs the arms that match `chosen` for every seed that has no result yet, then reports all there is."""
    experiment, arms, folder = _find(name, data, out, quick=quick)
    wanted = [arm for arm in arms if fnmatchcase(arm.name, chosen)]
    if not wanted:
        raise ConfigurationError(f"no arm matches {chosen!r}; there are {', '.join(arm.name for arm in arms)}")
    results = Results(folder)
    report.save_settings(experiment, arms, folder)
    runs = missing(results, wanted, seeds)
    console.print(
        f"{experiment.title}: {counted(len(wanted), 'arm')} with {counted(seeds, 'seed')}; "
        f"{counted(len(wanted) * seeds - len(runs), 'result')} there, {len(runs)} to come. "
        "Stopped, it goes on by the same command.",
        soft_wrap=True,
    )
    with _Bars(console) as bars:
        for number, result in enumerate(run_all(experiment, results, runs, jobs=jobs, watch=bars.show), start=1):
            bars.finished(result)
            console.print(f"{number}/{len(runs)}  {_line(experiment, result)}", highlight=False, soft_wrap=True)
    _report(experiment, arms, results, seeds, console)


def show(name: str, data: Sequence[str], out: Path, *, seeds: int, quick: bool, console: Console) -> None:
    """Reports what there is of an experiment, without running anything."""
    experiment, arms, folder = _find(name, data, out, quick=quick)
    _report(experiment, arms, Results(folder), seeds, console)


def _find(name: str, data: Sequence[str], out: Path, *, quick: bool) -> tuple[Experiment, list[Arm], Path]:
    if name not in EXPERIMENTS:
        raise ConfigurationError(f"no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    return experiment, experiment.arms(data, quick=quick), out / (f"{name}-quick" if quick else name)


def _report(experiment: Experiment, arms: Sequence[Arm], results: Results, seeds: int, console: Console) -> None:
    groups = [results.group(arm, seeds) for arm in arms]
    found: list[Group] = [group for group in groups if group.results]
    if not found:
        console.print(
            f"No results in {results.folder} yet. Make some: hiddenstate-models experiments run {experiment.name}"
        )
        return
    report.write(experiment, groups, seeds, results.folder)
    head, *rows = report.table(experiment, found, seeds)
    table = Table(*head, title=experiment.title, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentences in (experiment.conclude(found), report.not_run(groups)):
        if sentences:
            console.print(sentences, highlight=False, soft_wrap=True)
    console.print(
        f"Curves: {results.folder / report.PLOT_FILE}. Report: {results.folder / report.REPORT_FILE}", soft_wrap=True
    )


def _line(experiment: Experiment, result: Result) -> str:
    outcome = result.outcome
    score = outcome.scores.get(experiment.score)
    reached = f", {experiment.unit} {figures(score)}" if score is not None else ""
    return (
        f"{result.arm}, seed {result.seed}: {outcome.ended} after {outcome.updates:,} updates{reached} "
        f"({result.seconds:.0f} s)"
    )


class _Bars:
    """A bar for every run under way on a terminal; elsewhere nothing."""

    def __init__(self, console: Console) -> None:
        self._progress = make_bar(console, transient=True)
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, run: Run, done: float, state: str) -> None:
        arm, seed = run
        if (arm.name, seed) not in self._tasks:
            self._tasks[arm.name, seed] = self._progress.add_task(f"{arm.name}, seed {seed}", total=1.0, state="")
        self._progress.update(self._tasks[arm.name, seed], completed=done, state=state)

    def finished(self, result: Result) -> None:
        task = self._tasks.pop((result.arm, result.seed), None)
        if task is not None:
            self._progress.remove_task(task)
