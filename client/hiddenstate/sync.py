"""The blocking client: the asyncio client on an event loop in a background thread, for any number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hiddenstate.aio import DEFAULT_SERVER, DEFAULT_TIMEOUT, AsyncClient, Metadata
from hiddenstate.background import background
from hiddenstate.blocking import Fleet, Session, Watch
from hiddenstate.descriptions import Model, Reloaded, SessionInfo
from hiddenstate.session import AsyncSession

if TYPE_CHECKING:
    import grpc


class Client:
    """A connection to a server, for any number of sessions and threads, all over one stream.

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
        self._client = AsyncClient(
            server,
            timeout=timeout,
            credentials=credentials,
            token=token,
            tenant=tenant,
            metadata=metadata,
            max_unanswered=max_unanswered,
            max_retained=max_retained,
        )
        self._run = background.enter(self)

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

    def reload_models(self, *, timeout: float | None = None) -> Reloaded:
        """Makes the server look at its model folder again. Raises AccessDenied unless that is allowed."""
        return self._run(self._client.reload_models(timeout=timeout))

    # sessions of any client

    def sessions(
        self,
        model: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        idle: float | None = None,
        timeout: float | None = None,
    ) -> list[SessionInfo]:
        """Live sessions of every client, oldest first: of one model, with these labels, idle for `idle` seconds."""
        return self._run(self._client.sessions(model, labels=labels, idle=idle, timeout=timeout))

    def get_session(self, id: str, *, timeout: float | None = None) -> SessionInfo:
        """One live session. Raises SessionNotFound, SessionExpired, SessionClosed or SessionEvicted."""
        return self._run(self._client.get_session(id, timeout=timeout))

    def close_sessions(
        self,
        ids: Sequence[str] | None = None,
        *,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        idle: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Ends sessions, whoever holds them: these, or those that match everything given; returns how many."""
        return self._run(self._client.close_sessions(ids, model=model, labels=labels, idle=idle, timeout=timeout))

    def fork(self, id: str, n: int = 1, *, timeout: float | None = None) -> list[SessionInfo]:
        """Independent copies of a session that another client may hold; resume them to use them."""
        return self._run(self._client.fork(id, n, timeout=timeout))

    def export(self, id: str, *, timeout: float | None = None) -> bytes:
        """A signed snapshot of a session that another client may hold."""
        return self._run(self._client.export(id, timeout=timeout))

    def watch(self, id: str, *, timeout: float | None = None) -> Watch:
        """Follows a session that another client feeds: an iterator over its predictions, the current one first.

        `timeout` is how long it may take to find the server again once the connection broke.
        """
        return Watch(self._run, self._run(self._client.watch(id, timeout=timeout)))

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
    ) -> Session:
        """Opens a session; in a `with` block it is closed at the end.

        `resume` takes up the live session `id` where it is. `idle_timeout` is the lease asked for, in seconds. `shadow`
        is another version that is fed the same observations, to compare in the server's metrics.
        Raises ModelNotFound, SessionExists, ResourceExhausted; with `resume` the ways a session can be gone.
        """

        async def opened() -> AsyncSession:
            return await self._client.session(
                model,
                id,
                resume=resume,
                version=version,
                idle_timeout=idle_timeout,
                labels=labels,
                shadow=shadow,
                timeout=timeout,
            )

        return Session(self._run, self._run(opened()))

    def restore(self, snapshot: bytes, id: str | None = None, *, timeout: float | None = None) -> Session:
        """A new session that goes on where a snapshot was taken; in a `with` block it is closed at the end.

        Raises SnapshotInvalid, SessionExists, ModelNotFound, ResourceExhausted.
        """

        async def restored() -> AsyncSession:
            return await self._client.restore(snapshot, id, timeout=timeout)

        return Session(self._run, self._run(restored()))

    def fleet(
        self,
        model: str,
        *,
        version: str | None = None,
        idle_timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Fleet:
        """Many sessions of one model, columns in and out; each opens by itself when its id is first seen."""
        fleet = self._client.fleet(model, version=version, idle_timeout=idle_timeout, labels=labels)
        return Fleet(self._run, fleet)

    # life

    def close(self) -> None:
        """Ends the connection; whatever waits raises ClientClosed."""
        self._run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
