"""Live sessions as clients see them, and pages of them in the order of their creation."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import labels
from hiddenstate_server.errors import RequestInvalid
from hiddenstate_server.host import Host
from hiddenstate_server.model import ServedModel
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions import Place, id_of
from hiddenstate_server.streams import duration

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_TOKEN = re.compile(r"(\d{1,19})/([A-Za-z0-9._:-]{1,128})")

Position = tuple[int, str]
"""Creation in nanoseconds, then id: unique even among the workers of a server."""


def session(host: Host, place: Place) -> pb.Session:
    """One live session."""
    model, row = place
    table, wall = model.table, host.wall_offset
    lease, last_use = float(table.lease[row]), float(table.last_use[row])
    ends = min(last_use + lease, float(table.detached_at[row]) + host.limits.detach_timeout)
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
        shadow_version=model.followers.shadow_version(row),
    )
    message.create_time.FromNanoseconds(int(table.created[row]))
    message.last_use_time.FromNanoseconds(wall + round(last_use * 1e9))
    message.expire_time.FromNanoseconds(wall + round(ends * 1e9))
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
    """This process's page of a tenant; RequestInvalid for a page_token that no page gave, or an oversized page."""
    size = _page_size(request)
    after = _position(request.page_token)
    found: list[tuple[Position, Place]] = []
    total = 0
    wanted = Filter(tenant, request)
    for model in host.models:
        created = model.table.created
        rows = wanted.rows(host, model)
        total += len(rows)
        rows = rows[created[rows] >= after[0]]
        # Creations are distinct within a process, so one more than a page covers a tie with `after`.
        rows = rows[np.argsort(created[rows])][: size + 2]
        found += [((int(created[row]), id_of(model.table.keys[row])), Place(model, row)) for row in rows.tolist()]
    found = sorted((entry for entry in found if entry[0] > after), key=lambda entry: entry[0])
    response = pb.ListSessionsResponse(sessions=[session(host, place) for _, place in found[:size]], total_size=total)
    if len(found) > size:
        response.next_page_token = _token(response.sessions[-1])
    return response


def merged(request: pb.ListSessionsRequest, pages: Iterable[pb.ListSessionsResponse]) -> pb.ListSessionsResponse:
    """One page out of those of several processes."""
    size, pages = _page_size(request), list(pages)
    sessions = sorted(
        (session for page in pages for session in page.sessions),
        key=lambda session: (session.create_time.ToNanoseconds(), session.id),
    )
    response = pb.ListSessionsResponse(sessions=sessions[:size], total_size=sum(page.total_size for page in pages))
    if len(sessions) > size or any(page.next_page_token for page in pages):
        response.next_page_token = _token(response.sessions[-1])
    return response


def _page_size(request: pb.ListSessionsRequest) -> int:
    if request.page_size > _LARGEST_PAGE:
        raise RequestInvalid(f"page_size is {request.page_size}; ask for at most {_LARGEST_PAGE}")
    return request.page_size or _DEFAULT_PAGE


def _position(token: str) -> Position:
    if not token:
        return (0, "")
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise RequestInvalid("page_token is not one of this service; take it from the previous page")
    return (int(match[1]), match[2])


def _token(session: pb.Session) -> str:
    return f"{session.create_time.ToNanoseconds()}/{session.id}"
