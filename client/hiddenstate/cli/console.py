"""What all commands share: the server's options, plain errors, lines of text."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from hiddenstate import AsyncClient, Client, HiddenstateError, WordPrediction

Server = Annotated[
    str,
    typer.Option(envvar="HIDDENSTATE_SERVER", help="Where the server listens.", rich_help_panel="Connection"),
]
Timeout = Annotated[
    float,
    typer.Option(
        envvar="HIDDENSTATE_TIMEOUT",
        min=0.001,
        help="Longest wait for any answer, in seconds.",
        rich_help_panel="Connection",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="HIDDENSTATE_TOKEN",
        help="Tells the server who you are; better given by the environment.",
        rich_help_panel="Connection",
        show_default=False,
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        envvar="HIDDENSTATE_TENANT",
        help="Whose sessions these are, where the server asks for no token.",
        rich_help_panel="Connection",
        show_default=False,
    ),
]
DEFAULT_TIMEOUT = 10.0
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class Access:
    """Where the server is, and who asks."""

    server: str
    timeout: float
    token: str | None = field(repr=False)
    tenant: str | None

    def client(self) -> Client:
        """A client of it."""
        return Client(self.server, timeout=self.timeout, token=self.token, tenant=self.tenant)

    def async_client(self) -> AsyncClient:
        """A client of it for asyncio."""
        return AsyncClient(self.server, timeout=self.timeout, token=self.token, tenant=self.tenant)


class _Console(Console):
    """Rich's console, which leaves a broken pipe to `plain_errors`."""

    def on_broken_pipe(self) -> None:
        raise


# a table written into a file or a pipe need not fit a screen
out = _Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = _Console(stderr=True, highlight=False)

_MOST_LINES = 1024
_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def fail(message: str) -> typer.Exit:
    """Says what is wrong in one red sentence; to be raised."""
    err.print(f"[red]{escape(message)}[/red]", soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Failures end the command with one sentence; a reader that went away ends it quietly."""
    try:
        yield
    except HiddenstateError as error:
        raise fail(str(error)) from None
    except BrokenPipeError:
        # the interpreter flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def batches(source: TextIO) -> Iterator[list[str]]:
    """Lines as they arrive: the next one, and with it whatever else came while the last ones were worked on."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue(_MOST_LINES)

    def read() -> None:
        try:
            for line in iter(source.readline, ""):
                lines.put(line)
        except (OSError, ValueError) as error:  # such as bytes that are no text
            lines.put(error)
        lines.put(None)

    threading.Thread(target=read, name="lines", daemon=True).start()
    while True:
        item: str | BaseException | None = lines.get()
        batch: list[str] = []
        while isinstance(item, str):
            batch.append(item)
            if len(batch) == _MOST_LINES or lines.empty():
                break
            item = lines.get()
        if batch:
            yield batch
        if isinstance(item, BaseException):
            raise fail(f"the input cannot be read: {item}")
        if item is None:
            return


def until_interrupted(work: Callable[[], None]) -> None:
    """Runs `work`; Ctrl-C is a way to end it, not an error."""
    try:
        work()
    except KeyboardInterrupt:
        out.print()


def expected_words(prediction: WordPrediction) -> str:
    """The words that may come next."""
    return "  ".join(f"{word} {percent(p)}" for word, p in prediction.top)


def note_names(notes: Iterable[int]) -> str:
    """Notes by MIDI number for people, from the lowest: "C4 E4 G4"."""
    return " ".join(f"{_NOTES[note % 12]}{note // 12 - 1}" for note in sorted(notes))


def exact_percent(share: float) -> str:
    """A probability chosen by the user, all digits of it."""
    return f"{100 * share:.8g} %"


def percent(share: float) -> str:
    """A probability for people."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"
