"""The asyncio client."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hiddenstate.calls import Wish
from hiddenstate.catalog import Catalog
from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model, SessionInfo
from hiddenstate.errors import InvalidInput
from hiddenstate.fleet import AsyncFleet
from hiddenstate.protocol import Protocol
from hiddenstate.session import AsyncSession, Opening
from hiddenstate_proto import hiddenstate_pb2 as pb

if TYPE_CHECKING:
    import grpc

Metadata = Mapping[str, str] | Sequence[tuple[str, str]]

DEFAULT_SERVER = "localhost:50051"
DEFAULT_TIMEOUT = 30.0


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
        self.server = server
        self._connection = Connection(
            server,
            Protocol(max_unanswered=max_unanswered),
            timeout=timeout,
            credentials=credentials,
            metadata=tuple(metadata.items() if isinstance(metadata, Mapping) else metadata),
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

    async def sessions(self, model: str | None = None, *, timeout: float | None = None) -> list[SessionInfo]:
        """Live sessions of every client, oldest first; of one model if told."""
        found: list[SessionInfo] = []
        request = pb.ListSessionsRequest(model=model or "", page_size=1000)
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
        return Opening(lambda: self._open(model, id or "", resume, version or "", idle_timeout, timeout))

    def fleet(self, model: str, *, version: str | None = None, idle_timeout: float | None = None) -> AsyncFleet:
        """Many sessions of one model, columns in and out; each opens by itself when its id is first seen."""
        return AsyncFleet(self._connection, self._catalog, model, version or "", idle_timeout)

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

    async def _open(
        self, model: str, id: str, resume: bool, version: str, idle_timeout: float | None, timeout: float | None
    ) -> AsyncSession:
        description = await self._catalog.known(model, version, timeout)
        protocol = self._connection.protocol
        call, (state,) = protocol.open(Wish(model, version, resume, idle_timeout), [id])
        await self._connection.wait(call, timeout)
        call.raise_any()
        if state.version != description.version:
            description = await self._catalog.known(model, state.version, timeout)
        return AsyncSession(self._connection, state, description)
