"""The `hiddenstate-models` command: train, evaluate, export, inspect."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hiddenstate_models.cli.bundles import export, inspect
from hiddenstate_models.cli.options import with_options
from hiddenstate_models.errors import ModelError
from hiddenstate_models.training.music import MusicOptions
from hiddenstate_models.training.next_value import NextValueOptions
from hiddenstate_models.training.next_word import NextWordOptions
from hiddenstate_models.training.options import TrainingOptions

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train recurrent models and make them into bundles that hiddenstate-server serves.",
)
train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a model: a run folder with checkpoints, learning curve and best weights.",
)
app.add_typer(train_app, name="train")

Out = Annotated[Path, typer.Option(help="Run folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, told what it was told when it started.")
]


@train_app.command("next-word")
@with_options(words=NextWordOptions, training=TrainingOptions)
def train_next_word(
    *,
    data: Annotated[list[str], typer.Option(help="Text files or globs to learn from; repeatable.")] = [],  # noqa: B006
    valid: Annotated[list[str], typer.Option(help="Text to validate on; without it, every twentieth document.")] = [],  # noqa: B006
    out: Out = Path("runs/next-word"),
    resume: Resume = False,
    words: NextWordOptions,
    training: TrainingOptions,
) -> None:
    """Train a next-word model on text.

    Example: hiddenstate-models train next-word --data 'books/*.txt' --out runs/books --output sampled
    """
    from hiddenstate_models.training import commands

    commands.train_next_word(data, valid, out, resume, words, training)


@train_app.command("next-value")
@with_options(values=NextValueOptions, training=TrainingOptions)
def train_next_value(
    *,
    data: Annotated[
        list[str], typer.Option(help="CSV, Parquet or text files or globs to learn from; repeatable.")
    ] = [],  # noqa: B006
    valid: Annotated[
        list[str], typer.Option(help="Files to validate on, never learnt from; without it, the end of every series.")
    ] = [],  # noqa: B006
    out: Out = Path("runs/next-value"),
    resume: Resume = False,
    values: NextValueOptions,
    training: TrainingOptions,
) -> None:
    """Train a next-value model on series.

    Example: hiddenstate-models train next-value --data 'sensors/*.csv' --valid sensors/roof.csv --out runs/sensors
    """
    from hiddenstate_models.training import commands

    commands.train_next_value(data, valid, out, resume, values, training)


@train_app.command("music")
@with_options(music=MusicOptions, training=TrainingOptions)
def train_music(
    *,
    data: Annotated[
        list[str],
        typer.Option(help="MIDI files or piano rolls (.mat with traindata and validdata) to learn from; repeatable."),
    ] = [],  # noqa: B006
    valid: Annotated[
        list[str],
        typer.Option(help="Files to validate on; without it, the validdata of .mat files, of others every 20th piece."),
    ] = [],  # noqa: B006
    out: Out = Path("runs/music"),
    resume: Resume = False,
    music: MusicOptions,
    training: TrainingOptions,
) -> None:
    """Train a music model on piano rolls or MIDI files.

    Example: hiddenstate-models train music --data 'tunes/*.mid' --transpose 5 --out runs/tunes
    """
    from hiddenstate_models.training import commands

    commands.train_music(data, valid, out, resume, music, training)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="Folder of a training run (its best weights), or a bundle.")],
    data: Annotated[
        list[str], typer.Option(help="Files to evaluate on; repeatable. A run's default: its validation data.")
    ] = [],  # noqa: B006
    baseline_data: Annotated[
        list[str], typer.Option(help="Files for baselines that learn. A run's default: its training data.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Print a model's scores beside its baselines.

    Next word: an interpolated Kneser-Ney 5-gram over the same vocabulary. Next value: persistence and seasonal naive.
    Music: how often each note sounds, and sounds on.
    A run's scores are kept in it for the card of its bundle.

    Example: hiddenstate-models evaluate runs/books --data tests/book.txt
    """
    from hiddenstate_models.evaluation import commands

    commands.evaluate(source, data, baseline_data, as_json=as_json)


app.command()(export)
app.command()(inspect)


def main() -> None:
    """Entry point: errors made on purpose become one sentence and exit code 1."""
    try:
        app()
    except ModelError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
