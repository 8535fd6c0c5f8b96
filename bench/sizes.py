"""How cost grows with the number of sessions: `python -m bench.sizes` keeps a thousand, ten thousand ... a million.

A server for each number stays up, so that they can be compared turn by turn: in each, the same thousand sessions,
spread over all the others, observe in frames while the rest are only there. Everything is measured twice: with the
server as it comes, whose arena takes 100,000 sessions and leaves the others to the store, and with all of them in the
arena, where nothing can be taken back.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
import uvloop
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.holder import FRAME, MODEL, PER_STREAM, Holder, Rows, values
from bench.page import OTHER, SERVER, TIMER, ends_with, progress, publish, run, tidy
from bench.processes import Started, served
from bench.report import table, verdict
from bench.usage import Usage
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import load_models

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ACTIVE, ROUNDS = 1_000, 5
SETTLING_SECONDS = 12.0
"""Until the server has given back what a crowd on its way to the store took."""
MOST_GROWTH, MOST_BYTES_PER_STATE, MOST_BYTES_BESIDE = 1.1, 1.5, 300
PHASES = 3
"""Of each size, beside the rounds."""


@dataclass(frozen=True)
class Way:
    """How the server is set up."""

    name: str
    color: str

    def flags(self, sessions: int) -> list[object]:
        """Of hiddenstate-server."""
        return ["--max-sessions", max(sessions, 2 * ACTIVE), "--rewind-steps", 0] if self is IN_ARENA else []


AS_IT_COMES, IN_ARENA = Way("as it comes", SERVER), Way("all in the arena", TIMER)
WAYS = (AS_IT_COMES, IN_ARENA)


@dataclass
class Figures:
    """What was measured of one number of sessions."""

    sessions: int
    opened: float = 0.0
    """Sessions a second."""
    opening_cpu: float = 0.0
    """Microseconds of the server for a session that is opened, observes once and is written to the store."""
    bytes: float = 0.0
    """By which resident memory grew, a session."""
    idle: float = 0.0
    """CPU seconds a second while nobody observes."""
    rate: float = 0.0
    """Observations a second of the active ones."""
    cpu: float = 0.0
    """Microseconds of the server an observation."""
    start: float = 0.0
    """Seconds to start on a store with all these sessions, after SIGKILL."""
    start_cpu: float = 0.0
    resumed: float = 0.0
    closed: float = 0.0


class Residents:
    """A server and its sessions."""

    def __init__(self, way: Way, sessions: int, folder: Path) -> None:
        self.figures = Figures(sessions)
        self._folder, self._flags = folder, way.flags(sessions)
        self._servers = ExitStack()
        self._server: Started
        self._ids: list[str] = []
        self._active = Holder()
        self._others: list[Holder] = []
        self._handles = np.arange(min(ACTIVE, sessions))
        self._step = 0
        self._rounds: list[tuple[float, float]] = []

    def start(self) -> float:
        """Starts the server; seconds until it accepts."""
        begun = time.perf_counter()
        self._server = self._servers.enter_context(served(self._folder, *self._flags))
        return time.perf_counter() - begun

    def stop(self) -> None:
        """Ends the server if it still runs."""
        self._servers.close()

    async def fill(self) -> None:
        """Opens all sessions, each of which observes once, and waits until they are in the store."""
        usage = Usage(self._server.pid)
        resident, cpu, opening = usage.resident(), usage.cpu(), 0.0
        await self._active.connect(self._server.port)
        total = self.figures.sessions
        pieces = -(-total // FRAME)
        for piece in range(pieces):
            first, last = (total * at // pieces for at in (piece, piece + 1))
            begun = time.perf_counter()
            # So the active ones lie among the others wherever those are.
            busy = len(self._handles) * (piece + 1) // pieces - len(self._active.ids)
            await self._active.open(busy)
            holder = await self._holder(last - first - busy)
            before = len(holder.ids)
            await holder.open(last - first - busy)
            opening += time.perf_counter() - begun
            for opened, handles in (
                (self._active, np.arange(len(self._active.ids) - busy, len(self._active.ids))),
                (holder, np.arange(before, len(holder.ids))),
            ):
                if len(handles):
                    await opened.observe(handles, values(handles, 1))
        self._step = 1
        for one in (self._active, *self._others):
            while one.ids and (await one.durable() < 1).any():
                await asyncio.sleep(0.1)
        self.figures.opened = total / opening
        self.figures.opening_cpu = (usage.cpu() - cpu) / total * 1e6
        await asyncio.sleep(SETTLING_SECONDS)
        self.figures.bytes = (usage.resident() - resident) / total
        self._ids = [one.ids[handle] for one in (self._active, *self._others) for handle in sorted(one.ids)]

    async def _holder(self, more: int) -> Holder:
        """The stream that has room for so many more."""
        if not self._others or len(self._others[-1].ids) + more > PER_STREAM:
            self._others.append(Holder())
            await self._others[-1].connect(self._server.port)
        return self._others[-1]

    async def idle(self, seconds: float) -> None:
        """Measures a stretch without work."""
        usage = Usage(self._server.pid)
        cpu, begun = usage.cpu(), time.perf_counter()
        await asyncio.sleep(seconds)
        self.figures.idle = (usage.cpu() - cpu) / (time.perf_counter() - begun)

    async def observe(self, seconds: float) -> None:
        """A round of the active ones, frame after frame."""
        usage = Usage(self._server.pid)
        await self._observe_once()
        count, cpu, begun = 0, usage.cpu(), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            await self._observe_once()
            count += len(self._handles)
        elapsed = time.perf_counter() - begun
        self._rounds.append((count / elapsed, (usage.cpu() - cpu) / count * 1e6))
        self.figures.rate, self.figures.cpu = np.median(self._rounds, axis=0).tolist()

    async def _observe_once(self) -> None:
        self._step += 1
        await self._active.observe(self._handles, values(self._handles, self._step))

    async def restart(self, chosen: Rows) -> None:
        """Kills the server, starts it on its store, resumes some of the sessions and closes them."""
        for holder in (self._active, *self._others):
            holder.leave()
        psutil.Process(self._server.pid).kill()
        self.stop()
        self.figures.start = self.start()
        self.figures.start_cpu = Usage(self._server.pid).cpu()
        holder = Holder()
        await holder.connect(self._server.port)
        begun = time.perf_counter()
        await holder.resume([self._ids[session] for session in chosen.tolist()])
        self.figures.resumed = len(chosen) / (time.perf_counter() - begun)
        begun = time.perf_counter()
        await holder.close(np.arange(len(chosen)))
        self.figures.closed = len(chosen) / (time.perf_counter() - begun)
        holder.leave()
        self.stop()


async def measured(
    way: Way, sizes: Sequence[int], seconds: float, folder: Path, advance: Callable[[str], None]
) -> list[Figures]:
    """All sizes, one way."""
    residents = []
    for sessions in sizes:
        advance(f"{way.name}: open {sessions:,}")
        home = folder / f"{way.name}-{sessions}"
        home.mkdir()
        residents.append(Residents(way, sessions, home))
        residents[-1].start()
        await residents[-1].fill()
    try:
        for number in range(ROUNDS):
            for one in residents:
                advance(f"{way.name}: {one.figures.sessions:,}, round {number + 1} of {ROUNDS}")
                await one.observe(seconds / ROUNDS)
        for one in residents:
            advance(f"{way.name}: {one.figures.sessions:,} at rest")
            await one.idle(seconds)
        random = np.random.default_rng(0)
        for one in residents:
            advance(f"{way.name}: start with {one.figures.sessions:,}, resume and close")
            await one.restart(random.permutation(one.figures.sessions)[:PER_STREAM])
    finally:
        for one in residents:
            one.stop()
    return [one.figures for one in residents]


def page(found: dict[Way, list[Figures]], state: int, seconds: float) -> str:
    """The whole page."""
    judged, rows = [], []
    most = MOST_BYTES_PER_STATE * state + MOST_BYTES_BESIDE
    for way, figures in found.items():
        first, last = figures[0], figures[-1]
        span = f"{way.name}, {last.sessions:,} sessions"
        cpu, rate = last.cpu / first.cpu, first.rate / last.rate
        judged += [
            [
                f"{span}: CPU / that with {first.sessions:,}",
                f"{cpu:.2f}",
                f"<= {MOST_GROWTH}",
                verdict(cpu <= MOST_GROWTH),
            ],
            [
                f"{span}: time / that with {first.sessions:,}",
                f"{rate:.2f}",
                f"<= {MOST_GROWTH}",
                verdict(rate <= MOST_GROWTH),
            ],
            [f"{span}: bytes each", f"{last.bytes:,.0f}", f"<= {most:,.0f}", verdict(last.bytes <= most)],
        ]
        rows += [
            [
                way.name,
                f"{one.sessions:,}",
                f"{one.cpu:.2f}",
                f"{one.rate:,.0f}",
                f"{one.bytes:,.0f}",
                f"{one.opened:,.0f}",
                f"{one.opening_cpu:.0f}",
                f"{one.resumed:,.0f}",
                f"{one.closed:,.0f}",
                f"{one.start:.2f}",
                f"{one.start_cpu:.2f}",
                f"{one.idle:.1%}",
            ]
            for one in figures
        ]
    header = ["server", "sessions", "CPU us an observation", "observations/s", "bytes a session", "opened/s"]
    header += [
        "CPU us to open, observe once and store",
        "resumed/s",
        "closed/s",
        "start, s",
        "its CPU, s",
        "CPU at rest",
    ]
    return f"""# From a thousand sessions to a million

{MODEL}, SQLite. {ACTIVE:,} sessions spread over all the others observe in frames of {ACTIVE:,}, in {ROUNDS} turns of
{seconds / ROUNDS:g} s; medians of them. As it comes, the arena takes 100,000 sessions, each with 64 observations that
can be taken back, and the store has the others; all in the arena, nothing can be taken back. Memory is the growth of
the server's resident memory; a session of {state} bytes of state may take {most:,.0f}. The start is on the store of all
these sessions, after SIGKILL; then up to {PER_STREAM:,} of them are resumed, and closed.

{table(["what", "measured", "target", "met"], judged)}

{table(header, rows)}

![By the number of sessions](sizes.png)
"""


def plot(found: dict[Way, list[Figures]], state: int, path: Path) -> None:
    """By the number of sessions: cost of an observation, memory, rates, and the start."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.2), layout="constrained")
    (cost, memory), (rates, start) = axes
    for way, figures in found.items():
        sessions = [one.sessions for one in figures]
        cost.plot(sessions, [one.cpu for one in figures], "o-", ms=4, color=way.color, label=way.name)
        memory.plot(sessions, [one.bytes for one in figures], "o-", ms=4, color=way.color, label=way.name)
        start.plot(sessions, [one.start_cpu for one in figures], "o-", ms=4, color=way.color, label=way.name)
        for style, name in (("o-", "opened"), ("s--", "resumed"), ("^:", "closed")):
            its = [getattr(one, name) for one in figures]
            rates.plot(sessions, its, style, ms=4, color=way.color, label=f"{name}, {way.name}")
    first = next(iter(found.values()))[0].cpu
    cost.axhspan(first, first * MOST_GROWTH, color=OTHER, alpha=0.4, lw=0, label="10 % more than with the fewest")
    memory.axhline(MOST_BYTES_PER_STATE * state + MOST_BYTES_BESIDE, color="#888888", ls="--", label="target")
    memory.axhline(state, color="#888888", ls=":", label="state alone")
    memory.set_yscale("log")
    for one, title, unit in (
        (cost, "CPU an observation, the same thousand active", " us"),
        (memory, "Memory a session", " B"),
        (rates, "Sessions a second", ""),
        (start, "CPU to start on a store of so many", " s"),
    ):
        one.set_title(title)
        finish(one, unit)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def finish(axes: Axes, unit: str) -> None:
    """What all have in common."""
    axes.set_xscale("log")
    ends_with(axes.xaxis, "")
    ends_with(axes.yaxis, unit)
    axes.set_xlabel("sessions")
    if axes.get_yscale() == "linear":
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    tidy(axes)
    axes.legend(frameon=False, fontsize="small")


def main(
    size: Annotated[list[int] | None, typer.Option(help="Live sessions; may be repeated, smallest first.")] = None,
    seconds: Annotated[float, typer.Option(help="How long the active ones observe in each.", min=0.1)] = 10.0,
    folder: Annotated[Path | None, typer.Option(help="Where stores are made; a temporary folder else.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for sizes.md and sizes.png.")] = Path("bench/results"),
) -> None:
    """Measures what an observation, a session and a start cost, by how many sessions there are."""
    sizes = size or list(SIZES)
    (model,) = (one for one in load_models(load(["--max-batch", "64"])) if one.info.name == MODEL)
    state = 4 * model.info.state_size
    found = {}
    steps = len(WAYS) * len(sizes) * (PHASES + ROUNDS)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, progress(steps) as advance:
        for way in WAYS:
            found[way] = uvloop.run(measured(way, sizes, seconds, Path(scratch), advance))
    publish("sizes", page(found, state, seconds), out)
    plot(found, state, out / "sizes.png")


if __name__ == "__main__":
    run(main)
