"""The progress bar of everything that trains."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


def make_bar(console: Console, *columns: ProgressColumn, transient: bool) -> Progress:
    """A bar on a terminal, elsewhere nothing; a task's `state` stands behind it, and `columns` come last."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        *columns,
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )
