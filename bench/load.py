"""The load generator, processes of its own: closed loops of frames on streams, each stream a connection.

`python -m bench.load '{"port": ..., ...}'` takes the fields of `Load` and prints those of `Measured`, both as JSON.
"""

import asyncio
import base64
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop

from bench.grpc_stream import GrpcStream
from bench.usage import Usage
from hiddenstate_proto import hiddenstate_pb2 as pb

SERVICE = "hiddenstate.v1.HiddenStateService"
WARM_UP_SECONDS = 0.5
DIFFERENT_FRAMES = 64
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Load:
    """What to send: every stream keeps one frame on its way, with one observation for each of its sessions."""

    port: int
    pid: int
    """Whose CPU and memory to watch."""
    model: str
    vocabulary: int
    """Tokens are drawn from this many; 0 for a model of values, of one column."""
    streams: int
    rows: int
    """Sessions per stream, so observations per frame."""
    seconds: float
    opens: bool = True
    """Whether sessions are opened first; an echo server has none."""
    processes: int = 1
    """That share the streams."""


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    observations: int
    seconds: float
    latency_ms: dict[str, float]
    """From a frame's sending to the last of its answers."""
    server_cpu: float
    """Seconds of all threads and children, user and system."""
    generator_cpu: float
    """The same of all processes that make the load."""
    replies: list[str]
    """The answers to one frame, base64."""


class Part(NamedTuple):
    """What one process of the generator found; all measure at the same time."""

    observations: int
    seconds: float
    latencies: list[float]
    server_cpu: float
    generator_cpu: float
    replies: list[bytes]


class LoadedStream:
    """One stream's closed loop."""

    def __init__(self, load: Load, seed: int) -> None:
        self.load = load
        self.latencies: list[float] = []
        self.observations = 0
        self.opened = asyncio.Event()
        self.replies: list[bytes] = []
        """To the last frame that is answered in full."""
        self._replies: list[bytes] = []
        self.protocol: GrpcStream
        self._handles = np.arange(load.rows, dtype="<u4").tobytes()
        self._frames = cycle(self._observe_frames(np.random.default_rng(seed)))
        self._answered = 0
        self._sent = 0.0

    def connect(self) -> GrpcStream:
        """The protocol of this stream's connection."""
        self.protocol = GrpcStream(f"/{SERVICE}/Stream", self._opening if self.load.opens else self._observed)
        return self.protocol

    def open(self) -> None:
        """Opens the sessions; sets `opened` when they are."""
        request = pb.Open(handles=self._handles, model=self.load.model, mode=pb.OPEN_MODE_CREATE)
        self.protocol.send(pb.StreamRequest(open=request).SerializeToString())

    def observe(self) -> None:
        """Sends the next frame."""
        self._answered = 0
        self._sent = time.perf_counter()
        self.protocol.send(next(self._frames))

    def _observe_frames(self, rng: np.random.Generator) -> Iterator[bytes]:
        for _ in range(DIFFERENT_FRAMES if self.load.rows < 4096 else 1):
            observe = pb.Observe(handles=self._handles)
            if self.load.vocabulary:
                observe.tokens = rng.integers(0, self.load.vocabulary, self.load.rows, "<i4").tobytes()
            else:
                observe.values = rng.normal(20.0, 5.0, self.load.rows).astype("<f8").tobytes()
            yield pb.StreamRequest(observe=observe).SerializeToString()

    def _opening(self, message: bytes) -> None:
        response = parsed(message)
        self._answered += sum(len(opened.session_ids) for opened in response.opened)
        if self._answered == self.load.rows:
            self.protocol.received = self._observed
            self.opened.set()

    def _observed(self, message: bytes) -> None:
        response = parsed(message)
        rows = sum(len(predictions.handles) // 4 for predictions in response.observed)
        self._replies.append(message)
        self.observations += rows
        self._answered += rows
        if self._answered == self.load.rows:
            self.latencies.append(time.perf_counter() - self._sent)
            self.replies, self._replies = self._replies, []
            self.observe()


def parsed(message: bytes) -> pb.StreamResponse:
    """The server's reply; raises RuntimeError for a fault, since a load without errors was asked for."""
    response = pb.StreamResponse.FromString(message)
    if response.faults:
        raise RuntimeError(f"the server refused: {response.faults[0].status.message}")
    return response


async def opened_streams(load: Load, first: int = 0) -> list[LoadedStream]:
    """Connects every `processes`-th stream from the `first` on, and opens their sessions."""
    streams = [LoadedStream(load, seed) for seed in range(first, load.streams, load.processes)]
    for stream in streams:
        await asyncio.get_running_loop().create_connection(stream.connect, "localhost", load.port)
    if load.opens:
        for stream in streams:
            stream.open()
            await first_of(stream.opened.wait(), streams)
    return streams


async def generate(load: Load, index: int) -> Part:
    """Puts one process's share of the load on: for a warm-up, and then for `seconds` together with the others.

    It takes longer if a stream has no frame answered by then.
    """
    server, generator = Usage(load.pid), Usage(psutil.Process().pid)
    streams = await opened_streams(load, index)
    await first_of(together(), streams)
    for stream in streams:
        stream.observe()
    await first_of(asyncio.sleep(WARM_UP_SECONDS), streams)
    await first_of(together(), streams)
    for stream in streams:
        stream.latencies.clear()
    before = time.perf_counter(), observed(streams), server.cpu(), generator.cpu()
    await first_of(asyncio.sleep(load.seconds), streams)
    while not all(stream.latencies for stream in streams):
        await first_of(asyncio.sleep(WARM_UP_SECONDS), streams)
    after = time.perf_counter(), observed(streams), server.cpu(), generator.cpu()
    latencies = [latency for stream in streams for latency in stream.latencies]
    await first_of(together(), streams)
    seconds, observations, server_cpu, generator_cpu = (b - a for a, b in zip(before, after, strict=True))
    return Part(int(observations), seconds, latencies, server_cpu, generator_cpu, streams[0].replies)


async def together() -> None:
    """Waits for the other processes, while the load goes on."""
    await asyncio.to_thread(_barrier.wait)


def measured(parts: Sequence[Part]) -> Measured:
    """The parts as one."""
    latencies = np.concatenate([part.latencies for part in parts])
    return Measured(
        observations=sum(part.observations for part in parts),
        seconds=float(np.mean([part.seconds for part in parts])),
        latency_ms={name: float(np.quantile(latencies, q)) * 1e3 for name, q in QUANTILES.items()},
        server_cpu=float(np.mean([part.server_cpu for part in parts])),
        generator_cpu=sum(part.generator_cpu for part in parts),
        replies=[base64.b64encode(message).decode() for message in parts[0].replies],
    )


def observed(streams: list[LoadedStream]) -> int:
    """Observations answered so far."""
    return sum(stream.observations for stream in streams)


async def first_of(wait: Coroutine[Any, Any, Any], streams: list[LoadedStream]) -> None:
    """Waits for `wait`, but raises at once when a stream has ended."""
    waiting = asyncio.ensure_future(wait)
    done, _ = await asyncio.wait(
        [waiting, *(stream.protocol.ended for stream in streams)], return_when=asyncio.FIRST_COMPLETED
    )
    for future in done:
        future.result()


def _share(barrier: Barrier) -> None:
    """Of a process: whom it waits for."""
    global _barrier
    _barrier = barrier


def _run(load: Load, index: int) -> Part:
    try:
        return uvloop.run(generate(load, index))
    except BaseException:
        _barrier.abort()  # nobody is to wait for this one
        raise


def put_on(load: Load) -> Measured:
    """The whole load."""
    # Forked, not spawned: what the processes need is imported already, and nothing runs yet that minds a fork.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(load.processes)
    with ProcessPoolExecutor(load.processes, context, _share, (barrier,)) as pool:
        running = [pool.submit(_run, load, index) for index in range(load.processes)]
        failures = [error for part in running if (error := part.exception()) is not None]
        for error in sorted(failures, key=lambda error: isinstance(error, BrokenBarrierError)):
            raise error  # the cause, where others only waited in vain
        return measured([part.result() for part in running])


_barrier: Barrier


def printed(result: Measured) -> None:
    """Prints it as JSON."""
    # uvloop leaves a pipe non-blocking, and what does not fit into it at once would be lost.
    os.set_blocking(sys.stdout.fileno(), True)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    printed(put_on(Load(**json.loads(sys.argv[1]))))
