"""What the client's tests share."""

import socket
from collections.abc import AsyncIterator

import pytest
from tests.client.fake import Fake, Serving

from hiddenstate import AsyncClient


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
