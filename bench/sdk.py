"""What sharing a client saves: many sessions of one AsyncClient beside as many streams, on the same server.

`python -m bench.sdk`: every session observes again and again, one observation under way. The sessions of the SDK are
tasks of one process; the streams are connections of their own, shared by several processes of a client that does
nothing but make load. Both take turns, and the round with the median CPU counts.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.load import Load, Measured
from bench.points import typical
from bench.processes import free_port, measured, started
from bench.report import table

PROCESSES = 4
VOCABULARY = 1_000


def main(
    sessions: Annotated[int, typer.Option(help="Sessions, and streams.", min=1)] = 1_000,
    seconds: Annotated[float, typer.Option(help="How long each round is measured.", min=0.1)] = 3.0,
    rounds: Annotated[int, typer.Option(help="Rounds of each.", min=1)] = 5,
    model: Annotated[list[str] | None, typer.Option(help="Models to observe with; may be given again.")] = None,
) -> None:
    """Measures sessions of one AsyncClient beside separate streams."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        program = Path(sys.executable).with_name("hiddenstate-server")
        flags = ["--port", str(port), "--metrics-port", "0", "--log-level", "warning", "--state-folder", folder]
        with started([program, *flags], [port], Path(folder) / "log") as server:
            for name in model or ["next-value", "next-word"]:
                load = Load(
                    port=port,
                    pid=server.pid,
                    model=name,
                    vocabulary=VOCABULARY if name == "next-word" else 0,
                    streams=sessions,
                    rows=1,
                    seconds=seconds,
                    processes=min(PROCESSES, sessions),
                )
                found = [(measured(load), measured(load, "bench.sdk_load")) for _ in range(rounds)]
                streams, shared = (typical(list(of)) for of in zip(*found, strict=True))
                rows += [_row(f"{name}, {sessions:,} streams", streams, streams)]
                rows += [_row(f"{name}, {sessions:,} sessions of an AsyncClient", shared, streams)]
    header = [
        "load",
        "observations/s",
        "times the streams'",
        "p50 ms",
        "p99 ms",
        "server us",
        "client us",
        "streams' CPU / its",
    ]
    Console(width=200).print(table(header, rows))


def _row(name: str, one: Measured, streams: Measured) -> list[str]:
    rate, cpu = one.observations / one.seconds, _cpu(one)
    return [
        name,
        f"{rate:,.0f}",
        f"{rate / (streams.observations / streams.seconds):.1f}",
        f"{one.latency_ms['p50']:.1f}",
        f"{one.latency_ms['p99']:.1f}",
        f"{one.server_cpu / one.observations * 1e6:.1f}",
        f"{one.generator_cpu / one.observations * 1e6:.1f}",
        f"{_cpu(streams) / cpu:.1f}",
    ]


def _cpu(one: Measured) -> float:
    """Of server and client together, an observation."""
    return (one.server_cpu + one.generator_cpu) / one.observations


if __name__ == "__main__":
    typer.run(main)
