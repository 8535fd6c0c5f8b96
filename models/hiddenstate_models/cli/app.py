"""The `hiddenstate-models` command: train, search, evaluate, export, inspect."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from hiddenstate_models.cli import experiments
from hiddenstate_models.cli.bundles import export, inspect
from hiddenstate_models.cli.gradients import gradients
from hiddenstate_models.cli.importing import import_
from hiddenstate_models.cli.runs import compare, list_runs
from hiddenstate_models.cli.search import add_search_command
from hiddenstate_models.cli.training import add_train_command
from hiddenstate_models.errors import ModelError
from hiddenstate_models.training.recipes import RECIPES

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train recurrent models and make them into bundles that hiddenstate-server serves.",
)
train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a model: a run folder with checkpoints, learning curve and best weights.",
)
search_app = typer.Typer(
    no_args_is_help=True,
    help="Search for the settings with which training does best, trial by trial.",
)
app.add_typer(train_app, name="train")
app.add_typer(search_app, name="search")
app.add_typer(experiments.app, name="experiments")

for recipe in RECIPES.values():
    add_train_command(train_app, recipe)
    add_search_command(search_app, recipe)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="Folder of a training run (its best weights), or a bundle.")],
    data: Annotated[
        list[str],
        typer.Option(help="Data to evaluate on, as in training; repeatable. A run's default: what it validates on."),
    ] = [],  # noqa: B006
    baseline_data: Annotated[
        list[str], typer.Option(help="The same for baselines that learn. A run's default: its training data.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Print a model's scores beside its baselines.

    Next word: an interpolated Kneser-Ney 5-gram over the same vocabulary. Next value and forecasting: persistence and
    seasonal naive. Music: how often each note sounds, and sounds on. Classification: logistic regression on a bag of
    words, and the most frequent label. Tagging: every word's most frequent tag.
    A run's scores are kept in it for the card of its bundle.

    Example: hiddenstate-models evaluate runs/books --data tests/book.txt
    """
    from hiddenstate_models.evaluation import commands

    commands.evaluate(source, data, baseline_data, as_json=as_json)


@app.command()
def tag(
    source: Annotated[Path, typer.Argument(help="Folder of a training run (its best weights), or a bundle.")],
    data: Annotated[
        Path | None, typer.Option(help="Text with a sentence a line; standard input if left out.", show_default=False)
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="The input has a word a line and blank lines between sentences (CoNLL).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if left out.")] = None,
) -> None:
    """Tag the words of sentences: any tagging model, those too that read backwards and cannot be served.

    Writes a word and its tag a line, a blank line after every sentence.

    Example: echo 'Peter Blackburn flew to Brussels.' | hiddenstate-models tag runs/names
    """
    from contextlib import ExitStack

    from hiddenstate_models.evaluation import tagging

    with ExitStack() as files:
        lines = sys.stdin if data is None else files.enter_context(data.open(encoding="utf-8"))
        target = sys.stdout if out is None else files.enter_context(out.open("w", encoding="utf-8"))
        tagging.tag(source, lines, target, columns=columns)


app.command()(gradients)
app.command()(export)
app.command("import")(import_)
app.command()(inspect)
app.command("list")(list_runs)
app.command()(compare)


def main() -> None:
    """Entry point: errors made on purpose become one sentence and exit code 1."""
    try:
        app()
    except ModelError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
