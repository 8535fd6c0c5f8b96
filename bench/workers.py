"""What a second worker brings: `python -m bench.workers` puts the same load on a server of one worker, and of two.

The load comes on streams of their own, one observation a message, and in frames. Where cores are fewer than workers and
the processes of the load together, throughput tells of the machine: then the CPU an observation takes, and how evenly
the workers share it, tell how far more cores would carry.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from bench.load import Load, Measured
from bench.points import Shape, typical
from bench.processes import Started, free_port, measured, started
from bench.report import table

SHAPES = (Shape("64 streams, singles", 64, 1), Shape("16 streams, frames of 256", 16, 256))
PROCESSES = 4
VOCABULARY = 1_000


def main(
    workers: Annotated[list[int] | None, typer.Option(help="Workers of a server; may be given again.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each round is measured.", min=0.1)] = 3.0,
    rounds: Annotated[int, typer.Option(help="Rounds of each.", min=1)] = 5,
    model: Annotated[list[str] | None, typer.Option(help="Models to observe with; may be given again.")] = None,
) -> None:
    """Measures servers of one and of several workers under the same load."""
    counts = workers or [1, 2]
    rows = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        servers = {count: running.enter_context(_server(count, Path(scratch) / str(count))) for count in counts}
        for name in model or ["next-value", "next-word"]:
            for shape in SHAPES:
                found: dict[int, list[tuple[Measured, float]]] = {count: [] for count in counts}
                for _ in range(rounds):
                    for count, server in servers.items():
                        found[count].append(_measured(server, name, shape, seconds))
                rows += _rows(f"{name}, {shape.name}", found)
    header = [
        "load",
        "workers",
        "observations/s",
        "times the first's",
        "CPU us",
        "times the first's",
        "busiest's share",
    ]
    Console(width=200).print(table(header, rows))


def _server(workers: int, folder: Path) -> contextlib.AbstractContextManager[Started]:
    folder.mkdir()
    port = free_port()
    program = Path(sys.executable).with_name("hiddenstate-server")
    flags = ["--port", str(port), "--metrics-port", "0", "--log-level", "warning", "--state-folder", str(folder)]
    return started([program, *flags, "--workers", str(workers)], [port], folder / "log")


def _measured(server: Started, model: str, shape: Shape, seconds: float) -> tuple[Measured, float]:
    """What came of a load, and which share of the CPU the busiest process took."""
    load = Load(
        port=server.port,
        pid=server.pid,
        model=model,
        vocabulary=VOCABULARY if model == "next-word" else 0,
        streams=shape.streams,
        rows=shape.rows,
        seconds=seconds,
        processes=PROCESSES,
    )
    before = _times(server.pid)
    found = measured(load)
    spent = [now - before[pid] for pid, now in _times(server.pid).items()]
    return found, max(spent) / sum(spent)


def _times(pid: int) -> dict[int, float]:
    """CPU seconds of a server's processes."""
    server = psutil.Process(pid)
    times = {process.pid: process.cpu_times() for process in [server, *server.children(recursive=True)]}
    return {pid: time.user + time.system for pid, time in times.items()}


def _rows(load: str, found: dict[int, list[tuple[Measured, float]]]) -> list[list[str]]:
    first: tuple[float, float] | None = None
    rows = []
    for count, rounds in found.items():
        one = typical([measured for measured, _ in rounds])
        share = next(share for measured, share in rounds if measured is one)
        rate, cpu = one.observations / one.seconds, one.server_cpu / one.observations * 1e6
        first = first or (rate, cpu)
        rows.append(
            [
                load,
                str(count),
                f"{rate:,.0f}",
                f"{rate / first[0]:.2f}",
                f"{cpu:.1f}",
                f"{cpu / first[1]:.2f}",
                f"{share:.0%}",
            ]
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
