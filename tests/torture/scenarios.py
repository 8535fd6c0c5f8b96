"""What is done to servers, networks and stores while sessions stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.torture.clients import Crowd, Load
from tests.torture.envoy import Envoy
from tests.torture.network import CuttingProxy
from tests.torture.processes import Redis, Server, in_small_tmpfs
from tests.torture.reference import LoneModel

GRACE_SECONDS = 10.0
STORE_HEALTH = "hiddenstate.store"


@dataclass(frozen=True)
class Plan:
    """One run of a scenario; the same plan does the same things again, as far as the machine's timing allows."""

    folder: Path
    """For stores and logs."""
    models: Path
    lone: Mapping[str, LoneModel]
    seed: int
    count: int
    """Kills, cuts or restarts in a row."""
    load: Load
    progress: Callable[[int], None] = lambda _: None
    """Told how many are done."""

    @property
    def random(self) -> np.random.Generator:
        """For choices of the scenario."""
        return np.random.default_rng(self.seed)

    def crowd(self, address: str | list[str]) -> Crowd:
        """The sessions that stream."""
        return Crowd(address, self.lone, self.load, self.seed)


@dataclass(frozen=True)
class Outcome:
    """What a scenario did, once every session was found to be right."""

    disturbances: int
    sessions: int
    observations: int
    answers_lost: int
    pauses: NDArray[np.float64]
    """Seconds, for every session and disturbance."""

    def pause(self, quantile: float) -> float:
        """Seconds that this share of the pauses does not exceed."""
        return float(np.quantile(self.pauses, quantile))


def outcome(crowd: Crowd, disturbances: int, moments: list[float]) -> Outcome:
    """Once the crowd has been checked."""
    return Outcome(disturbances, len(crowd.lives), crowd.observations, crowd.answers_lost, crowd.pauses(moments))


async def killed(plan: Plan, durability: str) -> Outcome:
    """SIGKILL at random moments, now and then while it still starts; SQLite."""
    choices, moments = plan.random, []
    server = Server(plan.folder, plan.models, "--durability", durability)
    async with server.running(), plan.crowd(server.address) as crowd:
        for number in range(plan.count):
            if choices.random() < 0.7:
                await crowd.moved_on()  # else some sessions have not even been resumed
            await crowd.during(choices.uniform(0, 1.0))
            moments.append(time.monotonic())
            server.kill()
            await crowd.during(choices.uniform(0, 0.2))
            server.spawn()
            if choices.random() < 0.1:
                await crowd.during(choices.uniform(0, 2.0))
                server.kill()
                server.spawn()
            await server.ready()
            plan.progress(number + 1)
        await crowd.moved_on()
    return outcome(crowd, len(moments), moments)


async def network_cut(plan: Plan) -> Outcome:
    """Connections that end in the middle of a frame, with a server that dies now and then behind them."""
    choices, moments = plan.random, []
    server = Server(plan.folder, plan.models)
    async with (
        server.running(),
        CuttingProxy(server.port, plan.seed) as proxy,
        plan.crowd(proxy.address) as crowd,
    ):
        await crowd.moved_on()  # a client that never reached its server gives up at once
        proxy.cutting = True
        while proxy.cuts < plan.count:
            moments.append(time.monotonic())
            await crowd.until(proxy.another_cut())
            if choices.random() < 0.05:
                server.kill()
                await server.start()
            plan.progress(proxy.cuts)
        proxy.cutting = False
        await crowd.moved_on()
    return outcome(crowd, proxy.cuts, moments)


async def worker_killed(plan: Plan) -> Outcome:
    """One of two workers dies by SIGKILL, again and again."""
    choices, moments = plan.random, []
    server = Server(plan.folder, plan.models, "--workers", "2")
    async with server.running(), plan.crowd(server.address) as crowd:
        for number in range(plan.count):
            await crowd.during(choices.uniform(0.05, 1.0))
            moments.append(time.monotonic())
            workers = server.workers()
            workers[int(choices.integers(len(workers)))].kill()
            await crowd.moved_on()
            await crowd.until(lambda: len(server.workers()) == 2)
            plan.progress(number + 1)
        await crowd.moved_on()
    return outcome(crowd, len(moments), moments)


async def drained(plan: Plan) -> Outcome:
    """SIGTERM while sessions stream: the server flushes, exits with 0 within its grace time, and starts again."""
    choices, moments = plan.random, []
    server = Server(plan.folder, plan.models, "--drain-timeout", f"{GRACE_SECONDS}s")
    async with server.running(), plan.crowd(server.address) as crowd:
        for number in range(plan.count):
            await crowd.moved_on()
            await crowd.during(choices.uniform(0, 1.0))
            moments.append(time.monotonic())
            assert await server.stop() == 0, server.printed()
            assert time.monotonic() - moments[-1] < GRACE_SECONDS
            await server.start()
            plan.progress(number + 1)
        await crowd.moved_on()
    return outcome(crowd, len(moments), moments)


async def disk_full(plan: Plan) -> Outcome:
    """The disk fills up: the server says so, goes on, and recovers by itself once there is room again."""
    moments = []
    mount = plan.folder / "disk"
    store = f"sqlite:///{mount / 'sessions.db'}"
    server = Server(plan.folder, plan.models, "--store", store, launcher=in_small_tmpfs(mount, "16m"))
    async with server.running(), plan.crowd(server.address) as crowd:
        ballast = Path(f"/proc/{server.process.pid}/root{mount}/ballast")
        for number in range(plan.count):
            await crowd.moved_on()
            moments.append(time.monotonic())
            fill(ballast)
            await crowd.until(lambda: server.is_healthy(STORE_HEALTH, False))
            assert await server.is_healthy("")
            await crowd.moved_on()
            make_room(ballast)
            await crowd.until(lambda: server.is_healthy(STORE_HEALTH))
            plan.progress(number + 1)
        await crowd.moved_on()
        assert await server.metric("hiddenstate_store_errors_total") > 0
    return outcome(crowd, len(moments), moments)


async def store_killed(plan: Plan) -> Outcome:
    """The Redis-protocol store dies by SIGKILL and comes back; now and then the server with it."""
    choices, moments = plan.random, []
    store = Redis(plan.folder)
    server = Server(plan.folder, plan.models, "--store", store.url)
    async with store.running(), server.running(), plan.crowd(server.address) as crowd:
        for number in range(plan.count):
            await crowd.during(choices.uniform(0.05, 1.0))
            moments.append(time.monotonic())
            store.kill()
            await crowd.during(choices.uniform(0, 0.5))
            both = choices.random() < 0.3
            if both:
                server.kill()
            await store.start()
            if both:
                await server.start()
            plan.progress(number + 1)
        await crowd.until(lambda: server.is_healthy(STORE_HEALTH))
        await crowd.moved_on()
    return outcome(crowd, len(moments), moments)


async def rolling_restart(plan: Plan) -> Outcome:
    """Two replicas behind Envoy, restarted in turn while sessions stream through it."""
    moments = []
    store = Redis(plan.folder)
    replicas = [Server(plan.folder, plan.models, "--store", store.url, name=f"replica-{i}") for i in range(2)]
    envoy = Envoy(plan.folder, [replica.port for replica in replicas])
    async with AsyncExitStack() as running:
        for program in (store, *replicas, envoy):
            await running.enter_async_context(program.running())
        async with plan.crowd(envoy.address) as crowd:
            await crowd.moved_on()
            for number in range(plan.count):
                replica = replicas[number % 2]
                moments.append(time.monotonic())
                assert await replica.stop() == 0, replica.printed()
                await replica.start()
                await crowd.until(lambda: both_healthy(envoy))
                plan.progress(number + 1)
            await crowd.moved_on()
    return outcome(crowd, len(moments), moments)


async def both_healthy(envoy: Envoy) -> bool:
    """Whether the next replica may be restarted."""
    return await envoy.healthy() == 2


def fill(path: Path) -> None:
    """Writes to a file until the disk is full."""
    with path.open("ab", buffering=0) as file:
        for size in (65_536, 512):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def make_room(path: Path) -> None:
    """Removes what `fill` wrote."""
    path.unlink()


SCENARIOS: Mapping[str, Callable[[Plan], Coroutine[Any, Any, Outcome]]] = {
    "kill-behind": partial(killed, durability="behind"),
    "kill-every-step": partial(killed, durability="every-step"),
    "network-cut": network_cut,
    "worker-killed": worker_killed,
    "drained": drained,
    "disk-full": disk_full,
    "store-killed": store_killed,
    "rolling-restart": rolling_restart,
}
"""By the name that `make torture` takes."""
