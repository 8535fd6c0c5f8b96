"""What carries messages, beside grpc.aio: `python -m bench.fronts` measures echo servers on other libraries.

All answer a message of one observation with the same bytes, to the same load: one observation a message, on streams of
their own. Those that are installed (bench/fronts/install.sh) take turns; the round with the median CPU counts.
"""

import base64
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console

from bench.load import Load, Measured
from bench.points import typical
from bench.processes import BenchError, free_port, measured, started
from bench.report import table
from hiddenstate_proto import hiddenstate_pb2 as pb

HERE = Path(__file__).parent
PROCESSES = 4


class Front(NamedTuple):
    """An echo server."""

    title: str
    command: Callable[[int, Path], list[str | Path]]
    """What starts it on a port, with a file of replies."""
    environment: str = ""
    """Where it is installed; empty for our own."""

    @property
    def installed(self) -> bool:
        """Whether it can be run."""
        return not self.environment or program(self.environment, "python").exists()


def program(environment: str, name: str) -> Path:
    """A program of an environment that install.sh made."""
    return HERE / ".venvs" / environment / "bin" / name


FRONTS = (
    Front("grpc.aio on uvloop", lambda port, replies: [sys.executable, "-m", "bench.echo", str(port), replies]),
    Front(
        "grpclib (h2) on uvloop",
        lambda port, replies: [program("grpclib", "python"), HERE / "grpclib_echo.py", str(port), replies],
        "grpclib",
    ),
    Front(
        "granian (hyper), ASGI",
        lambda port, _: [
            program("granian", "granian"), "--interface", "asgi", "--http", "2", "--loop", "uvloop", "--no-ws",
            "--port", str(port), "--host", "127.0.0.1", "--log-level", "error", "bench.fronts.asgi_echo:app",
        ],
        "granian",
    ),
    Front(
        "pyvoy (Envoy), ASGI",
        lambda port, _: [
            program("pyvoy", "pyvoy"), "--port", str(port), "--loop", "uvloop", "--log-level", "error",
            "bench.fronts.asgi_echo:app",
        ],
        "pyvoy",
    ),
    Front("uvloop alone: no flow control, no checks", lambda port, replies: [
        sys.executable, HERE / "loop_echo.py", str(port), replies
    ]),
)  # fmt: skip


def reply() -> bytes:
    """An answer to one observation of a model of values."""
    one, two = np.zeros(1, np.float32).tobytes(), np.zeros(1).tobytes()
    predictions = pb.Predictions(
        handles=one, steps=two, surprises=one, locations=two, scales=two, degrees_of_freedom=one, durable_steps=two
    )
    return pb.StreamResponse(observed=[predictions]).SerializeToString()


def main(
    streams: Annotated[list[int] | None, typer.Option(help="Streams of a load; may be given again.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each round is measured.", min=0.1)] = 2.0,
    rounds: Annotated[int, typer.Option(help="Rounds of each.", min=1)] = 5,
) -> None:
    """Measures echo servers on grpc.aio and on what else there is."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        folder = Path(scratch)
        replies = folder / "replies.json"
        replies.write_text(json.dumps([base64.b64encode(reply()).decode()]))
        os.environ["REPLIES"] = str(replies)
        servers = {}
        for number, front in enumerate(front for front in FRONTS if front.installed):
            port = free_port()
            log = folder / f"{number}.log"
            servers[front.title] = running.enter_context(started(front.command(port, replies), [port], log))
        for count in streams or [1, 64]:
            found: dict[str, list[Measured]] = {title: [] for title in servers}
            for _ in range(rounds):
                for title, server in servers.items():
                    load = Load(
                        server.port, server.pid, "next-value", 0, count, 1, seconds, False, min(PROCESSES, count)
                    )
                    try:
                        found[title].append(measured(load))
                    except BenchError as error:
                        Console(stderr=True).print(f"{title} did not take the load: {str(error).splitlines()[-1]}")
            rows += [_row(count, title, typical(all_)) for title, all_ in found.items() if all_]
    header = ["streams", "server", "CPU us a message", "messages/s", "p50 ms", "p99 ms"]
    Console(width=200).print(table(header, rows))


def _row(streams: int, title: str, one: Measured) -> list[str]:
    cpu = one.server_cpu / one.observations * 1e6
    rate = one.observations / one.seconds
    return [
        str(streams),
        title,
        f"{cpu:.1f}",
        f"{rate:,.0f}",
        f"{one.latency_ms['p50']:.2f}",
        f"{one.latency_ms['p99']:.2f}",
    ]


if __name__ == "__main__":
    typer.run(main)
