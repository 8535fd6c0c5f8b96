"""`make torture`: every scenario in its long form, with random seeds unless told.

`python -m tests.torture kill-behind rolling-restart --count 50 --seed 7` repeats two of them.
"""

import asyncio
import secrets
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.torture.clients import Load
from tests.torture.reference import lone_models
from tests.torture.scenarios import SCENARIOS, Outcome, Plan

from hiddenstate_models.bundle import shipped_bundles

WORST = 1.0
MEDIAN = 0.5


def main(
    scenarios: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SCENARIOS)}; all unless told.")] = None,
    count: Annotated[int, typer.Option(help="Kills, cuts or restarts in a row.", min=1)] = 50,
    seed: Annotated[int | None, typer.Option(help="Repeats a run; random unless told.")] = None,
    sessions: Annotated[int, typer.Option(help="Sessions that stream at a time.", min=1)] = 60,
    clients: Annotated[int, typer.Option(help="Clients that hold them, each with one stream.", min=1)] = 4,
    pace: Annotated[float, typer.Option(help="Longest rest of a session between two calls, in seconds.")] = 0.1,
    models: Annotated[Path | None, typer.Option(help="Folder of bundles instead of the shipped ones.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for stores and logs, kept; a temporary one else.")] = None,
) -> None:
    """Kills servers, stores and connections under load, and compares every session with an undisturbed one."""
    console = Console()
    chosen = scenarios or list(SCENARIOS)
    unknown = set(chosen) - set(SCENARIOS)
    if unknown:
        raise typer.BadParameter(f"there is no scenario {', '.join(sorted(unknown))}")
    seed = secrets.randbelow(2**31) if seed is None else seed
    console.print(f"seed {seed}")
    bundles = models or shipped_bundles()
    failed = []
    table = Table("scenario", "disturbances", "sessions", "observations", "answers lost", "pause median s", "longest s")
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as scratch, Progress(*columns, console=console) as progress:
        for name in chosen:
            task = progress.add_task(name, total=count)
            folder = (out or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            plan = Plan(
                folder=folder,
                models=bundles,
                lone=lone_models(bundles),
                seed=seed,
                count=count,
                load=Load(sessions, clients=clients, pace=pace),
                progress=lambda done, task=task: progress.update(task, completed=done),  # type: ignore[misc]
            )
            try:
                table.add_row(name, *figures(asyncio.run(SCENARIOS[name](plan))))
            except Exception:
                failed.append(name)
                console.print(f"[red]{name} failed; repeat it with: {name} --count {count} --seed {seed}")
                console.print(traceback.format_exc(), markup=False, highlight=False)
    console.print(table)
    if failed:
        raise typer.Exit(1)
    console.print("Every session was where an undisturbed one would be.")


def figures(outcome: Outcome) -> list[str]:
    """A row of the table."""
    counts = (outcome.disturbances, outcome.sessions, outcome.observations, outcome.answers_lost)
    return [*(f"{count:,}" for count in counts), f"{outcome.pause(MEDIAN):.2f}", f"{outcome.pause(WORST):.2f}"]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
