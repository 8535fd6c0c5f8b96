"""One client's stream: its handles, and the reply that gathers until the transport takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import ServerError
from hiddenstate_server.runtimes import DoubleArray, RowArray
from hiddenstate_server.stepping.away import Away
from hiddenstate_server.stepping.singles import SingleReplies

if TYPE_CHECKING:
    from hiddenstate_server.generation.continuations import Continuation
    from hiddenstate_server.stepping.directory import Ended
    from hiddenstate_server.stepping.held import Held

UNKNOWN = -1
AWAY = -6
"""The handle's session has no row at present; `Stream.away` knows it."""
RESERVED = -7
RUN_ANSWER_ROWS = 256
"""A long run is answered in pieces of about this many rows."""
_REPLY_BYTES = 1 << 20
_REPLY_FAULTS = 1024


class Part(NamedTuple):
    """Predictions of some rows of one model for one stream, already packed for the wire."""

    answers: Literal["observed", "peeked", "rewound"]
    """The field of the reply."""
    fields: tuple[str, ...]
    """Names of the columns in Predictions."""
    vocabulary: Sequence[str]
    """Words to answer with beside the tokens; empty for none."""
    columns: tuple[bytes, ...]
    received: DoubleArray
    """Monotonic seconds at which each row came in."""
    observe_latency: Callable[[DoubleArray], None]
    """Told the seconds from receipt to hand-over, once handed over."""

    def handed_over(self, now: float) -> None:
        """The transport has it."""
        if self.answers == "observed":
            self.observe_latency(now - self.received)

    def without(self, handle: int) -> Part:
        """The same without the rows of one session."""
        kept = np.frombuffer(self.columns[0], "<u4") != handle
        rows = len(kept)
        columns = (np.frombuffer(column, np.uint8).reshape(rows, -1)[kept].tobytes() for column in self.columns)
        return self._replace(columns=tuple(columns), received=self.received[kept])


class Single(NamedTuple):
    """A prediction of one row, already encoded as a whole reply."""

    reply: bytes
    encoder: SingleReplies
    received: float
    """Monotonic seconds at which it came in."""
    observe_latency: Callable[[DoubleArray | float], None]
    """Told the seconds from receipt to hand-over, once handed over."""

    def part(self) -> Part:
        """The same for a reply that holds more."""
        columns = self.encoder.columns(self.reply)
        return Part("observed", self.encoder.fields, (), columns, np.array([self.received]), self.observe_latency)

    def handed_over(self, now: float) -> None:
        """The transport has it."""
        self.observe_latency(now - self.received)


class Stream:
    """Handles of one stream as a column of rows, work under way, and what is to be sent next.

    `backlog` counts the rows accepted whose answers the transport has not taken; `unsent` counts the
    entries that wait for the transport.
    """

    def __init__(self, number: int, tenant: str, max_sessions: int, max_unsent: int, held: Held | None = None) -> None:
        self.number = number
        self.tenant = tenant
        self.held = held
        """Set where answers wait for the store."""
        self.away = Away()
        self.max_sessions = max_sessions
        self.backlog = 0
        self.unsent = 0
        self.ending: ServerError | None = None
        """Set to end the stream from the server's side."""
        self.read_all = False
        """The client sends no more."""
        self.continuations: dict[int, Continuation] = {}
        """Those under way, by the client's number."""
        self._max_unsent = max_unsent
        # The last element stays UNKNOWN: lookups clip to it.
        self._rows = np.full(9, UNKNOWN, np.int64)
        self._parts: deque[Part | Single] = deque()
        self._faults: deque[pb.Fault] = deque()
        self._opened: list[pb.Opened] = []
        self._closed: list[bytes] = []
        self._exported: deque[pb.Exported] = deque()
        self._leases: list[tuple[bytes, bytes]] = []
        self._flowing: dict[Continuation, None] = {}
        self._due = False
        self._taken = 0
        self._sender: asyncio.Future[None] | None = None
        self._reader: asyncio.Future[None] | None = None

    # handles

    def lookup(self, handles: NDArray[np.uint32]) -> RowArray:
        """Global row of each handle; AWAY, RESERVED, UNKNOWN or a value of Ended where there is none."""
        return self._rows.take(handles, mode="clip")

    def row_of(self, handle: int) -> int:
        """`lookup` of one handle."""
        return self._rows.item(handle) if handle < len(self._rows) else UNKNOWN

    def bind(self, handle: int, row: int) -> None:
        """Gives a handle below `max_sessions` a global row."""
        if handle >= len(self._rows) - 1:
            grown = np.full(max(2 * len(self._rows), handle + 2), UNKNOWN, np.int64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._forget_away(handle)
        self._rows[handle] = row

    def reserve(self, handle: int) -> None:
        """Keeps a handle for a session on its way."""
        self.bind(handle, RESERVED)

    def free(self, handle: int) -> None:
        """The handle's session does not come."""
        self.bind(handle, UNKNOWN)

    def unbind(self, handle: int, ending: Ended) -> None:
        """Marks how the handle's session left; its continuations end with it."""
        self._forget_away(handle)
        self._rows[handle] = ending
        for continuation in [each for each in self.continuations.values() if each.handle == handle]:
            continuation.abandon(ending.error())

    def put_away(
        self, handle: int, key: str, used: float, lease: float, stored_use: float, durable: int, base: int
    ) -> None:
        """Leaves a handle to a session without a row; the rest is as in `Away.put`."""
        self.bind(handle, AWAY)
        self.away.put(handle, key, used, lease, stored_use, durable, base)

    def _forget_away(self, handle: int) -> None:
        if self._rows[handle] == AWAY:
            self.away.take(handle)

    def is_bound(self, handle: int) -> bool:
        """Whether the handle has a live session, or will have one."""
        row = self.row_of(handle)
        return row >= 0 or row in (AWAY, RESERVED)

    def bound_handles(self) -> NDArray[np.int64]:
        """Handles of live sessions that have rows."""
        return np.flatnonzero(self._rows >= 0)

    def rows(self) -> RowArray:
        """Global rows of the live sessions that have one."""
        return self._rows[self._rows >= 0]

    # what is to be sent

    def answer(self, part: Part) -> None:
        """Adds predictions; they leave at the next wake."""
        if self.held is None:
            self._parts.append(part)
            self.unsent += len(part.received)
        else:
            self.held.add(self, part)

    def answer_single(self, single: Single) -> None:
        """Adds a prediction and has it sent."""
        if self.held is None:
            self._parts.append(single)
            self.unsent += 1
            self.wake()
        else:
            self.held.add(self, single)

    def fault(self, error: ServerError, handle: int | None = None, step: int = 0, call: int | None = None) -> None:
        """Adds what went wrong with one session, or with a frame."""
        self._faults.append(pb.Fault(handle=handle, step=step, status=error.status(), call=call))
        self.unsent += 1
        self.wake()

    def opened(self, opened: pb.Opened) -> None:
        """Adds sessions opened."""
        self._opened.append(opened)
        self.unsent += 1
        self.wake()

    def closed(self, handles: bytes) -> None:
        """Adds sessions closed, uint32 [n]."""
        if self.held is None:
            self._closed.append(handles)
            self.unsent += len(handles) // 4
            self.wake()
        else:
            self.held.add(self, handles)

    def release(self, item: Part | Single | bytes) -> None:
        """Adds an answer, or handles closed, that was held."""
        if isinstance(item, bytes):
            self._closed.append(item)
            self.unsent += len(item) // 4
        else:
            self._parts.append(item)
            self.unsent += 1 if isinstance(item, Single) else len(item.received)
        self.wake()

    def exported(self, exported: pb.Exported) -> None:
        """Adds a snapshot."""
        self._exported.append(exported)
        self.unsent += 1
        self.wake()

    def leases(self, handles: bytes, durable_steps: bytes) -> None:
        """Adds leases renewed, uint32 [n], and up to which step each session is durable, uint64 [n] or empty."""
        self._leases.append((handles, durable_steps))
        self.unsent += 1
        self.wake()

    def flow(self, continuation: Continuation) -> None:
        """Has the next piece of a continuation sent: what there is of it by then."""
        if continuation not in self._flowing:
            self._flowing[continuation] = None
            self.unsent += 1
        self.wake()

    def stop_flow(self, continuation: Continuation) -> None:
        """Leaves unsent what there is of a continuation."""
        if continuation in self._flowing:
            del self._flowing[continuation]
            self.unsent -= 1

    # the two coroutines of a stream

    def wake(self) -> None:
        """Has what waits sent, or the end noticed."""
        self._due = True
        if self._sender is not None and not self._sender.done():
            self._sender.set_result(None)

    def end(self, error: ServerError) -> None:
        """Ends the stream with an error as soon as nothing is under way."""
        self.ending = error
        self.wake()

    async def sendable(self) -> bool:
        """Waits until something is due to be sent; False when the stream is over and everything is sent."""
        while not (self._due and self.unsent):
            if self.unsent == 0 and self.backlog == 0 and (self.read_all or self.ending is not None):
                return False
            self._sender = asyncio.get_running_loop().create_future()
            try:
                await self._sender
            finally:
                self._sender = None
        return True

    @property
    def crowded(self) -> bool:
        """Whether more is unsent than the client may leave unread."""
        return self.unsent > self._max_unsent

    async def readable(self) -> None:
        """Waits while the stream is crowded."""
        while self.crowded:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def take(self) -> tuple[bytes, Sequence[Part | Single], int]:
        """The next reply frame, of bounded size; its parts and its rows of backlog are for `sent`."""
        if self.unsent == 1 and self._parts and isinstance(single := self._parts[0], Single):
            self._parts.clear()
            self._due, self._taken = False, 1
            return single.reply, (single,), 1
        response = pb.StreamResponse()
        rows, entries, parts = 0, 0, list[Part]()
        if self._opened:
            response.opened.extend(self._opened)
            entries += len(self._opened)
            self._opened.clear()
        if self._parts:
            parts = self._take_parts()
            rows += sum(len(part.received) for part in parts)
            for group in _mergeable(parts):
                _add_predictions(getattr(response, group[0].answers), group)
        if self._closed:
            response.closed = b"".join(self._closed)
            rows += len(response.closed) // 4
            self._closed.clear()
        size = 0
        while self._exported and size < _REPLY_BYTES:
            exported = self._exported.popleft()
            response.exported.append(exported)
            size += len(exported.snapshot)
            rows += 1
        if self._leases:
            response.leases.handles = b"".join(handles for handles, _ in self._leases)
            response.leases.durable_steps = b"".join(steps for _, steps in self._leases)
            entries += len(self._leases)
            self._leases.clear()
        if self._flowing:
            pieces = self._take_pieces()
            response.generated.extend(pieces)
            done = sum(piece.done for piece in pieces)
            rows += done
            entries += len(pieces) - done
        for _ in range(min(len(self._faults), _REPLY_FAULTS)):
            response.faults.append(self._faults.popleft())
            entries += 1
        self._due = bool(self._parts or self._exported or self._faults or self._flowing)
        self._taken = rows + entries
        return response.SerializeToString(), parts, rows

    def _take_parts(self) -> list[Part]:
        parts, size = [], 0
        while self._parts and size < _REPLY_BYTES:
            part = self._parts.popleft()
            if isinstance(part, Single):
                part = part.part()
            size += sum(map(len, part.columns))
            parts.append(part)
        return parts

    def _take_pieces(self) -> list[pb.Generated]:
        pieces, size = [], 0
        while self._flowing and size < _REPLY_BYTES:
            continuation = next(iter(self._flowing))
            del self._flowing[continuation]
            pieces.append(continuation.piece())
            size += pieces[-1].ByteSize()
        return pieces

    def sent(self, parts: Iterable[Part | Single], rows: int, now: float) -> None:
        """The transport has taken the reply of the last `take`."""
        self.backlog -= rows
        self.unsent -= self._taken
        for part in parts:
            part.handed_over(now)
        if self._reader is not None and not self._reader.done() and not self.crowded:
            self._reader.set_result(None)


def _mergeable(parts: Sequence[Part]) -> Iterable[Sequence[Part]]:
    """Parts grouped by the message they can share."""
    if len(parts) == 1:
        return [parts]
    groups: dict[tuple[str, tuple[str, ...], int, int], list[Part]] = {}
    for part in parts:
        key = (part.answers, part.fields, id(part.observe_latency), id(part.vocabulary))
        groups.setdefault(key, []).append(part)
    return groups.values()


def _add_predictions(messages: Any, parts: Sequence[Part]) -> None:
    first = parts[0]
    columns = first.columns
    if len(parts) > 1:
        columns = tuple(b"".join(pieces) for pieces in zip(*(part.columns for part in parts), strict=True))
    predictions = messages.add(**dict(zip(first.fields, columns, strict=True)))
    if first.vocabulary:
        words = first.vocabulary
        predictions.top_words.extend(words[token] for token in np.frombuffer(predictions.top_tokens, "<i4").tolist())


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a protobuf duration."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
