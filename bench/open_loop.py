"""An open loop, a process of its own: observations arrive when they are due, however slow the answers are.

Arrivals are a Poisson process, and an answer's latency counts from when its observation was due. A server
that stalls makes all wait that were due meanwhile, where a closed loop would send them later and never know
(coordinated omission).

`python -m bench.open_loop '{"port": ..., ...}'` takes the fields of `Traffic` and prints an `Interval` a line, as JSON.
"""

import asyncio
import json
import random
import selectors
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.grpc_stream import GrpcStream
from bench.load import SERVICE
from bench.processes import lines
from bench.usage import Usage
from hiddenstate_proto import hiddenstate_pb2 as pb

SECONDS_TO_ANSWER = 60.0
"""After the last observation was sent."""
FARTHEST_REWIND = 16
FAULTS_SHOWN = 3


@dataclass(frozen=True)
class Traffic:
    """What arrives, spread at random over the sessions of all streams, each stream a connection."""

    port: int
    pid: int
    """Whose CPU and memory to watch."""
    model: str
    vocabulary: int
    """Tokens are drawn from this many; 0 for a model of values, of one column."""
    rate: float
    """Observations a second, one a message."""
    seconds: float
    streams: int = 64
    sessions: int = 1
    """Of each stream."""
    churn: float = 0.0
    """How many sessions a second are, in turn, closed and replaced by a new one or by a copy, or rewound."""
    warm_up: float = 1.0
    """Seconds before the first interval."""
    every: float = 0.0
    """Seconds of an interval; 0 makes one of the whole."""
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """What was seen in one stretch of time; the last one lasts until everything is answered."""

    at: float
    """Seconds from the first interval's begin to this one's end."""
    answered: int
    waiting: int
    """Sent and not answered yet."""
    p50_ms: float
    p99_ms: float
    worst_ms: float
    late_ms: float
    """How far behind its time the generator sent, 99th percentile: part of every latency, and none of the server's."""
    changes: int
    """Sessions that were replaced, copied or rewound."""
    faults: int
    server_cpu: float
    generator_cpu: float
    resident: int
    """Bytes of the server."""
    messages: list[str] = field(default_factory=list)
    """Of the first faults."""


class Tally:
    """What all streams note."""

    def __init__(self) -> None:
        self.latencies = array("d")
        self.late = array("d")
        self.sent = self.answered = self.changes = self.faults = 0
        self.messages: list[str] = []

    def fault(self, message: str) -> None:
        """Something is not as it should be."""
        self.faults += 1
        if len(self.messages) < FAULTS_SHOWN:
            self.messages.append(message)


class Waiting(NamedTuple):
    """An observation without an answer."""

    due: float
    step: int


class Session:
    """One of a stream's."""

    def __init__(self, handle: int, step: int) -> None:
        self.handle = handle
        self.step = step
        self.waiting: deque[Waiting] = deque()
        self.targets: deque[int] = deque()
        """Steps of rewinds without an answer."""


class Caller:
    """One stream, its sessions, and the answers that they wait for."""

    def __init__(self, traffic: Traffic, chance: random.Random, tally: Tally) -> None:
        self.opened = asyncio.Event()
        """Whether as many sessions are open as there should be."""
        self.stream: GrpcStream
        self._traffic, self._chance, self._tally = traffic, chance, tally
        self._sessions: dict[int, Session] = {}
        self._active: list[Session] = []
        self._free: deque[int] = deque()
        self._handles = 0
        self._time = asyncio.get_running_loop().time

    async def connect(self) -> None:
        """Opens the stream and its sessions."""
        loop = asyncio.get_running_loop()
        self.stream = GrpcStream(f"/{SERVICE}/Stream", self._received)
        await loop.create_connection(lambda: self.stream, "localhost", self._traffic.port)
        for _ in range(self._traffic.sessions):
            self._open()
        await unless_ended(self.opened.wait(), [self.stream])

    def observe(self, due: float) -> None:
        """One session, drawn at random, observes something."""
        session = self._chance.choice(self._active)
        observe = pb.Observe(handles=struct.pack("<I", session.handle))
        if self._traffic.vocabulary:
            observe.tokens = struct.pack("<i", self._chance.randrange(self._traffic.vocabulary))
        else:
            observe.values = struct.pack("<d", self._chance.gauss(20.0, 5.0))
        session.step += 1
        session.waiting.append(Waiting(due, session.step))
        self._tally.sent += 1
        self._tally.late.append(self._time() - due)
        self._send(pb.StreamRequest(observe=observe))

    def change(self) -> None:
        """Something else than an observation happens to a session."""
        if len(self._active) < 2:
            return  # the others are on their way
        self._tally.changes += 1
        self._chance.choice((self._replace, self._copy, self._rewind))()

    def _open(self) -> None:
        handles = struct.pack("<I", self._new_handle())
        self._send(pb.StreamRequest(open=pb.Open(handles=handles, model=self._traffic.model, mode=pb.OPEN_MODE_CREATE)))

    def _replace(self) -> None:
        self._close(self._chance.randrange(len(self._active)))
        self._open()

    def _copy(self) -> None:
        at = self._chance.randrange(len(self._active))
        handles = struct.pack("<I", self._active[at].handle)
        new_handles = struct.pack("<I", self._new_handle())
        self._send(pb.StreamRequest(fork=pb.Fork(handles=handles, new_handles=new_handles)))
        self._close(at)

    def _rewind(self) -> None:
        session = self._chance.choice(self._active)
        session.step -= min(session.step, self._chance.randint(1, FARTHEST_REWIND))
        session.targets.append(session.step)
        rewind = pb.Rewind(handles=struct.pack("<I", session.handle), steps=struct.pack("<Q", session.step))
        self._send(pb.StreamRequest(rewind=rewind))

    def _close(self, at: int) -> None:
        session = self._active.pop(at)
        self._send(pb.StreamRequest(close=pb.Close(handles=struct.pack("<I", session.handle))))

    def _new_handle(self) -> int:
        if self._free:
            return self._free.popleft()
        self._handles += 1
        return self._handles - 1

    def _send(self, request: pb.StreamRequest) -> None:
        self.stream.send(request.SerializeToString())

    def _received(self, message: bytes) -> None:
        now = self._time()
        response = pb.StreamResponse.FromString(message)
        for opened in response.opened:
            for handle, step in rows(opened.handles, opened.steps):
                self._sessions[handle] = Session(handle, step)
                self._active.append(self._sessions[handle])
            if len(self._active) == self._traffic.sessions:
                self.opened.set()
        for part in response.observed:
            for handle, step in rows(part.handles, part.steps):
                waiting = self._sessions[handle].waiting.popleft()
                self._tally.answered += 1
                self._tally.latencies.append(now - waiting.due)
                self._check(waiting.step, step)
        for part in response.rewound:
            for handle, step in rows(part.handles, part.steps):
                self._check(self._sessions[handle].targets.popleft(), step)
        for (handle,) in struct.iter_unpack("<I", response.closed):
            if self._sessions.pop(handle).waiting:
                self._tally.fault("a session was closed before all of it was answered")
            self._free.append(handle)
        for fault in response.faults:
            self._tally.fault(fault.status.message)

    def _check(self, expected: int, step: int) -> None:
        if step != expected:
            self._tally.fault(f"step {step} was answered where {expected} was due")


def rows(handles: bytes, steps: bytes) -> Iterator[tuple[int, int]]:
    """Handle and step of each row."""
    return zip(memoryview(handles).cast("I"), memoryview(steps).cast("Q"), strict=True)


def arrivals(rate: float, begin: float, end: float, chance: random.Random) -> Iterator[float]:
    """When the events of a Poisson process happen, in seconds from `begin` up to `end`."""
    at = begin + chance.expovariate(rate)
    while at < end:
        yield at
        at += chance.expovariate(rate)


class Schedule:
    """Calls `happen` with each of these times of the loop's clock as soon as it has come.

    What has become due while the loop was busy is caught up with at once, and keeps its times.
    """

    def __init__(self, times: Iterator[float], happen: Callable[[float], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._times, self._happen = times, happen
        self._due = next(times, None)
        self._wait()

    def _wait(self) -> None:
        if self._due is not None:
            self._loop.call_at(self._due, self._catch_up)

    def _catch_up(self) -> None:
        now = self._loop.time()
        while self._due is not None and self._due <= now:
            self._happen(self._due)
            self._due = next(self._times, None)
        self._wait()


class Watch:
    """Cuts what is tallied into intervals."""

    def __init__(self, pid: int, tally: Tally) -> None:
        self._tally = tally
        self._server, self._generator = Usage(pid), Usage(psutil.Process().pid)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._start()

    def _start(self) -> None:
        tally = self._tally
        del tally.latencies[:], tally.late[:]
        self._before = tally.answered, tally.changes, tally.faults, self._server.cpu(), self._generator.cpu()

    def cut(self) -> Interval:
        """Ends an interval and begins the next."""
        tally = self._tally
        after = tally.answered, tally.changes, tally.faults, self._server.cpu(), self._generator.cpu()
        answered, changes, faults, server_cpu, generator_cpu = (b - a for a, b in zip(self._before, after, strict=True))
        p50, p99, worst = quantiles(tally.latencies, (0.5, 0.99, 1.0))
        interval = Interval(
            at=self._loop.time() - self._began,
            answered=int(answered),
            waiting=tally.sent - tally.answered,
            p50_ms=p50,
            p99_ms=p99,
            worst_ms=worst,
            late_ms=quantiles(tally.late, (0.99,))[0],
            changes=int(changes),
            faults=int(faults),
            server_cpu=server_cpu,
            generator_cpu=generator_cpu,
            resident=self._server.resident(),
            messages=tally.messages,
        )
        tally.messages = []
        self._start()
        return interval


def quantiles(seconds: "array[float]", which: tuple[float, ...]) -> tuple[float, ...]:
    """In milliseconds; 0 where there is nothing."""
    return tuple(float(q) * 1e3 for q in np.quantile(seconds, which)) if seconds else (0.0,) * len(which)


@contextmanager
def intervals(traffic: Traffic) -> Iterator[Iterator[Interval]]:
    """Has a process put this load on, and gives what it sees as it comes; BenchError if it fails."""
    with lines("bench.open_loop", json.dumps(asdict(traffic))) as found:
        yield (Interval(**line) for line in found)


def only_interval(traffic: Traffic) -> Interval:
    """What is seen of a load that is measured as a whole."""
    with intervals(traffic) as found:
        (interval,) = found
    return interval


async def generate(traffic: Traffic) -> None:
    """Prints the intervals, each when it is over; raises StreamEnded if the server ends a stream."""
    loop, tally = asyncio.get_running_loop(), Tally()
    chance = random.Random(traffic.seed)  # noqa: S311
    callers = [Caller(traffic, chance, tally) for _ in range(traffic.streams)]
    for caller in callers:
        await caller.connect()
    begin, end = loop.time(), loop.time() + traffic.warm_up + traffic.seconds
    observations = arrivals(traffic.rate, begin, end, random.Random(traffic.seed + 1))  # noqa: S311
    Schedule(observations, lambda due: chance.choice(callers).observe(due))
    if traffic.churn:
        changes = arrivals(traffic.churn, begin, end, random.Random(traffic.seed + 2))  # noqa: S311
        Schedule(changes, lambda _due: chance.choice(callers).change())
    await unless_ended(measure(traffic, tally), [caller.stream for caller in callers])


async def unless_ended(work: Coroutine[Any, Any, object], streams: list[GrpcStream]) -> None:
    """Does the work; raises StreamEnded as soon as one of the streams has ended."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task, *(stream.ended for stream in streams)], return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


async def measure(traffic: Traffic, tally: Tally) -> None:
    """Prints what is tallied, interval by interval."""
    loop = asyncio.get_running_loop()
    began = loop.time() + traffic.warm_up
    await asyncio.sleep(traffic.warm_up)
    watch = Watch(traffic.pid, tally)
    every = traffic.every or traffic.seconds
    for number in range(1, max(1, round(traffic.seconds / every)) + 1):
        await asyncio.sleep(began + number * every - loop.time())
        if number * every + every > traffic.seconds:
            give_up = loop.time() + SECONDS_TO_ANSWER
            while tally.answered < tally.sent and loop.time() < give_up:
                await asyncio.sleep(0.01)
        print(json.dumps(asdict(watch.cut())), flush=True)


if __name__ == "__main__":
    # uvloop's timers, and those of epoll, know no less than a millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(generate(Traffic(**json.loads(sys.argv[1]))))
