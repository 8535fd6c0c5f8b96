"""Bundles with random weights, and real servers on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.server.wire import Wire

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server.process.worker import Worker
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.versions.repository import LoadedModel, load_models


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: next-word in two versions, next-value with one column, weather with two; tunes, outlook."""
    folder = tmp_path_factory.mktemp("models")
    random_bundle(folder, "next-word", version=1, seed=1)
    random_bundle(folder, "next-word", version=2, seed=2)
    random_bundle(folder, "next-value", seed=3)
    random_bundle(folder, "next-value", name="weather", seed=4, columns=2, targets=[0, 1])
    random_bundle(folder, "music", name="tunes", seed=5)
    random_bundle(folder, "forecasting", name="outlook", seed=6, columns=2, targets=[1, 0])
    return folder


@pytest.fixture(scope="session")
def loaded(bundles: Path) -> list[LoadedModel]:
    """The models of `bundles`, loaded once: runtimes keep nothing of a session."""
    return load_models(Settings(models=bundles, max_batch=64))


class Serving:
    """A server in this event loop, and a channel to it."""

    def __init__(self, worker: Worker, port: int) -> None:
        self.worker = worker
        self._running = asyncio.create_task(worker.run())
        self._stopped = False
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(self.channel)
        self.wires: list[Wire] = []

    @property
    def host(self) -> Host:
        return self.worker.host

    def wire(self, *metadata: tuple[str, str]) -> Wire:
        """A new stream."""
        self.wires.append(Wire(self.stub, *metadata))
        return self.wires[-1]

    async def stop(self) -> None:
        """Drains the server, after its host was found in order."""
        if self._stopped:
            return
        self._stopped = True
        for wire in self.wires:
            await wire.cancel()
        await self.settled(lambda host: not host.streams)
        self.host.check_integrity()
        await self.channel.close()
        await self.worker.drain()
        await self._running
        assert self.worker.unsaved == 0

    async def settled(self, holds: Callable[[Host], object]) -> None:
        """Waits until something is true of the host."""
        async with asyncio.timeout(60):
            while not holds(self.host):
                await asyncio.sleep(0.01)


Serve = Callable[..., Awaitable[Serving]]


@pytest.fixture
async def serve(loaded: list[LoadedModel], bundles: Path, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts servers; keyword arguments are settings. They must leave their hosts in order."""
    defaults: dict[str, Any] = {"models": bundles, "max_batch": 64, "metrics_port": 0, "max_sessions": 10_000}
    running: list[Serving] = []

    async def start(**changed: Any) -> Serving:
        folder = tmp_path / f"state-{len(running)}"
        settings = Settings(**(defaults | {"state_folder": folder} | changed))
        worker = Worker(settings, load_models(settings) if "models" in changed else loaded)
        port = await worker.start(["127.0.0.1:0"])
        running.append(Serving(worker, port))
        return running[-1]

    yield start
    for serving in running:
        await serving.stop()
