"""The asyncio client."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hiddenstate.calls import Wish
from hiddenstate.catalog import Catalog
from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model, Reloaded, SessionInfo
from hiddenstate.errors import InvalidInput
from hiddenstate.fleet import AsyncFleet
from hiddenstate.protocol import Protocol
from hiddenstate.session import AsyncSession, Opening
from hiddenstate.watching import AsyncWatch
from hiddenstate_proto import hiddenstate_pb2 as pb

if TYPE_CHECKING:
    import grpc

Metadata = Mapping[str, str] | Sequence[tuple[str, str]]

DEFAULT_SERVER = "localhost:50051"
DEFAULT_TIMEOUT = 30.0


class AsyncClient:
    """A connection to a server, for any number of sessions, all over one stream; used within one event loop.

    `timeout` is the longest wait of any call in seconds, unless it gives its own (`math.inf`: for ever).
    `credentials` (grpc.ChannelCredentials) switches TLS on; `token` tells the server who this is, `tenant` where it
    asks for no token; `metadata` goes with every call. At most `max_unanswered` observations may wait for answers
    at once, and `max_retained` are kept until the server has stored them. A broken connection is made anew, with
    backoff, and its sessions go on where they were, on the same server, a restarted one or another replica: what that
    one lacks is sent again. A server that was never reached raises Unavailable at once. Closing the client leaves its
    open sessions to be resumed until the server lets them go.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        tenant: str | None = None,
        metadata: Metadata = (),
        max_unanswered: int = 65_536,
        max_retained: int = 1_048_576,
    ) -> None:
        self.server = server
        pairs = [*(metadata.items() if isinstance(metadata, Mapping) else metadata)]
        if token is not None:
            pairs.append(("authorization", f"Bearer {token}"))
        if tenant is not None:
            pairs.append(("hiddenstate-tenant", tenant))
        self._connection = Connection(
            server,
            Protocol(max_unanswered=max_unanswered, max_retained=max_retained),
            timeout=timeout,
            credentials=credentials,
            metadata=tuple(pairs),
        )
        self._catalog = Catalog(self._connection)

    # what is served

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """The models being served, without their vocabularies."""
        answer = await self._connection.unary(lambda stub: stub.ListModels, pb.ListModelsRequest(), timeout)
        return [Model.parse(model) for model in answer.models]

    async def model(self, name: str, version: str | None = None, *, timeout: float | None = None) -> Model:
        """One model (its newest version unless told), with its vocabulary. Raises ModelNotFound."""
        return await self._catalog.ask(name, version or "", timeout)

    async def reload_models(self, *, timeout: float | None = None) -> Reloaded:
        """Makes the server look at its model folder again. Raises AccessDenied unless that is allowed."""
        answer = await self._connection.unary(lambda stub: stub.ReloadModels, pb.ReloadModelsRequest(), timeout)
        return Reloaded(tuple(answer.loaded), tuple(answer.retired), dict(answer.refused))

    # sessions of any client

    async def sessions(
        self,
        model: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        idle: float | None = None,
        timeout: float | None = None,
    ) -> list[SessionInfo]:
        """Live sessions of every client, oldest first: of one model, with these labels, idle for `idle` seconds."""
        found: list[SessionInfo] = []
        request = pb.ListSessionsRequest(model=model or "", page_size=1000, labels=labels)
        if idle is not None:
            request.idle_for.FromTimedelta(timedelta(seconds=idle))
        while True:
            page = await self._connection.unary(lambda stub: stub.ListSessions, request, timeout)
            found += [SessionInfo.parse(session) for session in page.sessions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def get_session(self, id: str, *, timeout: float | None = None) -> SessionInfo:
        """One live session. Raises SessionNotFound, SessionExpired, SessionClosed or SessionEvicted."""
        answer = await self._connection.unary(lambda stub: stub.GetSession, pb.GetSessionRequest(id=id), timeout)
        return SessionInfo.parse(answer.session)

    async def close_sessions(
        self,
        ids: Sequence[str] | None = None,
        *,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        idle: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Ends sessions, whoever holds them: these, or those that match everything given; returns how many."""
        chosen = bool(model or labels or idle is not None)
        if (ids is not None) == chosen:
            raise InvalidInput("say which sessions to close: either ids, or a model, labels or idle time")
        request = pb.CloseSessionsRequest(ids=ids, model=model or "", labels=labels)
        if idle is not None:
            request.idle_for.FromTimedelta(timedelta(seconds=idle))
        answer = await self._connection.unary(lambda stub: stub.CloseSessions, request, timeout)
        return int(answer.closed)

    async def fork(self, id: str, n: int = 1, *, timeout: float | None = None) -> list[SessionInfo]:
        """Independent copies of a session that another client may hold; resume them to use them."""
        request = pb.ForkSessionRequest(id=id, count=n)
        answer = await self._connection.unary(lambda stub: stub.ForkSession, request, timeout)
        return [SessionInfo.parse(session) for session in answer.sessions]

    async def export(self, id: str, *, timeout: float | None = None) -> bytes:
        """A signed snapshot of a session that another client may hold."""
        request = pb.ExportSessionRequest(id=id)
        return (await self._connection.unary(lambda stub: stub.ExportSession, request, timeout)).snapshot

    async def watch(self, id: str, *, timeout: float | None = None) -> AsyncWatch:
        """Follows a session that another client feeds: an iterator over its predictions, the current one first.

        `timeout` is how long it may take to find the server again once the connection broke.
        """
        info = await self.get_session(id, timeout=timeout)
        model = await self._catalog.known(info.model, info.version, timeout)
        return AsyncWatch(self._connection, self._catalog, id, model, timeout)

    # sessions of this client

    def session(
        self,
        model: str,
        id: str | None = None,
        *,
        resume: bool = False,
        version: str | None = None,
        idle_timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
        shadow: str | None = None,
        timeout: float | None = None,
    ) -> Opening:
        """Opens a session: await it, or use it in `async with`, which closes it at the end.

        `resume` takes up the live session `id` where it is. `idle_timeout` is the lease asked for, in seconds. `shadow`
        is another version that is fed the same observations, to compare in the server's metrics.
        Raises ModelNotFound, SessionExists, ResourceExhausted; with `resume` the ways a session can be gone.
        """
        if resume and not id:
            raise InvalidInput("to resume a session its id is needed")
        if resume and (labels or shadow):
            raise InvalidInput("labels and a shadow are given when a session is new, not when it is resumed")
        wish = Wish(model, version or "", resume, idle_timeout, dict(labels or {}), shadow or "")
        return Opening(lambda: self._open(wish, id or "", timeout))

    def restore(self, snapshot: bytes, id: str | None = None, *, timeout: float | None = None) -> Opening:
        """A new session that goes on where a snapshot was taken: await it, or use it in `async with`.

        Raises SnapshotInvalid, SessionExists, ModelNotFound, ResourceExhausted.
        """
        if not snapshot:
            raise InvalidInput("the snapshot is empty")
        return Opening(lambda: self._open(Wish("", snapshot=snapshot), id or "", timeout))

    def fleet(
        self,
        model: str,
        *,
        version: str | None = None,
        idle_timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncFleet:
        """Many sessions of one model, columns in and out; each opens by itself when its id is first seen."""
        wish = Wish(model, version or "", idle_timeout=idle_timeout, labels=dict(labels or {}))
        return AsyncFleet(self._connection, self._catalog, wish)

    # life

    async def close(self) -> None:
        """Ends the connection; whatever waits raises ClientClosed."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self, wish: Wish, id: str, timeout: float | None) -> AsyncSession:
        if wish.model:
            await self._catalog.known(wish.model, wish.version, timeout)  # a clear word where there is none
        restored = bool(wish.snapshot)
        call, (state,) = self._connection.protocol.open(wish, [id])
        await self._connection.wait(call, timeout)
        call.raise_any()
        description = await self._catalog.known(state.model, state.version, timeout)
        if wish.resume or restored:
            state.labels = (await self.get_session(state.id, timeout=timeout)).labels
        return AsyncSession(self._connection, self._catalog, state, description)
