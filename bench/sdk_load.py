"""The same closed loops through the SDK: all sessions of one AsyncClient, each with one observation under way.

`python -m bench.sdk_load '{"port": ..., ...}'` takes the fields of `bench.load.Load`, of which `streams` is the number
of sessions, and prints those of `Measured`.
"""

import asyncio
import json
import sys
import time

import numpy as np
import psutil
import uvloop

from bench.load import WARM_UP_SECONDS, Load, Measured, Part, measured, printed
from bench.usage import Usage
from hiddenstate import AsyncClient
from hiddenstate.session import AsyncSession


class Loop:
    """One session's closed loop."""

    def __init__(self, session: AsyncSession, seed: int) -> None:
        rng = np.random.default_rng(seed)
        words = session.model.vocabulary
        self._inputs = words.words[:64] if words else rng.normal(20.0, 5.0, 64).tolist()
        self._session = session
        self.latencies: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        session, latencies, clock = self._session, self.latencies, time.perf_counter
        while True:
            for value in self._inputs:
                start = clock()
                await session.observe(value)
                latencies.append(clock() - start)


async def generate(load: Load) -> Measured:
    """Puts the load on for a warm-up and then for `seconds`."""
    server, generator = Usage(load.pid), Usage(psutil.Process().pid)
    async with AsyncClient(f"localhost:{load.port}", timeout=120) as client, asyncio.TaskGroup() as tasks:
        sessions = await asyncio.gather(*(client.session(load.model) for _ in range(load.streams)))
        loops = [Loop(session, seed) for seed, session in enumerate(sessions)]
        running = [tasks.create_task(loop.run()) for loop in loops]
        await asyncio.sleep(WARM_UP_SECONDS)
        for loop in loops:
            loop.latencies.clear()
        before = time.perf_counter(), server.cpu(), generator.cpu()
        await asyncio.sleep(load.seconds)
        seconds, server_cpu, generator_cpu = (
            b - a for a, b in zip(before, (time.perf_counter(), server.cpu(), generator.cpu()), strict=True)
        )
        latencies = [latency for loop in loops for latency in loop.latencies]
        for task in running:
            task.cancel()
    return measured([Part(len(latencies), seconds, latencies, server_cpu, generator_cpu, [])])


if __name__ == "__main__":
    printed(uvloop.run(generate(Load(**json.loads(sys.argv[1])))))
