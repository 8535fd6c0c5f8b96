"""The blocking client: the asyncio client on an event loop in a background thread, for any number of threads."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Coroutine, Hashable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

from hiddenstate.aio import DEFAULT_SERVER, DEFAULT_TIMEOUT, AsyncClient, Metadata
from hiddenstate.codec import Floats, Ids, Row, Tokens, Value, Values
from hiddenstate.descriptions import Model, SessionInfo
from hiddenstate.fleet import AsyncFleet
from hiddenstate.predictions import (
    FleetPredictions,
    FleetWordPredictions,
    Prediction,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)
from hiddenstate.session import AsyncSession

if TYPE_CHECKING:
    import grpc

_T = TypeVar("_T")


class _Background:
    """One event loop for all clients of the process: gRPC's asyncio runs badly on several at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()

    def enter(self, client: Client) -> asyncio.AbstractEventLoop:
        """The loop, running."""
        with self._lock:
            self._clients.add(client)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="hiddenstate", daemon=True).start()
                atexit.register(self._leave)
            return self._loop

    def _leave(self) -> None:
        """Closes forgotten clients while the interpreter is still whole."""
        for client in list(self._clients):
            client.close()


_background = _Background()


class Client:
    """A connection to a server, for any number of sessions and threads, all over one stream.

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
        self._client = AsyncClient(
            server, timeout=timeout, credentials=credentials, metadata=metadata, max_unanswered=max_unanswered
        )
        self._loop = _background.enter(self)

    @property
    def server(self) -> str:
        """Where the server is, host:port."""
        return self._client.server

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """The models being served, without their vocabularies."""
        return self._run(self._client.models(timeout=timeout))

    def model(self, name: str, version: str | None = None, *, timeout: float | None = None) -> Model:
        """One model (its newest version unless told), with its vocabulary. Raises ModelNotFound."""
        return self._run(self._client.model(name, version, timeout=timeout))

    def sessions(self, model: str | None = None, *, timeout: float | None = None) -> list[SessionInfo]:
        """Live sessions of every client, oldest first; of one model if told."""
        return self._run(self._client.sessions(model, timeout=timeout))

    def get_session(self, id: str, *, timeout: float | None = None) -> SessionInfo:
        """One live session. Raises SessionNotFound, SessionExpired, SessionClosed or SessionEvicted."""
        return self._run(self._client.get_session(id, timeout=timeout))

    def session(
        self,
        model: str,
        id: str | None = None,
        *,
        resume: bool = False,
        version: str | None = None,
        idle_timeout: float | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Opens a session; in a `with` block it is closed at the end.

        `resume` takes up the live session `id` where it is. `idle_timeout` is the lease asked for, in seconds.
        Raises ModelNotFound, SessionExists, ResourceExhausted; with `resume` the ways a session can be gone.
        """

        async def opened() -> AsyncSession:
            return await self._client.session(
                model, id, resume=resume, version=version, idle_timeout=idle_timeout, timeout=timeout
            )

        return Session(self, self._run(opened()))

    def fleet(self, model: str, *, version: str | None = None, idle_timeout: float | None = None) -> Fleet:
        """Many sessions of one model, columns in and out; each opens by itself when its id is first seen."""
        return Fleet(self, self._client.fleet(model, version=version, idle_timeout=idle_timeout))

    def close(self) -> None:
        """Ends the connection; whatever waits raises ClientClosed."""
        self._run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` on the loop and waits; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class Session:
    """One session: its state lives on the server, and every observation moves it on by one step."""

    def __init__(self, client: Client, session: AsyncSession) -> None:
        self._client = client
        self._session = session

    @property
    def id(self) -> str:
        """Names the session on the server."""
        return self._session.id

    @property
    def model(self) -> Model:
        """The model it is pinned to."""
        return self._session.model

    @property
    def idle_timeout(self) -> float:
        """The lease granted: seconds the session may be idle."""
        return self._session.idle_timeout

    @property
    def step(self) -> int:
        """Observations in its state, as far as they were answered."""
        return self._session.step

    @overload
    def observe(self, x: str, *, timeout: float | None = None) -> WordPrediction: ...
    @overload
    def observe(self, x: Value | Row, *, timeout: float | None = None) -> ValuePrediction: ...
    def observe(self, x: str | Value | Row, *, timeout: float | None = None) -> Prediction:
        """Feeds one observation and predicts what comes next.

        A word or a text (the prediction is then the one after its last word), a number (None: missing), or a row
        or mapping of the model's columns. Raises InvalidInput and everything that can happen to a session.
        """
        return self._client._run(cast(Coroutine[Any, Any, Prediction], self._session.observe(x, timeout=timeout)))

    @overload
    def observe_many(self, xs: str | Sequence[str], *, timeout: float | None = None) -> WordPredictions: ...
    @overload
    def observe_many(self, xs: Values, *, timeout: float | None = None) -> ValuePredictions: ...
    def observe_many(self, xs: Any, *, timeout: float | None = None) -> WordPredictions | ValuePredictions:
        """Feeds observations in order; returns one prediction after each, as columns.

        The words of a text, a sequence of words (each looked up whole), a column of numbers, or a table
        [n, columns]. `timeout` counts for every 4096 of them.
        """
        work: Coroutine[Any, Any, WordPredictions | ValuePredictions]
        work = self._session.observe_many(xs, timeout=timeout)
        return self._client._run(work)

    def peek(self, *, timeout: float | None = None) -> Prediction:
        """The current prediction again; nothing changes."""
        return self._client._run(self._session.peek(timeout=timeout))

    def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews the lease without an observation."""
        self._client._run(self._session.heartbeat(timeout=timeout))

    def close(self, *, timeout: float | None = None) -> None:
        """Ends the session; the second time nothing happens."""
        self._client._run(self._session.close(timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._run(self._session.__aexit__(kind, error, trace))


class Fleet:
    """Many sessions of one model, fed by columns. An id is anything hashable, such as a sensor's name."""

    def __init__(self, client: Client, fleet: AsyncFleet) -> None:
        self._client = client
        self._fleet = fleet

    def __len__(self) -> int:
        """Sessions open."""
        return len(self._fleet)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._fleet

    @overload
    def observe(self, ids: Ids, values: Tokens, *, timeout: float | None = None) -> FleetWordPredictions: ...
    @overload
    def observe(
        self, ids: Ids, values: Floats | Sequence[Value] | Sequence[Row], *, timeout: float | None = None
    ) -> FleetPredictions: ...
    def observe(
        self, ids: Ids, values: Any, *, timeout: float | None = None
    ) -> FleetPredictions | FleetWordPredictions:
        """Feeds observation `values[i]` to session `ids[i]`; an id may stand in several rows, in order.

        `values` is a column [n] or table [n, columns] for value models; words, or int tokens [n], for word models.
        What went wrong with single sessions is in `.errors` by id, their rows are NaN, and the ids start afresh
        the next time. Raises what concerns all of them.
        """
        work: Coroutine[Any, Any, FleetPredictions | FleetWordPredictions]
        work = self._fleet.observe(ids, values, timeout=timeout)
        return self._client._run(work)

    def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews every session's lease without an observation."""
        self._client._run(self._fleet.heartbeat(timeout=timeout))

    def close(self, ids: Iterable[Hashable] | None = None, *, timeout: float | None = None) -> None:
        """Ends these sessions, or all."""
        self._client._run(self._fleet.close(ids, timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._run(self._fleet.__aexit__(kind, error, trace))
