"""The load generator: closed loops, one observation of each session under way. Runs in a peer's own environment.

`python -m bench.peers.load WHAT CLIENT '{"port": ..., ...}'` takes one of `answer`, `weigh` and `generate`, a client's
module, and the fields of `Load`; it prints what comes of it as JSON.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import uvloop

from bench.peers.session import Prediction, Session
from bench.usage import Usage

WARM_UP_SECONDS = 1.0
SECONDS_TO_ANSWER = 120
FEW_SESSIONS = 64


@dataclass(frozen=True)
class Load:
    """What to do to a server."""

    port: int
    pid: int
    """Whose CPU and memory to watch."""
    vocabulary: int
    sessions: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    observations: int
    seconds: float
    latency_ms: dict[str, float]
    server_cpu: float
    """Seconds of all threads and children, user and system."""
    generator_cpu: float


class Client:
    """A client's module."""

    def __init__(self, module: str, port: int) -> None:
        self._module = importlib.import_module(module)
        self._port = port

    async def open(self, count: int) -> Sequence[Session]:
        """So many new sessions."""
        return cast(Sequence[Session], await self._module.open_sessions(self._port, count))

    async def wait(self) -> None:
        """Until the server answers: many listen long before they can."""
        give_up = time.monotonic() + SECONDS_TO_ANSWER
        while True:
            try:
                (session,) = await self.open(1)
                await session.observe(0)
                return
            except Exception:
                # Each protocol has its own ways to say not yet.
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(0.2)


async def answer(client: Client, sequences: Sequence[Sequence[int]]) -> list[list[Prediction]]:
    """Each session's predictions after the tokens of its sequence, all sessions at once."""

    async def one(session: Session, tokens: Sequence[int]) -> list[Prediction]:
        return [await session.observe(token) for token in tokens]

    sessions = await client.open(len(sequences))
    return await asyncio.gather(*map(one, sessions, sequences))


async def weigh(client: Client, load: Load) -> dict[str, float]:
    """Resident bytes of the server: with few sessions, and by how many it grows for `each` of those that come then.

    All have observed something, so that what a server makes ready for its first ones is not counted.
    """
    rng = np.random.default_rng(0)
    sizes, kept = [], []
    for count in (FEW_SESSIONS, load.sessions):
        sessions = await client.open(count)
        for session in sessions:
            await session.observe(int(rng.integers(load.vocabulary)))
        kept.append(sessions)
        sizes.append(Usage(load.pid).resident())
    return {"resident": sizes[0], "each": (sizes[1] - sizes[0]) / load.sessions}


async def generate(client: Client, load: Load) -> Measured:
    """Puts the load on for a warm-up and then for `seconds`, longer if a session has no answer by then."""
    latencies: list[list[float]] = [[] for _ in range(load.sessions)]

    async def observe(session: Session, mine: list[float], tokens: Sequence[int]) -> None:
        while True:
            for token in tokens:
                sent = time.perf_counter()
                await session.observe(token)
                mine.append(time.perf_counter() - sent)

    rng = np.random.default_rng(0)
    server, generator = Usage(load.pid), Usage(os.getpid())
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(observe(session, mine, rng.integers(load.vocabulary, size=256).tolist()))
            for session, mine in zip(await client.open(load.sessions), latencies, strict=True)
        ]
        await asyncio.sleep(WARM_UP_SECONDS)
        for mine in latencies:
            mine.clear()
        before = time.perf_counter(), server.cpu(), generator.cpu()
        await asyncio.sleep(load.seconds)
        while not all(latencies):
            await asyncio.sleep(0.1)
        after = time.perf_counter(), server.cpu(), generator.cpu()
        seen = np.array([latency for mine in latencies for latency in mine])
        for task in tasks:
            task.cancel()
    seconds, server_cpu, generator_cpu = (b - a for a, b in zip(before, after, strict=True))
    quantiles = {"p50": 0.5, "p99": 0.99}
    return Measured(
        observations=len(seen),
        seconds=seconds,
        latency_ms={name: float(np.quantile(seen, q)) * 1e3 for name, q in quantiles.items()},
        server_cpu=server_cpu,
        generator_cpu=generator_cpu,
    )


async def main(what: str, module: str, arguments: str) -> object:
    """Does one thing to a server, as soon as it answers."""
    fields = json.loads(arguments)
    sequences = fields.pop("sequences", None)
    load = Load(**fields)
    client = Client(module, load.port)
    await client.wait()
    match what:
        case "answer":
            return await answer(client, sequences)
        case "weigh":
            return await weigh(client, load)
        case _:
            return asdict(await generate(client, load))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(*sys.argv[1:]))))
