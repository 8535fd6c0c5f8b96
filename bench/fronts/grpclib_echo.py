"""The echo server on grpclib, gRPC in pure Python over h2. `python grpclib_echo.py PORT REPLIES`, as `bench.echo`."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import uvloop
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

PATH = "/hiddenstate.v1.HiddenStateService/Stream"


class Bytes(CodecBase):
    """Messages stay as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type) -> bytes:  # noqa: ARG002
        return message

    def decode(self, data: bytes, message_type: type) -> bytes:  # noqa: ARG002
        return data


class Echo:
    """The service."""

    def __init__(self, replies: list[bytes]) -> None:
        self._replies = replies

    async def stream(self, stream: Any) -> None:
        """Answers each message."""
        async for _ in stream:
            for reply in self._replies:
                await stream.send_message(reply)

    def __mapping__(self) -> dict[str, Handler]:
        return {PATH: Handler(self.stream, Cardinality.STREAM_STREAM, bytes, bytes)}


async def serve(port: int, replies: list[bytes]) -> None:
    """Until killed."""
    server = Server([Echo(replies)], codec=Bytes())
    await server.start("localhost", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), [base64.b64decode(one) for one in json.loads(Path(sys.argv[2]).read_text())]))
