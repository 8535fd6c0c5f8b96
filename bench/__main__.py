"""`python -m bench`: measures the server beside its two parts and writes a page and a plot."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.points import STEPS, Bench
from bench.processes import BenchError


def main(
    seconds: Annotated[float, typer.Option(help="How long each load is measured.", min=0.1)] = 3.0,
    models: Annotated[Path | None, typer.Option(help="Folder of bundles instead of the shipped ones.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.md and bench.png.")] = Path("bench/results"),
) -> None:
    """Measures single observations and frames on the real server, an echo server and the engine alone."""
    console = Console()
    columns = (TextColumn("{task.description:45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as logs, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None)
        bench = Bench(models, seconds, Path(logs), lambda what: progress.update(task, description=what, advance=1))
        try:
            engines = bench.engines_alone()
            progress.update(task, total=1 + STEPS * len(engines))
            results = bench.run(engines)
        except BenchError as error:
            raise SystemExit(f"bench: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    text = report.page(results, seconds)
    (out / "results.md").write_text(text)
    report.plot(results, out / "bench.png")
    console.print(Markdown(text.partition("![")[0]))
    console.print(f"Written to {out / 'results.md'} and {out / 'bench.png'}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
