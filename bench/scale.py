"""More sessions than the arena holds: `python -m bench.scale` opens a million and keeps a tenth of them in the arena.

Every session has seen a few values of its own. Some, chosen at random wherever they are, are fed one more and must
predict what a lone run predicts. Then the server is killed, started again on the same store, and asked once more.
"""

import asyncio
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
import uvloop
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.holder import FRAME, MODEL, PER_STREAM, Floats, Holder, Rows, values
from bench.processes import BenchError, Started, served
from bench.report import table
from bench.usage import Usage
from hiddenstate_server.runtimes import ValueOutputs
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import LoadedModel, load_models

STEPS = 3
SETTLING_SECONDS = 12.0
"""Until the server has given back what a crowd on its way to the store took."""
SINGLES, FRAMES, FRAME_OF_CHOSEN = 2_000, 16, 1_024
TOLERANCE = 1e-5
"""Of a prediction's location and scale, relative to the larger of value and scale."""


def expected(model: LoadedModel, sessions: Rows, steps: Rows) -> Floats:
    """Location and scale [n, 2] after `steps` observations, without a server."""
    _, initial = model.runtime.initial()
    states = np.repeat(initial, len(sessions), axis=0)
    found = np.empty((len(sessions), 2))
    for step in range(1, int(steps.max()) + 1):
        outputs, states = model.runtime.step(values(sessions, step)[:, None], states)
        last = steps == step
        assert isinstance(outputs, ValueOutputs)
        found[last] = np.hstack([outputs.locations, outputs.scales])[last]
    return found


@dataclass(frozen=True)
class Scale:
    """How many sessions, and how many of them in the arena."""

    sessions: int
    arena: int
    folder: Path

    @contextmanager
    def server(self) -> Iterator[Started]:
        """A server on the store in `folder`."""
        with served(self.folder, "--max-sessions", self.arena) as server:
            yield server

    @property
    def on_disk(self) -> int:
        """Bytes of the store."""
        return sum(file.stat().st_size for file in (self.folder / "state").glob("sessions.db*"))


class Run:
    """One run; `figures` are what it found, in words and numbers."""

    def __init__(self, scale: Scale, progress: Progress) -> None:
        self.figures: list[tuple[str, str]] = []
        self._scale = scale
        self._progress = progress
        (self._model,) = (one for one in load_models(load(["--max-batch", "64"])) if one.info.name == MODEL)
        self._steps = np.full(scale.sessions, STEPS)
        self._random = np.random.default_rng(0)
        self._holders: list[Holder] = []

    async def whole(self) -> None:
        """Everything, in order."""
        with self._scale.server() as server:
            before = Usage(server.pid).resident()
            await self._open_all(server.port)
            await self._all_durable()
            await asyncio.sleep(SETTLING_SECONDS)
            self._note_sizes(before, Usage(server.pid).resident())
            await self._bring_back_singly()
            await self._bring_back_in_frames()
            await self._all_durable()
            psutil.Process(server.pid).kill()
            for holder in self._holders:
                holder.leave()
        begun = time.perf_counter()
        with self._scale.server() as server:
            self._note("start on this store, after SIGKILL, s", f"{time.perf_counter() - begun:.2f}")
            await self._resume_some(server)

    def _note(self, what: str, figure: str) -> None:
        self.figures.append((what, figure))

    def _task(self, name: str, total: int) -> TaskID:
        return self._progress.add_task(name, total=total)

    async def _open_all(self, port: int) -> None:
        """Opens all, stream after stream."""
        task = self._task("open", self._scale.sessions)
        begun = time.perf_counter()
        for first in range(0, self._scale.sessions, PER_STREAM):
            holder, count = Holder(), min(PER_STREAM, self._scale.sessions - first)
            await holder.connect(port)
            await holder.open(count)
            self._holders.append(holder)
            for at in range(0, count, FRAME):
                handles = np.arange(at, min(at + FRAME, count))
                for step in range(1, STEPS + 1):
                    await holder.observe(handles, values(first + handles, step))
                self._progress.advance(task, len(handles))
        rate = self._scale.sessions / (time.perf_counter() - begun)
        self._note(f"opened, with {STEPS} observations each, sessions/s", f"{rate:,.0f}")

    async def _all_durable(self) -> None:
        task = self._task("wait until all is durable", len(self._holders))
        begun = time.perf_counter()
        for index, holder in enumerate(self._holders):
            applied = self._steps[index * PER_STREAM : (index + 1) * PER_STREAM]
            while (await holder.durable() < applied).any():
                await asyncio.sleep(0.1)
            self._progress.advance(task)
        self._note("until the last observation was durable, s", f"{time.perf_counter() - begun:.2f}")

    def _note_sizes(self, before: int, after: int) -> None:
        """From the server's bytes without sessions and with all of them."""
        self._note("bytes of state", f"{4 * self._model.info.state_size:,}")
        self._note("resident memory in all, MiB", f"{after / 2**20:,.0f}")
        self._note("its growth a session, bytes", f"{(after - before) / self._scale.sessions:,.0f}")
        self._note("disk a session, bytes", f"{self._scale.on_disk / self._scale.sessions:,.0f}")

    async def _bring_back_singly(self) -> None:
        task = self._task("bring back one by one", SINGLES)
        latencies = []
        for session in self._chosen(SINGLES):
            begun = time.perf_counter()
            await self._observed(np.array([session]))
            latencies.append((time.perf_counter() - begun) * 1e3)
            self._progress.advance(task)
        p50, p99 = np.quantile(latencies, [0.5, 0.99])
        self._note("an observation of any session, ms (median, 99 %)", f"{p50:.2f}, {p99:.2f}")

    async def _bring_back_in_frames(self) -> None:
        task = self._task("bring back in frames", FRAMES)
        begun = time.perf_counter()
        for _ in range(FRAMES):
            await self._observed(self._chosen(FRAME_OF_CHOSEN))
            self._progress.advance(task)
        rate = FRAMES * FRAME_OF_CHOSEN / (time.perf_counter() - begun)
        self._note(f"observations of any sessions, in frames of {FRAME_OF_CHOSEN:,}, a second", f"{rate:,.0f}")

    async def _resume_some(self, server: Started) -> None:
        chosen = self._chosen(FRAME_OF_CHOSEN)
        ids = [self._holders[session // PER_STREAM].ids[session % PER_STREAM] for session in chosen.tolist()]
        holder = Holder()
        await holder.connect(server.port)
        begun = time.perf_counter()
        await holder.resume(ids)
        self._note(f"{FRAME_OF_CHOSEN:,} of them resumed, ms", f"{(time.perf_counter() - begun) * 1e3:.0f}")
        self._steps[chosen] += 1
        answers = await holder.observe(np.arange(len(chosen)), values_at(chosen, self._steps[chosen]))
        self._compare(chosen, answers)
        holder.leave()

    def _chosen(self, count: int) -> Rows:
        return self._random.choice(self._scale.sessions, min(count, self._scale.sessions), replace=False)

    async def _observed(self, sessions: Rows) -> None:
        """Feeds each its next value, stream by stream at once, and compares."""
        self._steps[sessions] += 1
        streams = sessions // PER_STREAM
        parts = [sessions[streams == stream] for stream in np.unique(streams)]
        answers = await asyncio.gather(
            *(
                self._holders[part[0] // PER_STREAM].observe(part % PER_STREAM, values_at(part, self._steps[part]))
                for part in parts
            )
        )
        self._compare(np.concatenate(parts), np.concatenate(answers))

    def _compare(self, sessions: Rows, answers: Floats) -> None:
        right = expected(self._model, sessions, self._steps[sessions])
        wrong = np.abs(answers - right).max(axis=1) > TOLERANCE * np.abs(right).max(axis=1)
        if wrong.any():
            raise BenchError(f"{wrong.sum()} of {len(sessions)} sessions predict something else than a lone run")


def values_at(sessions: Rows, steps: Rows) -> Floats:
    """`values`, each session at a step of its own."""
    found = np.empty(len(sessions))
    for step in np.unique(steps).tolist():
        found[steps == step] = values(sessions[steps == step], step)
    return found


def page(scale: Scale, figures: list[tuple[str, str]]) -> str:
    """What the run found, as markdown."""
    rows = [[what, figure] for what, figure in figures]
    return f"""# {scale.sessions:,} sessions, {scale.arena:,} places in the arena

{MODEL}, SQLite, {platform.machine()}, Python {platform.python_version()}; predictions were compared with lone runs.

{table(["", "measured"], rows)}
"""


def main(
    sessions: Annotated[int, typer.Option(help="Live sessions.", min=1)] = 1_000_000,
    arena: Annotated[int, typer.Option(help="Places in the arena.", min=1)] = 100_000,
    folder: Annotated[Path | None, typer.Option(help="Where the store is made; a temporary folder else.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for scale.md.")] = Path("bench/results"),
) -> None:
    """Opens many sessions, most of them in the store alone, and measures memory, disk, opening and bringing back."""
    console = Console()
    columns = (TextColumn("{task.description:26}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        scale = Scale(sessions, arena, Path(scratch))
        run = Run(scale, progress)
        try:
            uvloop.run(run.whole())
        except BenchError as error:
            raise SystemExit(f"bench.scale: {error}") from error
    text = page(scale, run.figures)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.md").write_text(text)
    console.print(Markdown(text))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
