"""Live sessions as clients see them, and pages of them in the order of their creation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import RequestInvalid
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions import labels
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.stepping.directory import Place, id_of
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.streams import duration
from hiddenstate_server.store import Filters, Record

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_TOKEN = re.compile(r"(\d{1,19})/([A-Za-z0-9._:-]{1,128})")

Position = tuple[int, str]
"""Creation in nanoseconds, then id: unique even among the workers of a server."""


def session(host: Host, place: Place) -> pb.Session:
    """One live session."""
    model, row = place
    table, wall = model.table, host.wall_offset
    lease, last_use = float(table.lease[row]), float(table.last_use[row])
    ends = last_use + lease
    if host.ledger is None:
        ends = min(ends, float(table.detached_at[row]) + host.limits.detach_timeout)
    message = pb.Session(
        id=id_of(table.keys[row]),
        model=model.info.name,
        version=model.info.version,
        step=int(table.applied[row]),
        idle_timeout=duration(lease),
        attached=bool(table.stream[row] >= 0),
        labels=labels.unpacked(table.labels[row]),
        bytes=model.session_bytes,
        rewinds=int(table.rewinds[row]),
        place=pb.PLACE_ARENA,
        durable_step=int(table.durable[row]),
        shadow_version=model.followers.shadow_version(row),
    )
    message.create_time.FromNanoseconds(int(table.created[row]))
    message.last_use_time.FromNanoseconds(wall + round(last_use * 1e9))
    message.expire_time.FromNanoseconds(wall + round(ends * 1e9))
    return message


def of_record(host: Host, record: Record) -> pb.Session:
    """One live session without a row: of this process's memory, or as the store has it."""
    assert host.ledger is not None
    here = host.ledger.live(record.key) is not None
    held = host.ledger.holder(record.key) is not None
    message = pb.Session(
        id=record.id,
        model=record.model,
        version=record.version,
        step=record.step,
        idle_timeout=duration(record.lease),
        attached=held or record.owner not in ("", host.ledger.owner),
        labels=labels.unpacked(record.labels),
        bytes=record.size or len(record.body),
        rewinds=record.rewinds,
        shadow_version=record.shadow,
        place=pb.PLACE_MEMORY if here else pb.PLACE_STORE,
        durable_step=host.ledger.durable(record),
    )
    message.create_time.FromNanoseconds(record.created)
    message.last_use_time.FromNanoseconds(round(record.last_use * 1e9))
    message.expire_time.FromNanoseconds(round(record.expires * 1e9))
    return message


class Filter:
    """Which of a tenant's sessions a request is about."""

    def __init__(self, tenant: str, request: pb.ListSessionsRequest | pb.CloseSessionsRequest) -> None:
        """RequestInvalid where the request's idle time is negative."""
        self._tenant = tenant
        self._model = request.model
        self._labels = dict(request.labels)
        self._idle_for = request.idle_for.ToNanoseconds() / 1e9
        if self._idle_for < 0:
            raise RequestInvalid(f"idle_for is {self._idle_for} s; ask for a positive one, or leave it out")

    @property
    def stored(self) -> Filters:
        """The same for a store."""
        return Filters(self._model, self._labels, self._idle_for)

    def records(self, host: Host) -> list[Record]:
        """Those in memory, on their way to the store, that match."""
        if host.ledger is None:
            return []
        used_by = host.clock() + host.wall_seconds - self._idle_for
        return [
            record
            for record, *_ in host.ledger.unsaved.values()
            if not record.ended
            and record.tenant == self._tenant
            and self._model in ("", record.model)
            and (not self._idle_for or record.last_use <= used_by)
            and labels.match(record.labels, self._labels)
        ]

    def rows(self, host: Host, model: ServedModel) -> RowArray:
        """The rows of a model that match."""
        if self._model not in ("", model.info.name):
            return np.empty(0, np.int64)
        table = model.table
        rows = table.live(self._tenant)
        if self._idle_for:
            rows = rows[table.last_use[rows] <= host.clock() - self._idle_for]
        if self._labels:
            rows = rows[[labels.match(table.labels[row], self._labels) for row in rows.tolist()]]
        return rows


def page(host: Host, tenant: str, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
    """This process's page of a tenant; RequestInvalid for a page_token that no page gave, or an oversized page.

    Where there is a store, `total_size` only counts sessions that it does not know yet.
    """
    size = page_size(request)
    after = position(request.page_token)
    found: list[tuple[Position, Place | Record]] = []
    total = 0
    wanted = Filter(tenant, request)
    for model in host.models:
        created = model.table.created
        rows = wanted.rows(host, model)
        total += len(rows) if host.ledger is None else int((~model.table.stored[rows]).sum())
        rows = rows[created[rows] >= after[0]]
        # Creations are distinct within a process, so one more than a page covers a tie with `after`.
        rows = rows[np.argsort(created[rows])][: size + 2]
        found += [((int(created[row]), id_of(model.table.keys[row])), Place(model, row)) for row in rows.tolist()]
    for record in wanted.records(host):
        found.append(((record.created, record.id), record))
        total += not host.ledger.unsaved[record.key].stored  # type: ignore[union-attr]
    found = sorted((entry for entry in found if entry[0] > after), key=lambda entry: entry[0])
    sessions = [
        session(host, entry) if isinstance(entry, Place) else of_record(host, entry) for _, entry in found[:size]
    ]
    response = pb.ListSessionsResponse(sessions=sessions, total_size=total)
    if len(found) > size:
        response.next_page_token = _token(_position_of(response.sessions[-1]))
    return response


def stored_page(
    host: Host, request: pb.ListSessionsRequest, records: Sequence[Record], total: int
) -> pb.ListSessionsResponse:
    """The store's page, from up to one record more than it holds."""
    assert host.ledger is not None
    size, ended = page_size(request), host.ledger.ended
    sessions = [of_record(host, record) for record in records[:size] if not ended(record.key)]
    total -= sum(ended(record.key) for record in records)
    response = pb.ListSessionsResponse(sessions=sessions, total_size=total)
    if len(records) > size:
        last = records[size - 1]
        response.next_page_token = _token((last.created, last.id))
    return response


def merged(request: pb.ListSessionsRequest, pages: Iterable[pb.ListSessionsResponse]) -> pb.ListSessionsResponse:
    """One page out of those of several processes and the store, which may know the same sessions.

    Of a session that stands in several the furthest is right, and whoever has it in memory knows it best.
    """
    size, pages = page_size(request), list(pages)
    known: dict[Position, pb.Session] = {}
    for found in (session for page in pages for session in page.sessions):
        other = known.get(_position_of(found))
        if other is None or _rank(found) > _rank(other):
            known[_position_of(found)] = found
    # Beyond the end of a page that goes on there may be sessions that are not seen here.
    ends = [position(page.next_page_token) for page in pages if page.next_page_token]
    seen = sorted(place for place in known if not ends or place <= min(ends))
    response = pb.ListSessionsResponse(
        sessions=[known[place] for place in seen[:size]], total_size=sum(page.total_size for page in pages)
    )
    if len(seen) > size or ends:
        response.next_page_token = _token(seen[:size][-1] if len(seen) >= size else min(ends))
    return response


def _rank(session: pb.Session) -> tuple[int, int, bool]:
    return session.rewinds, session.step, session.place != pb.PLACE_STORE


def page_size(request: pb.ListSessionsRequest) -> int:
    """How many sessions a page holds; RequestInvalid for too many."""
    if request.page_size > _LARGEST_PAGE:
        raise RequestInvalid(f"page_size is {request.page_size}; ask for at most {_LARGEST_PAGE}")
    return request.page_size or _DEFAULT_PAGE


def position(token: str) -> Position:
    """After which a page begins; RequestInvalid for a token that no page gave."""
    if not token:
        return (0, "")
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise RequestInvalid("page_token is not one of this service; take it from the previous page")
    return (int(match[1]), match[2])


def _token(last: Position) -> str:
    return f"{last[0]}/{last[1]}"


def _position_of(session: pb.Session) -> Position:
    return session.create_time.ToNanoseconds(), session.id
