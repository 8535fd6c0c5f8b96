"""Frames by hand: columns packed, replies unpacked into rows."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc


def u4(values: Iterable[int]) -> bytes:
    """Packs uint32."""
    return np.array(list(values), "<u4").tobytes()


def u8(values: Iterable[int]) -> bytes:
    """Packs uint64."""
    return np.array(list(values), "<u8").tobytes()


def opening(
    handles: Iterable[int],
    model: str,
    *,
    ids: Sequence[str] = (),
    mode: pb.OpenMode.ValueType = pb.OPEN_MODE_CREATE,
    version: str = "",
    lease: float | None = None,
    **fields: Any,
) -> pb.StreamRequest:
    """An Open frame; `fields` are further ones."""
    timeout = None
    if lease is not None:
        timeout = duration_pb2.Duration()
        timeout.FromNanoseconds(round(lease * 1e9))
    frame = pb.Open(
        handles=u4(handles),
        model=model,
        version=version,
        session_ids=ids,
        mode=mode,
        idle_timeout=timeout,
        **fields,
    )
    return pb.StreamRequest(open=frame)


def words(handles: Iterable[int], tokens: Iterable[int], steps: Iterable[int] = ()) -> pb.StreamRequest:
    """An Observe frame of tokens."""
    packed = np.array(list(tokens), "<i4").tobytes()
    return pb.StreamRequest(observe=pb.Observe(handles=u4(handles), steps=u8(steps), tokens=packed))


def texts(handles: Iterable[int], spelled: Sequence[str], steps: Iterable[int] = ()) -> pb.StreamRequest:
    """An Observe frame of spelled words."""
    observe = pb.Observe(handles=u4(handles), steps=u8(steps), words=pb.Words(words=spelled))
    return pb.StreamRequest(observe=observe)


def values(handles: Iterable[int], numbers: Any, steps: Iterable[int] = ()) -> pb.StreamRequest:
    """An Observe frame of values."""
    packed = np.array(numbers, "<f8").tobytes()
    return pb.StreamRequest(observe=pb.Observe(handles=u4(handles), steps=u8(steps), values=packed))


def peek(handles: Iterable[int], *, with_words: bool = False) -> pb.StreamRequest:
    """A Peek frame."""
    return pb.StreamRequest(peek=pb.Peek(handles=u4(handles), with_words=with_words))


def close(handles: Iterable[int]) -> pb.StreamRequest:
    """A Close frame."""
    return pb.StreamRequest(close=pb.Close(handles=u4(handles)))


def rewind(
    handles: Iterable[int], steps: Iterable[int], numbers: Iterable[int] = (), *, with_words: bool = False
) -> pb.StreamRequest:
    """A Rewind frame."""
    frame = pb.Rewind(handles=u4(handles), steps=u8(steps), numbers=u4(numbers), with_words=with_words)
    return pb.StreamRequest(rewind=frame)


def fork(handles: Iterable[int], new_handles: Iterable[int]) -> pb.StreamRequest:
    """A Fork frame."""
    return pb.StreamRequest(fork=pb.Fork(handles=u4(handles), new_handles=u4(new_handles)))


def generate(handle: int, call: int, count: int, **options: Any) -> pb.StreamRequest:
    """A Generate frame."""
    return pb.StreamRequest(generate=pb.Generate(handle=handle, call=call, count=count, **options))


def cancel_generate(call: int) -> pb.StreamRequest:
    """A CancelGenerate frame."""
    return pb.StreamRequest(cancel_generate=pb.CancelGenerate(call=call))


def rewarm(handles: Iterable[int], version: str = "") -> pb.StreamRequest:
    """A Rewarm frame."""
    return pb.StreamRequest(rewarm=pb.Rewarm(handles=u4(handles), version=version))


def export(handles: Iterable[int]) -> pb.StreamRequest:
    """An Export frame."""
    return pb.StreamRequest(export=pb.Export(handles=u4(handles)))


def heartbeat(handles: Iterable[int] = ()) -> pb.StreamRequest:
    """A Heartbeat frame."""
    return pb.StreamRequest(heartbeat=pb.Heartbeat(handles=u4(handles)))


class Answer(NamedTuple):
    """One row of Predictions."""

    handle: int
    step: int
    columns: dict[str, NDArray[Any]]
    words: list[str]


class Refused(NamedTuple):
    """One Fault."""

    handle: int | None
    step: int
    reason: str
    code: int
    metadata: dict[str, str]
    retry: bool
    message: str
    call: int | None


_COLUMNS = {
    "surprises": "<f4",
    "top_tokens": "<i4",
    "top_probabilities": "<f4",
    "locations": "<f8",
    "scales": "<f8",
    "degrees_of_freedom": "<f4",
    "probabilities": "<f4",
}


def answers(predictions: pb.Predictions) -> list[Answer]:
    """The rows of Predictions."""
    handles = np.frombuffer(predictions.handles, "<u4")
    steps = np.frombuffer(predictions.steps, "<u8")
    count = len(handles)
    assert len(steps) == count > 0
    columns = {}
    for name, dtype in _COLUMNS.items():
        data = getattr(predictions, name)
        if data:
            columns[name] = np.frombuffer(data, dtype).reshape(count, -1)
    spelled = list(predictions.top_words)
    per_row = len(spelled) // count
    return [
        Answer(
            int(handles[i]),
            int(steps[i]),
            {name: column[i] for name, column in columns.items()},
            spelled[i * per_row : (i + 1) * per_row],
        )
        for i in range(count)
    ]


def refused(fault: pb.Fault) -> Refused:
    """A Fault, its details unpacked."""
    info, retry = error_details_pb2.ErrorInfo(), False
    for detail in fault.status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert info.domain == "hiddenstate"
    return Refused(
        fault.handle if fault.HasField("handle") else None,
        fault.step,
        info.reason,
        fault.status.code,
        dict(info.metadata),
        retry,
        fault.status.message,
        fault.call if fault.HasField("call") else None,
    )


class Continuation:
    """What has come of a continuation."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.probabilities: list[float] = []
        self.words: list[str] = []
        self.values: NDArray[np.float64] = np.empty(0)
        self.done = False
        self.pieces = 0

    def add(self, generated: pb.Generated) -> None:
        """Appends a piece."""
        assert not self.done, "a piece after the last"
        self.tokens += np.frombuffer(generated.tokens, "<i4").tolist()
        self.probabilities += np.frombuffer(generated.probabilities, "<f4").tolist()
        self.words += generated.words
        self.values = np.concatenate([self.values, np.frombuffer(generated.values, "<f8")])
        self.done = generated.done
        self.pieces += 1


class Replies:
    """Everything a stream has answered, by kind."""

    def __init__(self) -> None:
        self.opened: dict[int, tuple[str, int]] = {}
        self.rewinds: dict[int, int] = {}
        self.observed: list[Answer] = []
        self.peeked: list[Answer] = []
        self.rewound: list[Answer] = []
        self.continuations: dict[int, Continuation] = defaultdict(Continuation)
        self.exported: list[pb.Exported] = []
        self.closed: list[int] = []
        self.leases: list[int] = []
        self.faults: list[Refused] = []
        self.frames: list[pb.StreamResponse] = []

    def add(self, response: pb.StreamResponse) -> None:
        """Unpacks one frame."""
        self.frames.append(response)
        for opened in response.opened:
            handles, steps = np.frombuffer(opened.handles, "<u4"), np.frombuffer(opened.steps, "<u8")
            for handle, session_id, step in zip(handles, opened.session_ids, steps, strict=True):
                self.opened[int(handle)] = (session_id, int(step))
            self.rewinds.update(zip(handles.tolist(), np.frombuffer(opened.rewinds, "<u4").tolist(), strict=True))
        for predictions in response.observed:
            self.observed += answers(predictions)
        for predictions in response.peeked:
            self.peeked += answers(predictions)
        for predictions in response.rewound:
            self.rewound += answers(predictions)
        for generated in response.generated:
            self.continuations[generated.call].add(generated)
        self.exported += response.exported
        self.closed += [handle for (handle,) in struct.iter_unpack("<I", response.closed)]
        self.leases += [handle for (handle,) in struct.iter_unpack("<I", response.leases.handles)]
        self.faults += map(refused, response.faults)

    def of(self, handle: int) -> list[Answer]:
        """Answers to observations of one handle."""
        return [answer for answer in self.observed if answer.handle == handle]

    @property
    def reasons(self) -> list[str]:
        """Reasons of all faults."""
        return [fault.reason for fault in self.faults]


class Wire(Replies):
    """A client stream: send frames, wait until the replies say something."""

    def __init__(self, stub: pb_grpc.HiddenStateServiceAsyncStub, *metadata: tuple[str, str]) -> None:
        super().__init__()
        self.call = stub.Stream(metadata=metadata)
        self.ended = False
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self.call:
                async with self._changed:
                    self.add(response)
                    self._changed.notify_all()
        except (grpc.RpcError, asyncio.CancelledError):
            pass  # the status is there for `call.code()`
        finally:
            self.ended = True
            async with self._changed:
                self._changed.notify_all()

    async def send(self, *frames: pb.StreamRequest) -> None:
        """Sends frames one after the other."""
        for frame in frames:
            await self.call.write(frame)

    async def until(self, holds: Callable[[Wire], object]) -> None:
        """Waits until `holds` is true of this stream; fails if it ends before."""
        async with asyncio.timeout(60), self._changed:
            while not holds(self):
                assert not self.ended, f"the stream ended with {self.call!r}"
                await self._changed.wait()

    async def answered(self, count: int) -> None:
        """Waits for `count` answers to observations."""
        await self.until(lambda wire: len(wire.observed) == count)

    async def open(self, handles: Sequence[int], model: str, **options: Any) -> None:
        """Opens sessions and waits for the answer."""
        await self.send(opening(handles, model, **options))
        await self.until(lambda wire: all(handle in wire.opened for handle in handles))

    async def finish(self) -> grpc.StatusCode:
        """Half-closes and waits for the end."""
        await self.call.done_writing()
        async with asyncio.timeout(60):
            await self._reading
        return await self.call.code()

    async def end(self) -> grpc.StatusCode:
        """Waits for the server to end the stream."""
        async with asyncio.timeout(60):
            await self._reading
        return await self.call.code()

    async def cancel(self) -> None:
        """Drops the stream."""
        self.call.cancel()
        await self._reading
