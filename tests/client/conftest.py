"""What the client's tests share."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.client.fake import Fake, Serving

from hiddenstate import AsyncClient
from hiddenstate_models.export import random_bundle


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """A fake server on a free port."""
    serving = Serving(Fake())
    await serving.start()
    yield serving
    serving.fake.answering.set()
    await serving.stop()


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[AsyncClient]:
    """A client of the fake server."""
    async with AsyncClient(serving.address, timeout=20.0) as client:
        yield client


@pytest.fixture
def unused_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server with random models: next-word, next-value, weather of two columns, music, forecasts."""
    models = tmp_path_factory.mktemp("served")
    random_bundle(models, "next-word", seed=1)
    random_bundle(models, "next-value", seed=3)
    random_bundle(models, "next-value", name="weather", seed=4, columns=2, targets=[0, 1])
    random_bundle(models, "music", seed=5)
    random_bundle(models, "forecasting", seed=6)
    random_bundle(models, "forecasting", name="outlook", seed=7, columns=2, targets=[1, 0])
    with real_server(models, tmp_path_factory.mktemp("log")) as address:
        yield address


@contextmanager
def real_server(models: Path, logs: Path) -> Iterator[str]:
    """Serves a model folder on a free port; the address."""
    command = [str(Path(sys.executable).with_name("hiddenstate-server")), "--models", str(models)]
    command += ["--port", "0", "--metrics-port", "0", "--host", "127.0.0.1", "--log-level", "warning"]
    log = logs / "server.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while not (found := re.search(r"ready on \S+:(\d+)", log.read_text())):
            if process.poll() is not None:
                pytest.fail(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield f"127.0.0.1:{found[1]}"
        process.terminate()
