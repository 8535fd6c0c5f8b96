"""The asyncio client: a thin shell that moves the protocol's frames over one gRPC stream."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from hiddenstate.codec import Codec, codec_of
from hiddenstate.columns import Columns
from hiddenstate.descriptions import Model, SessionInfo
from hiddenstate.errors import (
    AccessDenied,
    ClientClosed,
    DeadlineExceeded,
    HiddenstateError,
    InvalidInput,
    ServerError,
    SessionError,
    Unavailable,
    fresh,
    from_trailers,
)
from hiddenstate.predictions import (
    FleetPredictions,
    FleetWordPredictions,
    Prediction,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)
from hiddenstate.protocol import Call, Kind, Observing, Protocol
from hiddenstate.protocol import Session as SessionState
from hiddenstate_proto import hiddenstate_pb2 as pb

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceAsyncStub

log = logging.getLogger(__name__)

Value = float | None
Row = Sequence[Value] | NDArray[Any] | Mapping[str, Value]
Values = NDArray[Any] | Sequence[Value] | Sequence[Row]
Metadata = Mapping[str, str] | Sequence[tuple[str, str]]
Ids = Sequence[Any] | NDArray[Any]
Tokens = Sequence[str] | NDArray[np.integer]
Floats = NDArray[np.floating]
_T = TypeVar("_T")

DEFAULT_SERVER = "localhost:50051"
DEFAULT_TIMEOUT = 30.0
CHUNK = 4096
"""Observations that `observe_many` lets wait at once."""

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_FIRST_BACKOFF = 0.05
_LONGEST_BACKOFF = 5.0


class AsyncClient:
    """A connection to a server, for any number of sessions, all over one stream; used within one event loop.

    `timeout` is the longest wait of any call in seconds, unless it gives its own (`math.inf`: for ever).
    `credentials` (grpc.ChannelCredentials) switches TLS on; `metadata` goes with every call. At most
    `max_unanswered` observations may wait for answers at once. A broken connection is made anew, with backoff,
    and its sessions go on where they were; a server that was never reached raises Unavailable at once.
    Closing the client leaves its open sessions to be resumed until the server lets them go.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        max_unanswered: int = 65_536,
    ) -> None:
        if not timeout > 0:
            raise InvalidInput(f"a timeout is a positive number of seconds, not {timeout}")
        self.server = server
        self._timeout = timeout
        self._credentials = credentials
        self._metadata = tuple(metadata.items() if isinstance(metadata, Mapping) else metadata)
        self._protocol = Protocol(max_unanswered=max_unanswered)
        self._waiting: dict[Call, asyncio.Future[None]] = {}
        self._models: dict[tuple[str, str], Model] = {}
        self._asked_models: dict[tuple[str, str], asyncio.Task[Model]] = {}
        self._wake = asyncio.Event()
        self._connection: asyncio.Task[None] | None = None
        self._reached = False  # whether the server ever answered
        self._trouble: HiddenstateError | None = None  # why there is no connection now
        self._channel: grpc.aio.Channel | None = None  # for unary calls
        self._closed = False

    # what is served

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """The models being served, without their vocabularies."""
        answer = await self._unary(lambda stub: stub.ListModels, pb.ListModelsRequest(), timeout)
        return [Model.parse(model) for model in answer.models]

    async def model(self, name: str, version: str | None = None, *, timeout: float | None = None) -> Model:
        """One model (its newest version unless told), with its vocabulary. Raises ModelNotFound."""
        request = pb.GetModelRequest(name=name, version=version or "")
        model = Model.parse((await self._unary(lambda stub: stub.GetModel, request, timeout)).model)
        self._models[name, model.version] = self._models[name, version or ""] = model
        return model

    async def sessions(self, model: str | None = None, *, timeout: float | None = None) -> list[SessionInfo]:
        """Live sessions of every client, oldest first; of one model if told."""
        found: list[SessionInfo] = []
        request = pb.ListSessionsRequest(model=model or "", page_size=1000)
        while True:
            page = await self._unary(lambda stub: stub.ListSessions, request, timeout)
            found += [SessionInfo.parse(session) for session in page.sessions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def get_session(self, id: str, *, timeout: float | None = None) -> SessionInfo:
        """One live session. Raises SessionNotFound, SessionExpired, SessionClosed or SessionEvicted."""
        answer = await self._unary(lambda stub: stub.GetSession, pb.GetSessionRequest(id=id), timeout)
        return SessionInfo.parse(answer.session)

    # sessions

    def session(
        self,
        model: str,
        id: str | None = None,
        *,
        resume: bool = False,
        version: str | None = None,
        idle_timeout: float | None = None,
        timeout: float | None = None,
    ) -> Opening:
        """Opens a session: await it, or use it in `async with`, which closes it at the end.

        `resume` takes up the live session `id` where it is. `idle_timeout` is the lease asked for, in seconds.
        Raises ModelNotFound, SessionExists, ResourceExhausted; with `resume` the ways a session can be gone.
        """
        if resume and not id:
            raise InvalidInput("to resume a session its id is needed")
        return Opening(lambda: self._open_session(model, id or "", resume, version or "", idle_timeout, timeout))

    def fleet(self, model: str, *, version: str | None = None, idle_timeout: float | None = None) -> AsyncFleet:
        """Many sessions of one model, columns in and out; each opens by itself when its id is first seen."""
        return AsyncFleet(self, model, version or "", idle_timeout)

    # life

    async def close(self) -> None:
        """Ends the connection; whatever waits raises ClientClosed."""
        if self._closed:
            return
        self._closed = True
        if self._connection:
            self._connection.cancel()
            await asyncio.gather(self._connection, return_exceptions=True)
        self._settle(self._protocol.fail(_closed_error()))
        if self._channel:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # the rest is for this package

    async def _open_session(
        self, model: str, id: str, resume: bool, version: str, idle_timeout: float | None, timeout: float | None
    ) -> AsyncSession:
        description = await self._known_model(model, version, timeout)
        call, (state,) = self._protocol.open(model, [id], resume=resume, version=version, idle_timeout=idle_timeout)
        await self._wait(call, timeout)
        _raise_any(call)
        if state.version != description.version:
            description = await self._known_model(model, state.version, timeout)
        return AsyncSession(self, state, description)

    async def _known_model(self, name: str, version: str, timeout: float | None) -> Model:
        """Asks for a model once, however many wait for it."""
        key = (name, version)
        if key in self._models:
            return self._models[key]
        if key not in self._asked_models:
            asking = asyncio.create_task(self.model(name, version, timeout=timeout))
            asking.add_done_callback(lambda _: self._asked_models.pop(key))
            self._asked_models[key] = asking
        return await asyncio.shield(self._asked_models[key])

    async def _wait(self, call: Call, timeout: float | None) -> None:
        """Until the call is finished; cancelling or overdue, it is given up."""
        if self._closed:
            self._protocol.abandon(call)
            raise _closed_error()
        if call.remaining == 0:
            return
        future = self._waiting[call] = asyncio.get_running_loop().create_future()
        self._wake.set()
        if self._connection is None or self._connection.done():
            self._connection = asyncio.create_task(self._stay_connected(), name="hiddenstate connection")
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await future
        except TimeoutError:
            raise self._overdue(call, seconds) from None
        finally:
            if self._waiting.pop(call, None):
                self._protocol.abandon(call)
                self._wake.set()

    def _overdue(self, call: Call, seconds: float) -> HiddenstateError:
        reason = call.refused or self._trouble
        if reason is not None:
            return fresh(reason)
        return DeadlineExceeded(
            f"no answer from {self.server} within {seconds:g} s; what was sent may still be applied",
            reason="DEADLINE_EXCEEDED",
        )

    def _settle(self, finished: Iterable[Call]) -> None:
        """Wakes whoever waits for these calls."""
        for call in finished:
            future = self._waiting.pop(call, None)
            if future is not None and not future.done():
                future.set_result(None)

    async def _stay_connected(self) -> None:
        """Keeps one stream open as long as there are sessions or anything waits."""
        failures = 0
        while self._protocol.sessions or not self._protocol.idle:
            try:
                error = await self._converse()
            except Exception as bug:
                log.exception("the client stopped at an answer it could not take")
                self._protocol.connection_lost()
                self._settle(self._protocol.fail(_unreadable(bug)))
                return
            failures = 0 if self._trouble is None else failures + 1
            self._trouble = error
            self._protocol.connection_lost()
            if not self._reached or isinstance(error, AccessDenied):
                self._settle(self._protocol.fail(error))
                return
            backoff = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**failures)
            await asyncio.sleep(max(error.retry_after or 0.0, backoff * random.uniform(0.5, 1.0)))  # noqa: S311

    async def _converse(self) -> HiddenstateError:
        """One stream from its beginning to its end; returns why it ended."""
        from grpc.aio import AioRpcError

        from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceStub

        async with self._new_channel() as channel:
            stream = HiddenStateServiceStub(channel).Stream(metadata=self._metadata)
            reader = asyncio.create_task(self._read(stream))
            writer = asyncio.create_task(self._write(stream))
            try:
                done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
                if writer in done:
                    await writer
                return await reader
            except AioRpcError as error:
                return self._error(error)
            finally:
                reader.cancel()
                writer.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)
                stream.cancel()

    async def _read(self, stream: Any) -> HiddenstateError:
        from grpc.aio import EOF

        while (response := await stream.read()) is not EOF:
            self._reached, self._trouble = True, None
            self._settle(self._protocol.receive(response, time.monotonic()))
            if self._protocol.broken:
                return self._protocol.broken
            self._wake.set()
        return Unavailable(f"{self.server} ended the stream", reason="STREAM_ENDED")

    async def _write(self, stream: Any) -> None:
        """Sends whatever waits; what comes up during a write leaves together in the next frame."""
        from grpc.aio import AioRpcError

        self._wake.set()
        try:
            while True:
                due = self._protocol.next_due
                try:
                    async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # something that was put off is due
                self._wake.clear()
                for frame in self._protocol.frames(time.monotonic()):
                    await stream.write(frame)
        except (AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over; the reader learns why

    async def _unary(
        self,
        method: Callable[[HiddenStateServiceAsyncStub], Callable[..., Awaitable[_T]]],
        request: Any,
        timeout: float | None,
    ) -> _T:
        from grpc.aio import AioRpcError

        from hiddenstate_proto.hiddenstate_pb2_grpc import HiddenStateServiceStub

        seconds = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        failures = 0
        while True:
            if self._closed:
                raise _closed_error()
            if self._channel is None:
                self._channel = self._new_channel()
            left = deadline - time.monotonic()
            try:
                call = method(HiddenStateServiceStub(self._channel))
                answer = await call(request, timeout=None if math.isinf(left) else left, metadata=self._metadata)
            except AioRpcError as failure:
                error = self._error(failure)
            else:
                self._reached = True
                return answer
            pause = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**failures) * random.uniform(0.5, 1.0)  # noqa: S311
            pause = max(pause, error.retry_after or 0.0)
            transient = error.retry_after is not None or (isinstance(error, Unavailable) and self._reached)
            if not transient or time.monotonic() + pause > deadline:
                raise error
            await asyncio.sleep(pause)
            failures += 1

    def _new_channel(self) -> grpc.aio.Channel:
        import grpc.aio

        if self._credentials is None:
            return grpc.aio.insecure_channel(self.server, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.server, self._credentials, options=_CHANNEL_OPTIONS)

    def _error(self, error: grpc.aio.AioRpcError) -> HiddenstateError:
        code, detail = error.code(), error.details() or ""
        typed = from_trailers(code.value[0], detail, error.trailing_metadata())
        if isinstance(typed, Unavailable) and typed.reason == "UNAVAILABLE":
            cause = detail.rpartition(": ")[2]
            return Unavailable(f"no server can be reached at {self.server}: {cause}", reason=typed.reason)
        return typed


class AsyncSession:
    """One session: its state lives on the server, and every observation moves it on by one step."""

    def __init__(self, client: AsyncClient, state: SessionState, model: Model) -> None:
        self._client = client
        self._state = state
        self._codec: Codec = codec_of(model)
        self._model = model

    @property
    def id(self) -> str:
        """Names the session on the server."""
        return self._state.id

    @property
    def model(self) -> Model:
        """The model it is pinned to."""
        return self._model

    @property
    def idle_timeout(self) -> float:
        """The lease granted: seconds the session may be idle."""
        return self._state.idle_timeout or 0.0

    @property
    def step(self) -> int:
        """Observations in its state, as far as they were answered."""
        return self._client._protocol.step(self._state)

    @overload
    async def observe(self, x: str, *, timeout: float | None = None) -> WordPrediction: ...
    @overload
    async def observe(self, x: Value | Row, *, timeout: float | None = None) -> ValuePrediction: ...
    async def observe(self, x: str | Value | Row, *, timeout: float | None = None) -> Prediction:
        """Feeds one observation and predicts what comes next.

        A word or a text (the prediction is then the one after its last word), a number (None: missing), or a row
        or mapping of the model's columns. Raises InvalidInput and everything that can happen to a session.
        """
        return self._codec.prediction(await self._observe(self._codec.one(x), timeout))

    @overload
    async def observe_many(self, xs: str | Sequence[str], *, timeout: float | None = None) -> WordPredictions: ...
    @overload
    async def observe_many(self, xs: Values, *, timeout: float | None = None) -> ValuePredictions: ...
    async def observe_many(self, xs: Any, *, timeout: float | None = None) -> WordPredictions | ValuePredictions:
        """Feeds observations in order; returns one prediction after each, as columns.

        The words of a text, a sequence of words (each looked up whole), a column of numbers, or a table
        [n, columns]. `timeout` counts for every 4096 of them.
        """
        inputs = self._codec.many(xs)
        if len(inputs) == 0:
            return self._codec.predictions(Columns.missing(None, 0))
        parts = [await self._observe(inputs[i : i + CHUNK], timeout) for i in range(0, len(inputs), CHUNK)]
        return self._codec.predictions(Columns.concatenate(parts))

    async def peek(self, *, timeout: float | None = None) -> Prediction:
        """The current prediction again; nothing changes."""
        return self._codec.prediction(await self._ask(Kind.PEEK, timeout))

    async def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews the lease without an observation."""
        await self._ask(Kind.HEARTBEAT, timeout)

    async def close(self, *, timeout: float | None = None) -> None:
        """Ends the session; the second time nothing happens."""
        if self._state.error is None and not self._client._closed:
            await self._ask(Kind.CLOSE, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _close_after(self.close, error)

    async def _observe(self, inputs: NDArray[Any], timeout: float | None) -> Columns:
        self._require_usable()
        call = self._client._protocol.observe(self._state, inputs)
        await self._client._wait(call, timeout)
        _raise_any(call)
        return call.columns()

    async def _ask(self, kind: Kind, timeout: float | None) -> Columns:
        self._require_usable()
        call = self._client._protocol.ask(kind, [self._state])
        await self._client._wait(call, timeout)
        _raise_any(call)
        return call.columns()

    def _require_usable(self) -> None:
        if self._client._closed:
            raise _closed_error()
        if self._state.error is not None:
            raise fresh(self._state.error)


class Opening:
    """A session about to be opened: await it, or enter it with `async with`."""

    def __init__(self, open: Callable[[], Awaitable[AsyncSession]]) -> None:
        self._open = open
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await _close_after(self._session.close, error)


class AsyncFleet:
    """Many sessions of one model, fed by columns. An id is anything hashable, such as a sensor's name."""

    def __init__(self, client: AsyncClient, model: str, version: str, idle_timeout: float | None) -> None:
        self._client = client
        self._model = model
        self._version = version
        self._idle_timeout = idle_timeout
        self._handles: dict[Hashable, int] = {}
        self._ended: dict[Hashable, HiddenstateError] = {}
        self._codec: Codec | None = None
        self._opening = asyncio.Lock()

    def __len__(self) -> int:
        """Sessions open."""
        return len(self._handles)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._handles

    @overload
    async def observe(self, ids: Ids, values: Tokens, *, timeout: float | None = None) -> FleetWordPredictions: ...
    @overload
    async def observe(
        self, ids: Ids, values: Floats | Sequence[Value] | Sequence[Row], *, timeout: float | None = None
    ) -> FleetPredictions: ...
    async def observe(
        self, ids: Ids, values: Any, *, timeout: float | None = None
    ) -> FleetPredictions | FleetWordPredictions:
        """Feeds observation `values[i]` to session `ids[i]`; an id may stand in several rows, in order.

        `values` is a column [n] or table [n, columns] for value models; words, or int tokens [n], for word models.
        What went wrong with single sessions is in `.errors` by id, their rows are NaN, and the ids start afresh
        the next time. Raises what concerns all of them.
        """
        codec = await self._known_codec(timeout)
        inputs = codec.many(values)
        names = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if len(names) != len(inputs):
            raise InvalidInput(f"there are {len(names)} ids for {len(inputs)} observations")
        handles, errors = await self._opened(names, timeout)
        columns = await self._observe(handles, inputs, names, errors, timeout)
        return codec.fleet_predictions(columns, errors)

    async def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews every session's lease without an observation."""
        await self._ask(Kind.HEARTBEAT, list(self._handles), timeout)

    async def close(self, ids: Iterable[Hashable] | None = None, *, timeout: float | None = None) -> None:
        """Ends these sessions, or all."""
        names = list(self._handles) if ids is None else [id for id in ids if id in self._handles]
        if not self._client._closed:
            await self._ask(Kind.CLOSE, names, timeout)
        for id in names:
            self._ended.pop(id, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _close_after(self.close, error)

    async def _known_codec(self, timeout: float | None) -> Codec:
        if self._client._closed:
            raise _closed_error()
        if self._codec is None:
            model = await self._client._known_model(self._model, self._version, timeout)
            self._version = model.version
            self._codec = codec_of(model)
        return self._codec

    async def _opened(
        self, names: list[Any], timeout: float | None
    ) -> tuple[NDArray[np.int64], dict[Any, HiddenstateError]]:
        """Handles int64 [n] of open sessions, -1 where there is none, and why."""
        handles = self._lookup(names)
        errors: dict[Any, HiddenstateError] = {}
        if (handles >= 0).all():
            return handles, errors
        async with self._opening:
            missing = dict.fromkeys(name for name, handle in zip(names, handles.tolist(), strict=True) if handle < 0)
            for name in missing:
                if name in self._ended:
                    errors[name] = self._ended.pop(name)
            new = [name for name in missing if name not in errors and name not in self._handles]
            if new:
                errors |= await self._open(new, timeout)
        return self._lookup(names), errors

    def _lookup(self, names: list[Any]) -> NDArray[np.int64]:
        return np.fromiter(map(self._handles.get, names, repeat(-1)), np.int64, len(names))

    async def _open(self, names: list[Any], timeout: float | None) -> dict[Any, HiddenstateError]:
        call, states = self._client._protocol.open(
            self._model, [""] * len(names), version=self._version, idle_timeout=self._idle_timeout
        )
        await self._client._wait(call, timeout)
        errors: dict[Any, HiddenstateError] = {}
        for name, state in zip(names, states, strict=True):
            if state.error is not None:
                errors[name] = fresh(state.error)
            else:
                self._handles[name] = state.handle
                state.on_end = partial(self._forget, name)
        _raise_common(errors, len(names))
        return errors

    def _forget(self, name: Hashable, error: HiddenstateError) -> None:
        del self._handles[name]
        self._ended[name] = error

    async def _observe(
        self,
        handles: NDArray[np.int64],
        inputs: NDArray[Any],
        names: list[Any],
        errors: dict[Any, HiddenstateError],
        timeout: float | None,
    ) -> Columns:
        protocol = self._client._protocol
        rows = np.flatnonzero(handles >= 0)
        size = protocol.max_frame_rows
        under_way: deque[tuple[Observing, NDArray[Any]]] = deque()
        answers: list[Columns] = []
        order: list[NDArray[Any]] = []
        async with _giving_up(self._client, under_way):
            for at in [*range(0, len(rows), size), None, None]:
                if at is not None:
                    piece = rows[at : at + size]
                    call, shuffled = protocol.observe_rows(handles[piece], inputs[piece])
                    under_way.append((call, piece if shuffled is None else piece[shuffled]))
                    self._client._wake.set()
                if under_way and (at is None or len(under_way) > 1):
                    call, piece = under_way[0]
                    await self._client._wait(call, timeout)
                    under_way.popleft()
                    self._note(call, handles, names, errors)
                    answers.append(call.columns())
                    order.append(piece)
        return _reordered(answers, order, len(handles))

    def _note(
        self, call: Call, handles: NDArray[np.int64], names: list[Any], errors: dict[Any, HiddenstateError]
    ) -> None:
        """Adds the call's errors under their ids."""
        if not call.errors:
            return
        _raise_common(call.errors, len(call.handles) if call.parts else 0)
        for row in np.flatnonzero(np.isin(handles, list(call.errors))).tolist():
            name = names[row]
            errors[name] = fresh(call.errors[int(handles[row])])
            self._ended.pop(name, None)

    async def _ask(self, kind: Kind, names: list[Any], timeout: float | None) -> None:
        if not names:
            return
        protocol = self._client._protocol
        call = protocol.ask(kind, [protocol.session(self._handles[name]) for name in names])
        await self._client._wait(call, timeout)


@asynccontextmanager
async def _giving_up(client: AsyncClient, under_way: deque[tuple[Observing, NDArray[Any]]]) -> AsyncIterator[None]:
    """Whatever is still under way when the block is left, is given up."""
    try:
        yield
    finally:
        for call, _ in under_way:
            client._protocol.abandon(call)


def _reordered(answers: list[Columns], order: list[NDArray[Any]], n: int) -> Columns:
    """Answers in the order of the `n` rows they belong to; the other rows are missing."""
    rows = np.concatenate(order) if order else np.empty(0, np.int64)
    absent = np.setdiff1d(np.arange(n), rows) if len(rows) < n else rows[:0]
    if absent.size:
        answers = [*answers, Columns.missing(answers[0] if answers else None, absent.size)]
        rows = np.concatenate([rows, absent])
    if not answers:
        return Columns.missing(None, 0)
    columns = Columns.concatenate(answers)
    if (rows[:-1] < rows[1:]).all():
        return columns
    return columns.take(np.argsort(rows))


def _raise_any(call: Call) -> None:
    """For calls of one session."""
    for error in call.errors.values():
        raise fresh(error)


def _raise_common(errors: Mapping[Any, HiddenstateError], n: int) -> None:
    """Raises what is no single session's fault, once it struck every one of `n`."""
    if errors and len(errors) >= n:
        error = next(iter(errors.values()))
        if not isinstance(error, SessionError):
            raise fresh(error)


async def _close_after(close: Callable[[], Awaitable[None]], error: BaseException | None) -> None:
    """Closes at the end of a block; a failure to do so must not hide the block's own error."""
    try:
        await close()
    except HiddenstateError:
        if error is None:
            raise
        log.debug("could not close after an error", exc_info=True)


def _closed_error() -> ClientClosed:
    return ClientClosed("this client is closed; make a new one", reason="CLIENT_CLOSED")


def _unreadable(bug: Exception) -> HiddenstateError:
    return ServerError(f"the server's answer could not be taken: {bug!r}", reason="ANSWER_UNREADABLE")
