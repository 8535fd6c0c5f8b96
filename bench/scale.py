"""More sessions than the arena holds: `python -m bench.scale` opens a million and keeps a tenth of them in the arena.

Every session has seen a few values of its own. Some, chosen at random wherever they are, are fed one more and must
predict what a lone run predicts. Then the server is killed, started again on the same store, and asked once more.
"""

import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import typer
import uvloop
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.grpc_stream import GrpcStream
from bench.load import SERVICE
from bench.processes import BenchError, Started, free_port, started
from bench.report import table
from bench.usage import Usage
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.runtimes import ValueOutputs
from hiddenstate_server.settings import load
from hiddenstate_server.versions.repository import LoadedModel, load_models

MODEL = "next-value"
STEPS = 3
PAUSE_SECONDS = 0.05
SETTLING_SECONDS = 12.0
"""Until the server has given back what a crowd on its way to the store took."""
LEASE_SECONDS = 86_400
FRAME = 16_384
PER_STREAM = 4 * FRAME
SINGLES, FRAMES, FRAME_OF_CHOSEN = 2_000, 16, 1_024
TOLERANCE = 1e-5
"""Of a prediction's location and scale, relative to the larger of value and scale."""

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def values(sessions: Rows, step: int) -> Floats:
    """What each session observes at a step, counted from 1: a level and a wave of its own."""
    waves: Floats = np.sin(0.37 * (sessions % 1009) + step)
    return 20.0 + sessions % 97 + 5.0 * waves


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


class Holder:
    """A stream with sessions open on it under handles from 0 on."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        """By handle."""
        self._refused: list[int] = []
        self._done = asyncio.Event()
        self._left = 0
        self._answers: list[pb.Predictions] = []
        self._durable = np.empty(0, np.int64)

    async def connect(self, port: int) -> None:
        """Opens the stream."""
        loop = asyncio.get_running_loop()
        _, self._stream = await loop.create_connection(
            lambda: GrpcStream(f"/{SERVICE}/Stream", self._received), "localhost", port
        )

    async def open(self, count: int) -> None:
        """Opens so many new sessions, again and again where the store does not keep up."""
        for first in range(0, count, FRAME):
            handles = np.arange(first, min(first + FRAME, count), dtype="<u4")
            while len(handles):
                frame = pb.Open(handles=handles.tobytes(), model=MODEL, mode=pb.OPEN_MODE_CREATE)
                frame.idle_timeout.seconds = LEASE_SECONDS
                await self._asked(pb.StreamRequest(open=frame), len(handles))
                handles, self._refused = np.array(self._refused, "<u4"), []
                await asyncio.sleep(PAUSE_SECONDS if len(handles) else 0)

    async def resume(self, ids: list[str]) -> None:
        """Takes sessions over, under the handles from 0 on."""
        frame = pb.Open(handles=np.arange(len(ids), dtype="<u4").tobytes(), session_ids=ids, mode=pb.OPEN_MODE_RESUME)
        await self._asked(pb.StreamRequest(open=frame), len(ids))

    async def observe(self, handles: Rows, observed: Floats) -> Floats:
        """Feeds one value to each session; location and scale [n, 2]."""
        self._answers = []
        frame = pb.Observe(handles=handles.astype("<u4").tobytes(), values=observed.astype("<f8").tobytes())
        await self._asked(pb.StreamRequest(observe=frame), len(handles))
        answered = np.concatenate([np.frombuffer(part.handles, "<u4") for part in self._answers])
        columns = [
            np.concatenate([np.frombuffer(part.locations, "<f8") for part in self._answers]),
            np.concatenate([np.frombuffer(part.scales, "<f8") for part in self._answers]),
        ]
        return np.stack(columns, axis=1)[np.argsort(answered)][np.argsort(np.argsort(handles))]

    async def durable(self) -> Rows:
        """Up to which step each of its sessions is in the store, by handle."""
        await self._asked(pb.StreamRequest(heartbeat=pb.Heartbeat()), 1)
        return self._durable

    def close(self) -> None:
        """Ends the stream; its sessions live on."""
        self._stream.close()

    async def _asked(self, request: pb.StreamRequest, answers: int) -> None:
        self._left = answers
        self._done.clear()
        self._stream.send(request.SerializeToString())
        either: list[asyncio.Future[Any]] = [asyncio.create_task(self._done.wait()), self._stream.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._stream.ended.done():
            self._stream.ended.result()

    def _received(self, message: bytes) -> None:
        response = pb.StreamResponse.FromString(message)
        for fault in response.faults:
            if fault.status.code != grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]:
                raise RuntimeError(f"the server refused: {fault.status.message}")
            self._refused.append(fault.handle)
            self._left -= 1
        for opened in response.opened:
            self.ids.update(zip(np.frombuffer(opened.handles, "<u4").tolist(), opened.session_ids, strict=True))
            self._left -= len(opened.session_ids)
        for part in response.observed:
            self._answers.append(part)
            self._left -= len(part.handles) // 4
        if response.HasField("leases"):
            self._durable = np.empty(len(self.ids), np.int64)
            renewed = np.frombuffer(response.leases.handles, "<u4")
            self._durable[renewed] = np.frombuffer(response.leases.durable_steps, "<u8")
            self._left -= 1
        if self._left <= 0:
            self._done.set()


@dataclass(frozen=True)
class Scale:
    """How many sessions, and how many of them in the arena."""

    sessions: int
    arena: int
    folder: Path

    @contextmanager
    def server(self) -> Iterator[Started]:
        """A server on the store in `folder`."""
        port = free_port()
        program = Path(sys.executable).with_name("hiddenstate-server")
        flags = ["--port", str(port), "--metrics-port", "0", "--log-level", "warning"]
        flags += ["--store", f"sqlite:///{self.folder / 'sessions.db'}", "--max-sessions", str(self.arena)]
        with started([program, *flags], [port], self.folder / "server.log") as server:
            yield server

    @property
    def on_disk(self) -> int:
        """Bytes of the store."""
        return sum(file.stat().st_size for file in self.folder.glob("sessions.db*"))


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
                holder.close()
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
        holder.close()

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
