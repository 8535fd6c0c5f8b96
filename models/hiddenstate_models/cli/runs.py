"""The commands `hiddenstate-models list` and `hiddenstate-models compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hiddenstate_models.training.report import clock
from hiddenstate_models.training.runs import Run, differences, find_runs, load_run


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder to look through.")] = Path("runs"),
) -> None:
    """Show the training runs in a folder, the folders in it too.

    Example: hiddenstate-models list runs
    """
    table = Table(
        "run", "task", "network", "parameters", "epochs", "best loss", "time", "state", box=None, padding=(0, 2, 0, 0)
    )
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column.header in ("parameters", "epochs", "best loss", "time") else "left"
    for run in find_runs(folder):
        table.add_row(
            str(run.folder.relative_to(folder)),
            run.record.task,
            run.network,
            f"{run.record.parameters:,}",
            f"{run.progress.epoch}/{run.record.training['epochs']}",
            f"{run.best['loss']:.4g}" if run.best else "-",
            clock(run.progress.seconds),
            f"[green]{run.state}" if run.state == "finished" else run.state,
        )
    Console().print(table)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the runs' learning curves into this PNG or SVG.")] = None,
) -> None:
    """Show side by side in which settings runs differ, and what came of it.

    Example: hiddenstate-models compare runs/lstm runs/gru --plot curves.png
    """
    runs = [load_run(folder) for folder in folders]
    table = Table("", *(str(folder) for folder in folders))
    for name, values in differences(runs).items():
        table.add_row(name, *values)
    table.add_section()
    table.add_row("parameters", *(f"{run.record.parameters:,}" for run in runs))
    table.add_row("state", *(run.state for run in runs))
    table.add_row("epochs, best one", *(f"{run.progress.epoch}, {run.progress.best_epoch + 1}" for run in runs))
    table.add_row("time", *(clock(run.progress.seconds) for run in runs))
    table.add_section()
    for name in dict.fromkeys(name for run in runs for name in run.best):
        table.add_row(f"validation {name}", *_marked([run.best.get(name) for run in runs], name == "loss"))
    console = Console()
    console.print(table)
    if plot is not None:
        _draw(runs, plot)
        console.print(f"Curves: {plot}")


def _marked(values: Sequence[float | None], lower_is_better: bool) -> list[str]:
    """As text, the lowest in bold where that is the best."""
    best = min((value for value in values if value is not None), default=None) if lower_is_better else None
    return ["-" if value is None else f"[bold]{value:.4g}" if value == best else f"{value:.4g}" for value in values]


def _draw(runs: Sequence[Run], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(runs):
        epochs = [int(entry["epoch"]) + 1 for entry in run.progress.history]
        losses = [[entry[name] for entry in run.progress.history] for name in ("loss", "training_loss")]
        axes.plot(epochs, losses[0], "o-", color=f"C{i}", markersize=4, label=str(run.folder))
        axes.plot(epochs, losses[1], ":", color=f"C{i}", linewidth=1)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats): validation, dotted training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
