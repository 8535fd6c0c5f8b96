"""The commands and their options."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from hiddenstate.aio import DEFAULT_SERVER
from hiddenstate.cli.console import DEFAULT_TIMEOUT, Access, Json, Server, Tenant, Timeout, Token, fail, plain_errors
from hiddenstate.cli.sessions import sessions

app = typer.Typer(
    name="hiddenstate",
    help="Predict what comes next, from models that a hiddenstate server keeps running.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.add_typer(sessions, name="sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hiddenstate {version('hiddenstate')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("type")
def type_words(
    model: Annotated[str, typer.Option(help="A next-word model.")] = "next-word",
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Predict the next word of what you type.

    In a terminal the likely next words are shown as you type, Tab takes the
    first, and Ctrl-G lets the model finish the sentence. Other input is read
    line by line: every word is printed with its surprise (in nats) and the
    words expected after it.

    [bold]Example[/bold]  echo "the cat sat on the" | hiddenstate type
    """
    from hiddenstate.cli import type as typing

    access = Access(server, timeout, token, tenant)
    with plain_errors():
        if sys.stdin.isatty() and sys.stdout.isatty():
            typing.interactive(access, model)
        else:
            typing.plain(access, model, sys.stdin)


@app.command()
def watch(
    file: Annotated[
        Path | None, typer.Argument(help="CSV or plain numbers; standard input if left out.", show_default=False)
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", "-c", help="A column by name, or by number from 1; may be repeated.", show_default=False
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A next-value model.")] = "next-value",
    level: Annotated[float, typer.Option(min=0.01, max=0.9999, help="Probability of the interval shown.")] = 0.9,
    anomaly: Annotated[
        float,
        typer.Option(min=0.5, max=0.999999999, help="A value outside the interval of this probability is an anomaly."),
    ] = 0.999,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw everything into this file (.png, .svg, .pdf).", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Predict the next value of a series and mark what is unusual.

    Every value is printed with what was expected, the interval it was expected
    in, its surprise (in nats), and what is expected next. A header is
    recognised, empty cells are missing values. Lines are taken as they arrive.

    [bold]Examples[/bold]

    seq 100 | hiddenstate watch

    tail -f sensor.csv | hiddenstate watch --column temperature --plot sensor.png
    """
    from hiddenstate.cli.watch import watch as run

    with plain_errors():
        run(Access(server, timeout, token, tenant), model, file, column or [], level, anomaly, plot)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="What the text begins with; nothing: a new one.")] = "",
    words: Annotated[int, typer.Option(min=1, help="How many to add, at most.")] = 50,
    model: Annotated[str, typer.Option(help="A next-word model.")] = "next-word",
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Below 1 it keeps to what is likely, above it dares more.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Only the most probable so many words.", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Only the most probable that make this probability.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Number that makes the same text again.", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Go on with a text, word by word, up to the end of a document.

    [bold]Example[/bold]  hiddenstate generate "the cat sat on" --words 20 --seed 1
    """
    from hiddenstate.cli.generate import generate as run

    with plain_errors():
        access = Access(server, timeout, token, tenant)
        run(access, model, text, words=words, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)


@app.command()
def compose(
    out: Annotated[Path, typer.Option(help="MIDI file to write.")] = Path("tune.mid"),
    seconds: Annotated[float, typer.Option(min=0.1, help="How much to compose.")] = 30.0,
    seed_from: Annotated[
        Path | None, typer.Option(help="MIDI file whose beginning the piece begins with.", show_default=False)
    ] = None,
    seed_seconds: Annotated[float, typer.Option(min=0.1, help="How much of it.")] = 8.0,
    model: Annotated[str, typer.Option(help="A music model.")] = "music",
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Below 1 it keeps to what is likely, above it dares more.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Number that makes the same piece again.", show_default=False)
    ] = None,
    tempo: Annotated[float, typer.Option(min=10.0, max=500.0, help="Quarter notes a minute.")] = 120.0,
    frames_per_beat: Annotated[
        int, typer.Option(min=1, max=96, help="Frames in a quarter note, as the model was trained.")
    ] = 2,
    roll: Annotated[
        Path | None, typer.Option(help="Draw the piano roll into this file (.png, .svg, .pdf).", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Compose a piece, frame by frame, as a MIDI file.

    [bold]Example[/bold]  hiddenstate compose --seed-from reel.mid --out tune.mid --roll tune.png
    """
    with plain_errors():
        try:
            from hiddenstate.cli import compose as composing
        except ImportError as error:
            raise fail(f"composing needs {error.name}: pip install 'hiddenstate[music]'") from None
        composing.compose(
            Access(server, timeout, token, tenant),
            model,
            out,
            seconds=seconds,
            begun=composing.Begun(seed_from, seed_seconds) if seed_from else None,
            tempo=composing.Tempo(tempo, frames_per_beat),
            temperature=temperature,
            seed=seed,
            roll=roll,
        )


@app.command()
def label(
    model: Annotated[str, typer.Option(help="A model of labels.")],
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Label lines of text: each as a whole, word by word, or every word of it.

    A model that classifies says after every word what it takes the line for so
    far; the verdict is at its end. A model that tags says what every word is.

    [bold]Example[/bold]  echo "a fine film, if a little long" | hiddenstate label --model sentiment
    """
    from hiddenstate.cli.label import label as run

    with plain_errors():
        run(Access(server, timeout, token, tenant), model, sys.stdin)


@app.command()
def models(
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """List the models being served.

    [bold]Example[/bold]  hiddenstate models --json | jq '.[].name'
    """
    from hiddenstate.cli.tables import show_models

    with plain_errors():
        show_models(Access(server, timeout, token, tenant), json)


def main() -> None:
    """Runs the command line."""
    app()
