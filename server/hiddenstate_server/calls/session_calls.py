"""Unary calls that act on sessions whoever holds them, as they are between two ticks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server import errors
from hiddenstate_server.calls import listing
from hiddenstate_server.calls.peers import Peers
from hiddenstate_server.calls.tenants import Tenants, is_private
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions import residence
from hiddenstate_server.sessions.forking import copy_session
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import Keeper
from hiddenstate_server.sessions.opening import check_id, exists, make_room, no_place, room
from hiddenstate_server.sessions.residence import Known, NeedsStore
from hiddenstate_server.sessions.transfers import fill, sealed, sealed_record, unsealed
from hiddenstate_server.stepping.directory import Ended, Place, id_of, key_of, make_ids
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.store import Record

_CLOSED_AT_ONCE = 256
_SAVE_SECONDS = 10.0


class SessionCalls(pb_grpc.HiddenStateServiceServicer):
    """Closes, copies, exports, restores and follows sessions; none goes beyond those of the caller's tenant."""

    def __init__(self, host: Host, keeper: Keeper | None, peers: Peers, tenants: Tenants) -> None:
        self._host = host
        self._keeper = keeper
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
        if self._keeper is not None:
            # What has just ended is not to be found alive in the store.
            await self._keeper.saved(_SAVE_SECONDS)
            if not is_private(context):
                closed += await self._close_stored(tenant, request, wanted)
                await self._keeper.saved(_SAVE_SECONDS)
        return pb.CloseSessionsResponse(closed=closed)

    async def _close_stored(self, tenant: str, request: pb.CloseSessionsRequest, wanted: listing.Filter) -> int:
        """Ends those that have no row in this server."""
        assert self._keeper is not None
        if request.ids:
            return await self._keeper.end([key_of(tenant, session_id) for session_id in request.ids])
        closed, after = 0, (0, "")
        while True:
            records, _ = await self._keeper.page(tenant, wanted.stored, after, _CLOSED_AT_ONCE)
            if not records:
                return closed
            closed += await self._keeper.end([record.key for record in records])
            after = (records[-1].created, records[-1].id)

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
        source = await self._session(key_of(self._tenants.of(context), request.id))
        if host.draining:
            raise errors.Draining("the server is going away; fork the session on another one")
        if isinstance(source, Record):
            model = residence.model_for(host, source)
            make_room(host, model, count)
            if room(host, model) < count:
                raise no_place(host, model)
            rows = residence.spawn(host, model, source, count)
        else:
            model, kept = source.model, np.array([source.row])
            make_room(host, model, count, keep=kept)
            if room(host, model) < count:
                raise no_place(host, model)
            rows = copy_session(host, model, source.row, count, keep=kept)
        sessions = [listing.session(host, Place(model, copy)) for copy in rows.tolist()]
        await self._durable(model, rows)
        return pb.ForkSessionResponse(sessions=sessions)

    async def ExportSession(self, request: pb.ExportSessionRequest, context: Any) -> pb.ExportSessionResponse:
        """A snapshot of a session as it is now."""
        host, source = self._host, await self._session(key_of(self._tenants.of(context), request.id))
        if isinstance(source, Record):
            snapshot, session = sealed_record(host, source), listing.of_record(host, source)
        else:
            (snapshot,) = sealed(host, source.model, np.array([source.row]))
            session = listing.session(host, source)
        return pb.ExportSessionResponse(snapshot=snapshot, session=session)

    async def RestoreSession(self, request: pb.RestoreSessionRequest, context: Any) -> pb.RestoreSessionResponse:
        """A detached session that begins where a snapshot was taken."""
        host, tenant = self._host, self._tenants.of(context)
        check_id(request.id)
        key = key_of(tenant, request.id or make_ids(1)[0])
        known = Known()
        if request.id:
            await self._check_new(key, known)
        if host.draining:
            raise errors.Draining("the server is going away; restore the session on another one")
        model, snapshot = unsealed(host, tenant, request.snapshot)
        if residence.is_live(host, key):
            raise exists(request.id)
        make_room(host, model, 1)
        if not room(host, model):
            raise no_place(host, model)
        rows = model.arena.allocate(1)
        model.table.start(rows, [key], snapshot.lease, host.clock())
        model.table.detach(rows, host.clock())
        model.table.fence[rows] = residence.make_fence(host, key, known)
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
        if self._keeper is not None:
            await self._settled_by_peers(key)
            await self._keeper.fetch(key)
            residence.give_row(self._host, key)
        place = await self._here(key)
        if place is None:
            known = await self._peers.fates([key]) if self._peers else {}
            raise known.get(key) or residence.missing(self._host, key)
        return place

    async def _session(self, key: str) -> Place | Record:
        """A live session's row in this worker, settled, or else what the store has of it; why there is none."""
        if self._keeper is None:
            return await self._settled(key)
        await self._keeper.confirm(key)
        return await self._here(key) or await self._stored(key)

    async def _here(self, key: str) -> Place | None:
        while (place := self._host.directory.get(key)) is not None:
            if not place.model.table.replaying[place.row]:
                return place
            await asyncio.sleep(0)
        return None

    async def _stored(self, key: str) -> Record:
        """A live session as it is in memory or in the store; why there is none."""
        assert self._keeper is not None
        await self._settled_by_peers(key)
        record = (await self._keeper.look([key])).get(key)
        if record is None:
            raise self._host.directory.missing(key)
        if record.ended:
            raise Ended[record.ended].error()
        if record.expires <= self._host.clock() + self._host.wall_seconds and not record.owner:
            raise Ended.EXPIRED.error()
        return record

    async def _settled_by_peers(self, key: str) -> None:
        """Has other workers write what they have of a session."""
        if self._peers:
            await self._peers.fates([key])

    async def _check_new(self, key: str, known: Known) -> None:
        """SessionExists if a session of this key is live anywhere."""
        if self._peers:
            fate = (await self._peers.fates([key])).get(key)
            if isinstance(fate, errors.SessionElsewhere):
                raise exists(id_of(key))
        if self._keeper is not None and not residence.known_here(self._host, key):
            await self._keeper.ask(NeedsStore(finds=[key]), known)
            if key in known.refusals:
                raise known.refusals[key]

    async def _durable(self, model: ServedModel, rows: RowArray) -> None:
        """Waits until new sessions are as safe as the durability promises."""
        reached = asyncio.Event()
        self._host.when_durable(model, rows, reached.set)
        await reached.wait()
