"""The commands `hiddenstate-models experiments list`, `run` and `report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    help="Reproduce what makes gradients vanish or explode, and what helps: arms, seeds, curves, a table.",
)

Name = Annotated[str, typer.Argument(help="One of `experiments list`.")]
Data = Annotated[list[str], typer.Option(help="Files, globs or hf:NAME, for experiments that read some; repeatable.")]
Out = Annotated[Path, typer.Option(help="Folder of results; the experiment's are in OUT/NAME.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of every arm.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes that end in minutes; kept apart, in OUT/NAME-quick.")]


@app.command("list")
def list_() -> None:
    """Show the experiments there are and what each asks."""
    from hiddenstate_models.experiments import commands

    commands.list_experiments(Console())


@app.command()
def run(
    name: Name,
    data: Data = [],  # noqa: B006
    out: Out = Path("runs/experiments"),
    arms: Annotated[str, typer.Option(help="Run only arms whose name matches, such as 'T400-*'.")] = "*",
    seeds: Seeds = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 1,
    quick: Quick = False,
) -> None:
    """Run an experiment, or go on with it; then draw its curves and write its table and conclusion.

    Every arm and seed is saved when it is done. Whatever has a result is not run again.

    Example: hiddenstate-models experiments run adding --quick --jobs 2
    """
    from hiddenstate_models.experiments import commands

    commands.run(name, data, out, arms, seeds=seeds, jobs=jobs, quick=quick, console=Console())


@app.command()
def report(
    name: Name,
    data: Data = [],  # noqa: B006
    out: Out = Path("runs/experiments"),
    seeds: Seeds = 3,
    quick: Quick = False,
) -> None:
    """Draw curves and write table and conclusion from the results there are, while others are still to come.

    Example: hiddenstate-models experiments report adding
    """
    from hiddenstate_models.experiments import commands

    commands.show(name, data, out, seeds=seeds, quick=quick, console=Console())
