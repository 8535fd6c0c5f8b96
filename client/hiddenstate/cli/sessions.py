"""`hiddenstate sessions`: the sessions of all clients."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

from hiddenstate import Client, LabelPrediction, NotePrediction, Prediction, WordPrediction
from hiddenstate.aio import DEFAULT_SERVER
from hiddenstate.cli.console import (
    DEFAULT_TIMEOUT,
    Access,
    Json,
    Server,
    Tenant,
    Timeout,
    Token,
    err,
    expected_words,
    fail,
    note_names,
    out,
    plain_errors,
    until_interrupted,
)


class _ListedByDefault(TyperGroup):
    """Without a command, sessions are listed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_MOST_SHOWN = 8  # of the numbers of one prediction

sessions = typer.Typer(cls=_ListedByDefault, help="List, copy, save, follow and end sessions.", rich_markup_mode="rich")

_SPANS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found:
        raise typer.BadParameter("a time is a number of seconds, or as in 90s, 10m, 2h, 1d")
    return float(found[1]) * _SPANS[found[2]]


def _pairs(labels: list[str] | None) -> dict[str, str]:
    pairs = {}
    for label in labels or ():
        key, equals, value = label.partition("=")
        if not equals:
            raise typer.BadParameter(f"a label is KEY=VALUE, not {label}", param_hint="--label")
        pairs[key] = value
    return pairs


Id = Annotated[str, typer.Argument(help="A session's id.", show_default=False)]
OfModel = Annotated[str | None, typer.Option("--model", help="Only this model's sessions.", show_default=False)]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="Only those with this label; may be repeated.", show_default=False
    ),
]
Idle = Annotated[
    float | None,
    typer.Option(parser=_seconds, metavar="TIME", help="Only those idle for so long, as in 10m.", show_default=False),
]


@contextmanager
def _connected(server: str, timeout: float, token: str | None, tenant: str | None) -> Iterator[Client]:
    with plain_errors(), Access(server, timeout, token, tenant).client() as client:
        yield client


@sessions.command("list")
def list_sessions(
    model: OfModel = None,
    label: Labels = None,
    idle: Idle = None,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """List live sessions, oldest first (also without "list").

    [bold]Example[/bold]  hiddenstate sessions --model next-word --label user=me --idle 10m
    """
    from hiddenstate.cli.tables import print_sessions

    labels = _pairs(label)
    with _connected(server, timeout, token, tenant) as client:
        print_sessions(client.sessions(model, labels=labels, idle=idle), json)


@sessions.command()
def show(
    id: Id,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Show everything about one session, or how it ended."""
    from hiddenstate.cli.tables import print_session

    with _connected(server, timeout, token, tenant) as client:
        print_session(client.get_session(id), json)


@sessions.command()
def close(
    ids: Annotated[list[str] | None, typer.Argument(help="Sessions to end.", show_default=False)] = None,
    model: OfModel = None,
    label: Labels = None,
    idle: Idle = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """End sessions, whoever holds them: by id, or all that match.

    [bold]Example[/bold]  hiddenstate sessions close --model next-word --idle 1d
    """
    labels = _pairs(label)
    if bool(ids) == bool(model or labels or idle is not None):
        raise typer.BadParameter("say which: either ids, or --model, --label and --idle")
    with _connected(server, timeout, token, tenant) as client:
        count = len(ids) if ids else len(client.sessions(model, labels=labels, idle=idle))
        if count and not yes:
            typer.confirm(f"End {count:,} session{'s' * (count > 1)}?", abort=True, err=True)
        closed = 0
        if count:
            closed = client.close_sessions(ids) if ids else client.close_sessions(model=model, labels=labels, idle=idle)
        out.print(f"{closed:,} session{'s' * (closed != 1)} ended.")
        if ids and closed < count:
            raise fail(f"{count - closed:,} of {count:,} are no live sessions")


@sessions.command()
def export(
    id: Id,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write it; - for standard output.", show_default=False)
    ],
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Save a snapshot of a session into a file."""
    with _connected(server, timeout, token, tenant) as client:
        snapshot = client.export(id)
        if str(output) == "-":
            sys.stdout.buffer.write(snapshot)
            return
        try:
            output.write_bytes(snapshot)
        except OSError as error:
            raise fail(f"{output} cannot be written: {error.strerror}") from None
        err.print(f"{len(snapshot):,} bytes written to {output}", markup=False)


@sessions.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A snapshot; - for standard input.", show_default=False)],
    id: Annotated[str | None, typer.Option(help="Id of the new session.", show_default=False)] = None,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Make a session from a snapshot; prints its id."""
    try:
        snapshot = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise fail(f"{file} cannot be read: {error.strerror}") from None
    with _connected(server, timeout, token, tenant) as client:
        typer.echo(client.restore(snapshot, id).id)


@sessions.command()
def fork(
    id: Id,
    count: Annotated[int, typer.Option("-n", min=1, help="How many copies.")] = 1,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Make independent copies of a session; prints their ids."""
    with _connected(server, timeout, token, tenant) as client:
        for copy in client.fork(id, count):
            typer.echo(copy.id)


@sessions.command()
def watch(
    id: Id,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,
    token: Token = None,
    tenant: Tenant = None,
) -> None:
    """Follow the predictions of a session that another client feeds, until Ctrl-C."""
    with _connected(server, timeout, token, tenant) as client, client.watch(id) as following:

        def work() -> None:
            for prediction in following:
                out.print(_line(prediction), markup=False, soft_wrap=True)

        out.print(f"{'step':>8} {'surprise':>9}   expected next", style="bold")
        until_interrupted(work)
        if following.skipped:
            err.print(f"{following.skipped:,} predictions were left out", style="dim")


def _line(prediction: Prediction) -> str:
    if isinstance(prediction, LabelPrediction):
        return f"{prediction.step:>8,} {'-':>9}   {prediction.label} ({prediction.probability:.0%})"
    if isinstance(prediction, WordPrediction):
        expected = expected_words(prediction)
    elif isinstance(prediction, NotePrediction):
        expected = note_names(prediction.notes)
    elif isinstance(prediction.mean, float):
        low, high = prediction.interval()
        expected = f"{prediction.mean:.6g}  (90 %: {low:.6g} … {high:.6g})"
    else:
        expected = "  ".join(f"{mean:.6g}" for mean in np.ravel(prediction.mean)[:_MOST_SHOWN])
    return f"{prediction.step:>8,} {prediction.surprise:>9.2f}   {expected}"
