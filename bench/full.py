"""All benchmarks, one after the other, each a process of its own: `make bench-full`, or `python -m bench.full`.

Each writes its page and its plots to one folder. Last comes targets.md: of every page, what there is a target for, and
the command that measured it, to be pasted into docs/performance.md.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.page import run, show
from bench.report import table, verdict

JUDGED = ["measured", "target", "met"]
"""Columns of a table of which the summary takes the rows that have a target."""
QUIET = 0.3
"""Load a core before the start, up to which a machine counts as quiet."""


@dataclass(frozen=True)
class Benchmark:
    """One of them."""

    module: str
    """`python -m MODULE --out FOLDER` runs it."""
    minutes: float
    """About how long, on two cores."""
    page: str
    """What it writes to the folder, without `.md`."""
    arguments: tuple[str, ...] = ()
    prints: bool = False
    """Whether it takes no `--out`, and what it prints is its page."""

    @property
    def command(self) -> str:
        """What makes its page."""
        return " ".join(["python -m", self.module, *self.arguments])


# What is added here is run, summed up, and told by --help.
BENCHMARKS = (
    Benchmark("bench", 7, "results", ("--seconds", "9")),
    Benchmark("bench.batching", 9, "batching"),
    Benchmark("bench.values", 1, "values", prints=True),
    Benchmark("bench.words", 3, "words", prints=True),
    Benchmark("bench.sdk", 2, "sdk", prints=True),
    Benchmark("bench.workers", 3, "workers", prints=True),
    Benchmark("bench.fronts", 2, "fronts", prints=True),
    Benchmark("bench.start", 1, "start"),
    Benchmark("bench.rewind", 1, "rewind"),
    Benchmark("bench.reload", 1, "reload"),
    Benchmark("bench.warming", 2, "warming", prints=True),
    Benchmark("bench.idle", 4, "idle"),
    Benchmark("bench.scale", 4, "scale"),
    Benchmark("bench.sizes", 13, "sizes"),
    Benchmark("bench.profile", 3, "profile"),
    Benchmark("bench.soak", 36, "soak", ("--minutes", "30")),
    Benchmark("bench.peers", 13, "peers"),
)
NAMES = ", ".join(one.page for one in BENCHMARKS)


@dataclass(frozen=True)
class Outcome:
    """How one went."""

    benchmark: Benchmark
    seconds: float
    failed: bool
    load: float
    """Of the machine before it, a core."""


def carried_out(benchmark: Benchmark, out: Path) -> Outcome:
    """Runs one, its progress on this terminal; what it prints is kept as NAME.txt, or is its page."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    command = [sys.executable, "-m", benchmark.module, *benchmark.arguments]
    page = out / f"{benchmark.page}.md"
    page.unlink(missing_ok=True)
    begun = time.monotonic()
    with (page if benchmark.prints else out / f"{benchmark.page}.txt").open("wb") as printed:
        code = subprocess.run([*command, *(() if benchmark.prints else ("--out", out))], stdout=printed).returncode
    return Outcome(benchmark, time.monotonic() - begun, code != 0 or not page.exists(), load)


def left(done: Sequence[Outcome], ahead: Sequence[Benchmark]) -> float:
    """Minutes that those ahead take, at the pace of those done."""
    planned = sum(one.benchmark.minutes for one in done)
    pace = sum(one.seconds for one in done) / 60 / planned if planned else 1.0
    return pace * sum(one.minutes for one in ahead)


def judged(page: str) -> Iterator[list[str]]:
    """What a page has targets for: what, measured, target, met."""
    width = 0
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) != width:
            width = len(cells) if cells[-3:] == JUDGED else 0
        elif width and cells[-2] and not cells[0].startswith("---"):
            yield [", ".join(cells[:-3]), *cells[-3:]]


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """All targets, from the pages as they are."""
    rows = []
    for outcome in outcomes:
        page = out / f"{outcome.benchmark.page}.md"
        if page.exists():
            rows += [[*row, f"`{outcome.benchmark.command}`"] for row in judged(page.read_text())]
    met = sum(row[3] == verdict(True) for row in rows)
    busiest = max(outcome.load for outcome in outcomes)
    state = "quiet" if busiest <= QUIET else f"BUSY (a load of {busiest:.1f} a core before a benchmark began)"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    broken = [outcome.benchmark.command for outcome in outcomes if outcome.failed]
    failed = f"\nFailed: {', '.join(broken)}.\n" if broken else ""
    return f"""# Targets

{when}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; the machine was {state}.
{met} of {len(rows)} targets met.
{failed}
{table(["what", *JUDGED, "command"], rows)}
"""


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Only this one; may be repeated: {NAMES}.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="All but this one; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for pages and plots.")] = Path("bench/results"),
) -> None:
    """Runs all benchmarks and sums up what they say about the targets.

    One that fails does not keep the others from running. Wants a machine on which nothing else runs.
    """
    console = Console(stderr=True, highlight=False)
    if unknown := {*(only or ()), *(skip or ())} - {one.page for one in BENCHMARKS}:
        raise SystemExit(f"no benchmark is called {', '.join(sorted(unknown))}; there are {NAMES}")
    chosen = [one for one in BENCHMARKS if (not only or one.page in only) and one.page not in (skip or ())]
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    try:
        for number, benchmark in enumerate(chosen):
            console.print(
                f"[bold]{number + 1} of {len(chosen)}: {benchmark.command}[/], about {benchmark.minutes:g} min; "
                f"{left(outcomes, chosen[number:]):.0f} min left in all"
            )
            outcomes.append(carried_out(benchmark, out))
            if outcomes[-1].failed:
                console.print(
                    f"[red]{benchmark.command} failed[/]; what it said stands above, and in {out / benchmark.page}.*"
                )
    except KeyboardInterrupt:
        console.print("stopped; what is finished is kept")
    if not outcomes:
        raise SystemExit(1)
    text = summary(outcomes, out)
    (out / "targets.md").write_text(text)
    show(text)
    console.print(f"Pages and plots are in {out}; the table is {out / 'targets.md'}")
    if len(outcomes) < len(chosen) or any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
