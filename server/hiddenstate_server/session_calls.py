"""Unary calls that act on sessions whoever holds them, as they are between two ticks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server import errors, listing
from hiddenstate_server.forking import copy_session
from hiddenstate_server.host import Host
from hiddenstate_server.model import ServedModel
from hiddenstate_server.opening import check_id, exists, make_room, no_place
from hiddenstate_server.peers import Peers
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions import Place, key_of, make_ids
from hiddenstate_server.tenants import Tenants, is_private
from hiddenstate_server.transfers import fill, sealed, unsealed

_CLOSED_AT_ONCE = 256


class SessionCalls(pb_grpc.HiddenStateServiceServicer):
    """Closes, copies, exports, restores and follows sessions; none goes beyond those of the caller's tenant."""

    def __init__(self, host: Host, peers: Peers, tenants: Tenants) -> None:
        self._host = host
        self._peers = peers
        self._tenants = tenants

    async def CloseSessions(self, request: pb.CloseSessionsRequest, context: Any) -> pb.CloseSessionsResponse:
        """Ends sessions by their ids or a filter, in all workers unless a worker asks."""
        tenant = self._tenants.of(context)
        filtered = bool(request.model or request.labels or request.HasField("idle_for"))
        if filtered == bool(request.ids):
            raise errors.RequestInvalid("send either ids or a filter: model, labels or idle_for")
        if request.model:
            self._host.model(request.model, retired=True)
        wanted = listing.Filter(tenant, request)
        closed = 0
        for model in list(self._host.models):
            rows = wanted.rows(self._host, model) if filtered else self._rows_of(model, tenant, request.ids)
            closed += await self._close(model, rows)
        if self._peers and not is_private(context):
            closed += await self._peers.close_sessions(tenant, request)
        return pb.CloseSessionsResponse(closed=closed)

    def _rows_of(self, model: ServedModel, tenant: str, ids: Iterable[str]) -> RowArray:
        places = [self._host.directory.get(key_of(tenant, session_id)) for session_id in ids]
        return np.unique([place.row for place in places if place is not None and place.model is model]).astype(np.int64)

    async def _close(self, model: ServedModel, rows: RowArray) -> int:
        """Some at a time: others are served in between, and sessions may end by themselves meanwhile."""
        keys = [model.table.keys[row] for row in rows.tolist()]
        closed = 0
        for start in range(0, len(rows), _CLOSED_AT_ONCE):
            some = slice(start, start + _CLOSED_AT_ONCE)
            same = [model.table.keys[row] == key for row, key in zip(rows[some].tolist(), keys[some], strict=True)]
            self._host.close_now(model, rows[some][same])
            closed += sum(same)
            await asyncio.sleep(0)
        return closed

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Any) -> pb.ForkSessionResponse:
        """Detached copies of a session as it is now."""
        host, count = self._host, request.count or 1
        if count > host.limits.max_frame_rows:
            raise errors.RequestInvalid(f"{count} copies; ask for at most {host.limits.max_frame_rows}")
        model, row = await self._settled(key_of(self._tenants.of(context), request.id))
        if host.draining:
            raise errors.Draining("the server is going away; fork the session on another one")
        source = np.array([row])
        make_room(host, model, count, keep=source)
        if model.arena.free < count:
            raise no_place(host, model)
        rows = copy_session(host, model, row, count, keep=source)
        sessions = [listing.session(host, Place(model, copy)) for copy in rows.tolist()]
        await self._durable(model, rows)
        return pb.ForkSessionResponse(sessions=sessions)

    async def ExportSession(self, request: pb.ExportSessionRequest, context: Any) -> pb.ExportSessionResponse:
        """A snapshot of a session as it is now."""
        place = await self._settled(key_of(self._tenants.of(context), request.id))
        (snapshot,) = sealed(self._host, place.model, np.array([place.row]))
        return pb.ExportSessionResponse(snapshot=snapshot, session=listing.session(self._host, place))

    async def RestoreSession(self, request: pb.RestoreSessionRequest, context: Any) -> pb.RestoreSessionResponse:
        """A detached session that begins where a snapshot was taken."""
        host, tenant = self._host, self._tenants.of(context)
        check_id(request.id)
        key = key_of(tenant, request.id or make_ids(1)[0])
        if request.id and self._peers:
            fate = (await self._peers.fates([key])).get(key)
            if isinstance(fate, errors.SessionElsewhere):
                raise exists(request.id)
        if host.draining:
            raise errors.Draining("the server is going away; restore the session on another one")
        model, snapshot = unsealed(host, tenant, request.snapshot)
        if host.directory.get(key) is not None:
            raise exists(request.id)
        make_room(host, model, 1)
        if not model.arena.free:
            raise no_place(host, model)
        rows = model.arena.allocate(1)
        model.table.start(rows, [key], snapshot.lease, host.clock())
        model.table.detach(rows, host.clock())
        fill(host, model, rows, [snapshot], None, "")
        place = Place(model, int(rows[0]))
        host.directory.add(key, place)
        model.metrics.opened("restored", 1)
        session = listing.session(host, place)
        await self._durable(model, rows)
        return pb.RestoreSessionResponse(session=session)

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Any
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        """Predictions of a session, the current one first, until it ends."""
        model, row = await self._settled(key_of(self._tenants.of(context), request.id))
        if self._host.draining:
            raise errors.Draining("the server is going away; watch the session on another one")
        with model.watched(row, request.with_words) as watcher:
            while True:
                yield await watcher.next()

    async def _settled(self, key: str) -> Place:
        """A live session of this worker whose state is not on its way back; why there is none."""
        directory = self._host.directory
        while (place := directory.get(key)) is not None:
            if not place.model.table.replaying[place.row]:
                return place
            await asyncio.sleep(0)
        known = await self._peers.fates([key]) if self._peers else {}
        raise known.get(key) or directory.missing(key)

    async def _durable(self, model: ServedModel, rows: RowArray) -> None:
        """Waits until new sessions are as safe as the durability promises."""
        reached = asyncio.Event()
        self._host.when_durable(model, rows, reached.set)
        await reached.wait()
