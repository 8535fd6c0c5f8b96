"""Streams that do nothing, a process of its own: `python -m bench.idle_streams PORT` takes one command a line.

`open COUNT` connects so many more streams, each with one session of next-value; `observe COUNT` has so many of them,
chosen at random, observe one after the other, each twice. Every command is answered by a line of JSON: for each stream
that observed, the milliseconds that both took.
"""

import asyncio
import json
import random
import struct
import sys
import time
from typing import Any

import uvloop

from bench.grpc_stream import GrpcStream
from bench.holder import LEASE_SECONDS, MODEL
from bench.load import SERVICE, parsed
from hiddenstate_proto import hiddenstate_pb2 as pb

HANDLE = struct.pack("<I", 0)


class IdleStream:
    """One connection, one stream, one session."""

    def __init__(self) -> None:
        self._stream: GrpcStream
        self._answer: asyncio.Future[pb.StreamResponse]

    async def open(self, port: int) -> None:
        """Connects and opens the session."""
        loop = asyncio.get_running_loop()
        _, self._stream = await loop.create_connection(
            lambda: GrpcStream(f"/{SERVICE}/Stream", self._received), "localhost", port
        )
        frame = pb.Open(handles=HANDLE, model=MODEL, mode=pb.OPEN_MODE_CREATE)
        frame.idle_timeout.seconds = LEASE_SECONDS
        await self._asked(pb.StreamRequest(open=frame))

    async def observe(self) -> float:
        """Milliseconds until the answer."""
        begun = time.perf_counter()
        await self._asked(pb.StreamRequest(observe=pb.Observe(handles=HANDLE, values=struct.pack("<d", 20.0))))
        return (time.perf_counter() - begun) * 1e3

    async def _asked(self, request: pb.StreamRequest) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        self._stream.send(request.SerializeToString())
        either: list[asyncio.Future[Any]] = [self._answer, self._stream.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._stream.ended.done():
            self._stream.ended.result()

    def _received(self, message: bytes) -> None:
        self._answer.set_result(parsed(message))


async def main(port: int) -> None:
    """Does what it is told until there is no more to read."""
    streams: list[IdleStream] = []
    chance = random.Random(0)  # noqa: S311
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, count = line.split()
        latencies = []
        if command == "open":
            for _ in range(int(count)):
                streams.append(IdleStream())
                await streams[-1].open(port)
        else:
            chosen = chance.sample(streams, min(int(count), len(streams)))
            latencies = [(await stream.observe(), await stream.observe()) for stream in chosen]
        print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
