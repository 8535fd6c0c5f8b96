"""What streams cost that do nothing: `python -m bench.idle` opens ten thousand, each a connection of its own.

Each holds one session of next-value. At some numbers of streams the server's memory is taken, and its CPU while nothing
happens but the keepalive pings (every 30 s on each connection); then some streams, chosen at random, observe one after
the other, each out of its rest and at once again.
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib import pyplot as plt

from bench.page import SERVER, ends_with, progress, publish, run, tidy
from bench.processes import BenchError, served
from bench.report import table
from bench.usage import Usage

STREAMS = (1_000, 2_500, 5_000, 10_000)
CLIENTS = 4
ASKED = 25
"""Streams of each client that observe."""
SPARE_FILES = 200


class Client:
    """A process with its share of the streams."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, command: str, count: int) -> None:
        """Begins something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {count}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What came of it; BenchError where the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("a client of idle streams ended; what it printed stands above")
        return json.loads(line)


@contextlib.contextmanager
def client(port: int) -> Iterator[Client]:
    """A client, until the block is left."""
    command = [sys.executable, "-m", "bench.idle_streams", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Rest:
    """So many streams at rest."""

    streams: int
    resident: int
    """Bytes of the server beyond those without streams."""
    cpu: float
    """CPU seconds of the server a second."""
    first_ms: list[float]
    """Of an observation out of the rest: median, 99 %."""
    again_ms: list[float]
    """Of the next one on the same stream."""


def allow_files(count: int) -> None:
    """Lets this process and those it starts open so many; BenchError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(
            f"{count:,} open files are needed and {hard:,} allowed: raise that (ulimit -Hn), or --streams less"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


def measured(streams: Sequence[int], seconds: float) -> list[Rest]:
    """Opens more and more streams and looks at the server."""
    allow_files(max(streams) + SPARE_FILES)
    found: list[Rest] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(Path(scratch)) as server,
        contextlib.ExitStack() as stack,
        progress(2 * len(streams)) as advance,
    ):
        clients = [stack.enter_context(client(server.port)) for _ in range(CLIENTS)]
        usage = Usage(server.pid)
        # What the first stream brings with it is no stream's own.
        asked(clients, "open", [1] * CLIENTS)
        empty, opened = usage.resident(), CLIENTS
        for count in streams:
            advance(f"open {count:,} streams")
            more = count - opened
            asked(clients, "open", [more * (at + 1) // CLIENTS - more * at // CLIENTS for at in range(CLIENTS)])
            opened = count
            advance(f"{count:,} streams at rest, {seconds:g} s")
            # Sessions that were just opened are being written.
            time.sleep(2)
            cpu, begun = usage.cpu(), time.perf_counter()
            time.sleep(seconds)
            cpu = (usage.cpu() - cpu) / (time.perf_counter() - begun)
            resident = usage.resident() - empty
            latencies = [pair for one in clients for pair in asked([one], "observe", [ASKED])]
            first, again = np.quantile(latencies, (0.5, 0.99), axis=0).T.tolist()
            found.append(Rest(count, resident, cpu, first, again))
    return found


def asked(clients: Sequence[Client], command: str, counts: Sequence[int]) -> list[list[float]]:
    """Has all of them do something at once; what they answer."""
    for one, count in zip(clients, counts, strict=True):
        one.tell(command, count)
    return [latency for one in clients for latency in one.answer()]


def page(found: list[Rest], seconds: float) -> str:
    """The whole page."""
    rows = [
        [
            f"{rest.streams:,}",
            f"{rest.resident / 2**20:,.0f}",
            f"{rest.resident / rest.streams / 2**10:.1f}",
            f"{rest.cpu:.2%}",
            f"{rest.cpu / rest.streams * 1e6:.2f}",
            *(f"{figure:.1f}" for figure in (*rest.first_ms, *rest.again_ms)),
        ]
        for rest in found
    ]
    header = ["idle streams", "MiB", "KiB a stream", "CPU of a core", "CPU us a stream and second"]
    header += ["first answer, ms", "99 %", "another one, ms", "99 %"]
    return f"""# Streams at rest

Each is a connection of its own with one session of next-value, held by {CLIENTS} processes. Memory is the growth of the
server's resident memory; CPU is over {seconds:g} s in which only keepalive pings come and go. Then {CLIENTS * ASKED}
streams observe one after the other, each out of its rest and at once again.

{table(header, rows)}

![Memory and CPU by streams at rest](idle.png)
"""


def plot(found: list[Rest], path: Path) -> None:
    """Memory and CPU by the number of streams."""
    figure, (memory, cpu) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
    streams = [0, *(rest.streams for rest in found)]
    memory.plot(streams, [0, *(rest.resident / 2**20 for rest in found)], "o-", ms=4, color=SERVER)
    memory.set_title("Memory of streams at rest")
    ends_with(memory.yaxis, " MiB")
    cpu.plot(streams[1:], [rest.cpu * 100 for rest in found], "o-", ms=4, color=SERVER)
    cpu.set_title("CPU of streams at rest")
    ends_with(cpu.yaxis, " %")
    for axes in (memory, cpu):
        axes.set_xlabel("streams")
        ends_with(axes.xaxis, "")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        tidy(axes)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    streams: Annotated[list[int] | None, typer.Option(help="Open streams; may be repeated, fewest first.")] = None,
    seconds: Annotated[float, typer.Option(help="How long the server is watched at each number.", min=0.1)] = 30.0,
    out: Annotated[Path, typer.Option(help="Folder for idle.md and idle.png.")] = Path("bench/results"),
) -> None:
    """Measures memory, CPU and the first answer of streams at rest."""
    found = measured(streams or STREAMS, seconds)
    publish("idle", page(found, seconds), out)
    plot(found, out / "idle.png")


if __name__ == "__main__":
    run(main)
