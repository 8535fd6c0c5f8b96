"""The connection to a server: moves the protocol's frames over one gRPC stream, and makes it anew when it breaks."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from hiddenstate.calls import Call, Kind, One, Waited
from hiddenstate.columns import Columns
from hiddenstate.deadlines import Deadlines
from hiddenstate.errors import (
    AccessDenied,
    ClientClosed,
    DeadlineExceeded,
    HiddenstateError,
    InvalidInput,
    ServerError,
    Unavailable,
    fresh,
    from_trailers,
)
from hiddenstate.protocol import Protocol

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceAsyncStub

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_FIRST_BACKOFF = 0.02  # a server that restarts, or another replica, is often there at once
_LONGEST_BACKOFF = 2.0
_WOKEN_AT_ONCE = 256


class Connection:
    """One stream for all sessions of a client, and a channel for its other calls; used within one event loop."""

    def __init__(
        self,
        server: str,
        protocol: Protocol,
        *,
        timeout: float,
        credentials: grpc.ChannelCredentials | None,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        if not timeout > 0:
            raise InvalidInput(f"a timeout is a positive number of seconds, not {timeout}")
        self.server = server
        self.protocol = protocol
        self.closed = False
        self.trouble: HiddenstateError | None = None
        """Why there is no stream now."""
        self.metadata = metadata
        self.reached = False
        """Whether the server ever answered."""
        self._timeout = timeout
        self._credentials = credentials
        self._deadlines = Deadlines()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._making_room = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None  # for unary calls

    def wake(self) -> None:
        """Something is to be sent."""
        self._woken.set()

    def require_open(self) -> None:
        """Raises ClientClosed once that is so."""
        if self.closed:
            raise _closed_error()

    async def wait(self, call: Call, timeout: float | None) -> None:
        """Until the call is finished; cancelled or overdue, it is given up."""
        if self.closed:
            self.protocol.abandon(call)
            raise _closed_error()
        if call.remaining == 0:
            return
        await self._waited(call, timeout)

    async def answer(self, one: One, timeout: float | None) -> tuple[Columns, int]:
        """Until it is answered: the columns, and the row therein. Raises what went wrong; as `wait` otherwise."""
        await self._waited(one, timeout)
        if one.columns is None:
            assert one.error is not None
            raise fresh(one.error)
        return one.columns, one.row

    async def _waited(self, call: Call | One, timeout: float | None) -> None:
        future = call.waiter = asyncio.get_running_loop().create_future()
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._stay_connected(), name="hiddenstate connection")
        seconds = self._timeout if timeout is None else timeout
        group = None if math.isinf(seconds) else self._deadlines.join(call, seconds)
        try:
            await future
        except TimeoutError:
            raise self._overdue(call, seconds) from None
        finally:
            if group is not None:
                group.leave(call)
            if call.waiter is not None:
                call.waiter = None
                self.protocol.abandon(call)
                self._woken.set()

    def has_room(self) -> bool:
        """Whether `make_room` for one observation would return at once."""
        return self.protocol.has_room(1) and not self._making_room.locked()

    async def make_room(self, count: int, timeout: float | None) -> None:
        """Lets the protocol keep `count` more observations, where the server has stored what sessions sent last.

        Sessions that are quiet do not hear of that by themselves.
        """
        if self.protocol.has_room(count) and not self._making_room.locked():
            return
        async with self._making_room:  # one at a time, so that observations keep their order
            if not self.protocol.has_room(count) and (quiet := self.protocol.unsafe()):
                await self.wait(self.protocol.ask(Kind.HEARTBEAT, quiet), timeout)

    async def unary(
        self,
        method: Callable[[HiddenStateServiceAsyncStub], Callable[..., Awaitable[_T]]],
        request: Any,
        timeout: float | None,
    ) -> _T:
        """A call beside the stream; what is transient is tried again within the timeout."""
        from grpc.aio import AioRpcError

        patience = self.patience(timeout)
        while True:
            try:
                answer = await method(self.stub())(request, timeout=patience.left, metadata=self.metadata)
            except AioRpcError as failure:
                await patience.after(failure)
            else:
                self.reached = True
                return answer

    def stub(self) -> HiddenStateServiceAsyncStub:
        """For calls beside the stream, with `metadata`."""
        from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceStub

        self.require_open()
        if self._channel is None:
            self._channel = self._new_channel()
        return HiddenStateServiceStub(self._channel)

    def patience(self, timeout: float | None) -> Patience:
        """With failures for so many seconds from now."""
        return Patience(self, self._timeout if timeout is None else timeout)

    async def close(self) -> None:
        """Ends the stream; whatever waits raises ClientClosed."""
        if self.closed:
            return
        self.closed = True
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._settle(self.protocol.fail(_closed_error()))
        if self._channel:
            await self._channel.close()

    def _overdue(self, call: Waited, seconds: float) -> HiddenstateError:
        reason = call.refused or self.trouble
        if reason is not None:
            return fresh(reason)
        return DeadlineExceeded(
            f"no answer from {self.server} within {seconds:g} s; what was sent may still be applied",
            reason="DEADLINE_EXCEEDED",
        )

    def _settle(self, finished: Iterable[Waited]) -> None:
        """Wakes whoever waits for these."""
        for wait in finished:
            future, wait.waiter = wait.waiter, None
            if future is not None and not future.done():
                future.set_result(None)

    async def _stay_connected(self) -> None:
        """Keeps one stream open as long as there are sessions or anything waits."""
        failures = 0
        while self.protocol.sessions or not self.protocol.idle:
            try:
                error = await self._converse()
            except Exception as bug:
                log.exception("the client stopped at an answer it could not take")
                self.protocol.connection_lost()
                self._settle(self.protocol.fail(_unreadable(bug)))
                return
            failures = 0 if self.trouble is None else failures + 1
            self.trouble = error
            self.protocol.connection_lost()
            if not self.reached or isinstance(error, AccessDenied):
                self._settle(self.protocol.fail(error))
                return
            await asyncio.sleep(_pause(error, failures))

    async def _converse(self) -> HiddenstateError:
        """One stream from its beginning to its end; returns why it ended."""
        from grpc.aio import AioRpcError

        from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceStub

        async with self._new_channel() as channel:
            stream = HiddenStateServiceStub(channel).Stream(metadata=self.metadata)
            reader = asyncio.create_task(self._read(stream))
            writer = asyncio.create_task(self._write(stream))
            try:
                done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
                if writer in done:
                    await writer
                return await reader
            except AioRpcError as error:
                return self.error(error)
            finally:
                reader.cancel()
                writer.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)
                stream.cancel()

    async def _read(self, stream: Any) -> HiddenstateError:
        from grpc.aio import EOF

        while (response := await stream.read()) is not EOF:
            self.reached, self.trouble = True, None
            finished = self.protocol.receive(response, time.monotonic())
            for start in range(0, len(finished), _WOKEN_AT_ONCE):
                if start:
                    # What the first have to say is on its way while the others still read their answers.
                    await asyncio.sleep(0)
                self._settle(finished[start : start + _WOKEN_AT_ONCE])
                self._woken.set()
            if self.protocol.broken:
                return self.protocol.broken
            self._woken.set()
        return Unavailable(f"{self.server} ended the stream", reason="STREAM_ENDED")

    async def _write(self, stream: Any) -> None:
        """Sends whatever waits; what comes up during a write leaves together in the next frame."""
        from grpc.aio import AioRpcError

        self._woken.set()
        try:
            while True:
                due = self.protocol.next_due
                try:
                    async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                        await self._woken.wait()
                except TimeoutError:
                    pass  # something that was put off is due
                self._woken.clear()
                frames = self.protocol.frames(time.monotonic())
                self._settle(self.protocol.take_finished())  # what turned out to be impossible
                for frame in frames:
                    await stream.write(frame)
        except (AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over; the reader learns why

    def _new_channel(self) -> grpc.aio.Channel:
        import grpc.aio

        if self._credentials is None:
            return grpc.aio.insecure_channel(self.server, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.server, self._credentials, options=_CHANNEL_OPTIONS)

    def error(self, error: grpc.aio.AioRpcError) -> HiddenstateError:
        """What a failed call means."""
        code, detail = error.code(), error.details() or ""
        typed = from_trailers(code.value[0], detail, error.trailing_metadata())
        if isinstance(typed, Unavailable) and typed.reason == "UNAVAILABLE":
            cause = detail.rpartition(": ")[2]
            return Unavailable(f"no server can be reached at {self.server}: {cause}", reason=typed.reason)
        return typed


class Patience:
    """Decides whether a call that failed is tried again."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds
        self._failures = 0

    @property
    def left(self) -> float | None:
        """Seconds left; None: for ever."""
        return None if math.isinf(self._deadline) else self._deadline - time.monotonic()

    async def after(self, failure: grpc.aio.AioRpcError) -> None:
        """Returns when to try again; raises what is wrong where that would not help, or there is no time left."""
        error = self._connection.error(failure)
        pause = _pause(error, self._failures)
        transient = error.retry_after is not None or (isinstance(error, Unavailable) and self._connection.reached)
        if not transient or time.monotonic() + pause > self._deadline:
            raise error
        await asyncio.sleep(pause)
        self._failures += 1


def _pause(error: HiddenstateError, failures: int) -> float:
    """Seconds to wait before the next try, after so many that failed."""
    if error.reason == "DRAINING" and not failures:
        return 0.0  # there is another server, or will be in a moment
    backoff = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**failures)
    return max(error.retry_after or 0.0, float(backoff) * random.uniform(0.5, 1.0))  # noqa: S311


def _closed_error() -> ClientClosed:
    return ClientClosed("this client is closed; make a new one", reason="CLIENT_CLOSED")


def _unreadable(bug: Exception) -> HiddenstateError:
    return ServerError(f"the server's answer could not be taken: {bug!r}", reason="ANSWER_UNREADABLE")
