"""A TCP proxy that cuts connections in the middle of what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

_PIECE = 65_536
_SILENCE = 0.3


class CuttingProxy:
    """Forwards to 127.0.0.1:`port`; while `cutting`, every connection ends after a random number of bytes.

    The bytes of both directions count, so that most cuts fall into the middle of a frame; some connections fall silent
    for a moment first, and every piece is delayed a little.
    """

    def __init__(self, port: int, seed: int, *, mean_bytes: int = 20_000) -> None:
        self.cutting = False
        self.cuts = 0
        self._port = port
        self._mean = mean_bytes
        self._random = np.random.default_rng(seed)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def another_cut(self) -> Callable[[], bool]:
        """Tells whether there was a cut since now."""
        before = self.cuts
        return lambda: self.cuts > before

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._connection(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()  # a streams handler must not end cancelled: asyncio would log it as an error
        finally:
            self._connections.discard(task)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the server is down: so is the way to it
            writer.transport.abort()
            return
        budget = _Budget(int(self._random.exponential(self._mean)) + 1)
        ways = [
            asyncio.create_task(self._forward(reader, onward, budget)),
            asyncio.create_task(self._forward(onward_reader, writer, budget)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, onward):
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: _Budget) -> None:
        """Returns when the connection is to end."""
        try:
            while piece := await reader.read(_PIECE):
                if self.cutting:
                    await asyncio.sleep(self._random.uniform(0, 0.002))
                    piece = piece[: budget.take(len(piece))]
                writer.write(piece)
                await writer.drain()
                if self.cutting and not budget.left:
                    await asyncio.sleep(_SILENCE if self._random.random() < 0.25 else 0.0)
                    self.cuts += 1
                    return
        except OSError:
            return  # the other end is gone


class _Budget:
    """Bytes a connection may still carry."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, wanted: int) -> int:
        """At most `wanted` of what is left."""
        taken = min(wanted, self.left)
        self.left -= taken
        return taken
