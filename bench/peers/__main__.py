"""`python -m bench.peers`: hiddenstate beside other servers, in one run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.peers import report
from bench.peers.catalog import PEERS, SDK, STREAMS
from bench.peers.comparison import STEPS, Comparison
from bench.processes import BenchError

NAMES = ", ".join(peer.name for peer in PEERS)


def main(
    seconds: Annotated[float, typer.Option(help="How long each load is measured.", min=0.1)] = 5.0,
    peer: Annotated[list[str] | None, typer.Option(help=f"Only this one; may be repeated: {NAMES}.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for peers.md.")] = Path("bench/results"),
) -> None:
    """Puts the same load on hiddenstate and on every other server that is installed, one after the other.

    1, 16 and 64 sessions of the shipped next-word model, each with one observation under way. Who answers otherwise
    than hiddenstate is not timed. Every peer but the afternoon servers is installed by its own script.
    """
    console = Console()
    if unknown := set(peer or ()) - {one.name for one in PEERS}:
        raise SystemExit(f"no peer is called {', '.join(sorted(unknown))}; there are {NAMES}")
    chosen = [one for one in PEERS if not peer or one.name in peer]
    missing = [one for one in chosen if not one.installed]
    for one in missing:
        console.print(f"{one.title} is not installed. Install it: {one.installer}")
    contestants = [STREAMS, SDK, *(one for one in chosen if one.installed)]
    columns = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=STEPS * len(contestants))
        try:
            comparison = Comparison(seconds, lambda what: progress.update(task, description=what, advance=1))
            outcomes = [comparison.measured(contestant) for contestant in contestants]
        except BenchError as error:
            raise SystemExit(f"bench.peers: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    text = report.page(outcomes, missing, seconds)
    (out / "peers.md").write_text(text)
    console.print(Markdown(text))
    console.print(f"Written to {out / 'peers.md'}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
