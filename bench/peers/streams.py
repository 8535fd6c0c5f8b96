"""A client with one gRPC stream, which carries one message and its answer at a time."""

import asyncio
from typing import Self

from bench.grpc_stream import GrpcStream


class Stream:
    """One stream on a connection of its own."""

    def __init__(self, path: str) -> None:
        self._answer: asyncio.Future[bytes] | None = None
        self._protocol = GrpcStream(path, self._received)
        self._protocol.ended.add_done_callback(self._ended)

    @classmethod
    async def connected(cls, port: int, path: str) -> Self:
        """Raises ConnectionError when nobody listens."""
        stream = cls(path)
        await asyncio.get_running_loop().create_connection(lambda: stream._protocol, "localhost", port)
        return stream

    async def ask(self, message: bytes) -> bytes:
        """The answer to a message; StreamEnded when the server ends the stream instead."""
        if self._protocol.ended.done():
            self._protocol.ended.result()
        self._answer = asyncio.get_running_loop().create_future()
        self._protocol.send(message)
        return await self._answer

    def _received(self, message: bytes) -> None:
        if self._answer is None or self._answer.done():
            raise RuntimeError("an answer that nobody waits for")
        self._answer.set_result(message)

    def _ended(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception()
        if error and self._answer and not self._answer.done():
            self._answer.set_exception(error)
