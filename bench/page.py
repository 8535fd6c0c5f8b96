"""What the longer benchmarks share in how they show themselves: progress, pages, and the look of their plots."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import typer

mpl.use("agg")
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.processes import BenchError

SERVER, OTHER, TIMER = "#3b6ea5", "#b8b8b8", "#e0913a"


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; what it gives is called with the name of each step when that begins."""
    columns = (TextColumn("{task.description:46}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, begun = bar.add_task("", total=steps), 0

        def advance(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun)
            begun += 1

        yield advance
        bar.update(task, completed=steps)


def run(main: Callable[..., None]) -> None:
    """Runs a benchmark's command; what went wrong in one of its processes is told without a traceback."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except BenchError as error:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {error}") from error


def show(text: str) -> None:
    """Prints Markdown: formatted on a terminal, as it is into a file, to be pasted."""
    if sys.stdout.isatty():
        Console().print(Markdown(text))
    else:
        print(text)


def publish(name: str, text: str, out: Path) -> None:
    """Shows a page and keeps it as NAME.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    show(text)


def tidy(axes: Axes) -> None:
    """A faint grid, and no frame around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def ends_with(axis: Axis, unit: str) -> None:
    """Numbers on this axis are plain ones with a unit, also on a logarithmic scale."""
    axis.set_major_formatter(lambda value, _: f"{value:,g}{unit}")
