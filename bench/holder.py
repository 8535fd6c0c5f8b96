"""A stream with thousands of sessions of the shipped next-value model, for benchmarks of how many there can be."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bench.grpc_stream import GrpcStream
from bench.load import SERVICE
from hiddenstate_proto import hiddenstate_pb2 as pb

MODEL = "next-value"
FRAME = 16_384
PER_STREAM = 4 * FRAME
LEASE_SECONDS = 86_400
PAUSE_SECONDS = 0.05

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def values(sessions: Rows, step: int) -> Floats:
    """What each session observes at a step, counted from 1: a level and a wave of its own."""
    waves: Floats = np.sin(0.37 * (sessions % 1009) + step)
    return 20.0 + sessions % 97 + 5.0 * waves


class Holder:
    """A stream with sessions open on it under handles from 0 on."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        """By handle."""
        self._refused: list[int] = []
        self._done = asyncio.Event()
        self._left = 0
        self._answers: list[pb.Predictions] = []
        self._durable = np.empty(0, np.int64)

    async def connect(self, port: int) -> None:
        """Opens the stream."""
        loop = asyncio.get_running_loop()
        _, self._stream = await loop.create_connection(
            lambda: GrpcStream(f"/{SERVICE}/Stream", self._received), "localhost", port
        )

    async def open(self, count: int) -> None:
        """Opens so many more sessions, under the handles that follow."""
        await self._opened(count, lambda _: pb.Open(model=MODEL, mode=pb.OPEN_MODE_CREATE))

    async def resume(self, ids: Sequence[str]) -> None:
        """Takes sessions over, under the handles that follow."""
        first = len(self.ids)

        def frame(handles: NDArray[np.uint32]) -> pb.Open:
            return pb.Open(session_ids=[ids[handle - first] for handle in handles], mode=pb.OPEN_MODE_RESUME)

        await self._opened(len(ids), frame)

    async def close(self, handles: Rows) -> None:
        """Ends sessions."""
        for at in range(0, len(handles), FRAME):
            part = handles[at : at + FRAME].astype("<u4")
            await self._asked(pb.StreamRequest(close=pb.Close(handles=part.tobytes())), len(part))

    async def _opened(self, count: int, frame: Callable[[NDArray[np.uint32]], pb.Open]) -> None:
        """Sends Opens of as many sessions, again and again where the store does not keep up."""
        begin = len(self.ids)
        for first in range(begin, begin + count, FRAME):
            handles = np.arange(first, min(first + FRAME, begin + count), dtype="<u4")
            while len(handles):
                request = frame(handles)
                request.handles = handles.tobytes()
                request.idle_timeout.seconds = LEASE_SECONDS
                await self._asked(pb.StreamRequest(open=request), len(handles))
                handles, self._refused = np.array(self._refused, "<u4"), []
                await asyncio.sleep(PAUSE_SECONDS if len(handles) else 0)

    async def observe(self, handles: Rows, observed: Floats) -> Floats:
        """Feeds one value to each session; location and scale [n, 2]."""
        self._answers = []
        frame = pb.Observe(handles=handles.astype("<u4").tobytes(), values=observed.astype("<f8").tobytes())
        await self._asked(pb.StreamRequest(observe=frame), len(handles))
        answered = np.concatenate([np.frombuffer(part.handles, "<u4") for part in self._answers])
        columns = [
            np.concatenate([np.frombuffer(part.locations, "<f8") for part in self._answers]),
            np.concatenate([np.frombuffer(part.scales, "<f8") for part in self._answers]),
        ]
        return np.stack(columns, axis=1)[np.argsort(answered)][np.argsort(np.argsort(handles))]

    async def durable(self) -> Rows:
        """Up to which step each of its sessions is in the store, by handle."""
        await self._asked(pb.StreamRequest(heartbeat=pb.Heartbeat()), 1)
        return self._durable

    def leave(self) -> None:
        """Ends the stream; its sessions live on."""
        self._stream.close()

    async def _asked(self, request: pb.StreamRequest, answers: int) -> None:
        self._left = answers
        self._done.clear()
        self._stream.send(request.SerializeToString())
        either: list[asyncio.Future[Any]] = [asyncio.create_task(self._done.wait()), self._stream.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._stream.ended.done():
            self._stream.ended.result()

    def _received(self, message: bytes) -> None:
        response = pb.StreamResponse.FromString(message)
        for fault in response.faults:
            if fault.status.code != grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]:
                raise RuntimeError(f"the server refused: {fault.status.message}")
            self._refused.append(fault.handle)
            self._left -= 1
        for opened in response.opened:
            self.ids.update(zip(np.frombuffer(opened.handles, "<u4").tolist(), opened.session_ids, strict=True))
            self._left -= len(opened.session_ids)
        self._left -= len(response.closed) // 4
        for part in response.observed:
            self._answers.append(part)
            self._left -= len(part.handles) // 4
        if response.HasField("leases"):
            self._durable = np.empty(len(self.ids), np.int64)
            renewed = np.frombuffer(response.leases.handles, "<u4")
            self._durable[renewed] = np.frombuffer(response.leases.durable_steps, "<u8")
            self._left -= 1
        if self._left <= 0:
            self._done.set()
