"""Copies of sessions: new ids, the same state, history, labels and lease.

A fork on a stream is an item of its session's chain, so that it copies what the observations before it have led to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions.opening import check_handle, make_room, no_place, now_durable, opened, room
from hiddenstate_server.stepping import frames
from hiddenstate_server.stepping.directory import Place, key_of, make_ids, tenant_of
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.scheduler import FORK, Batch
from hiddenstate_server.stepping.streams import Stream

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host


@dataclass(eq=False)
class Copies:
    """The handles that copies of one session are to have."""

    stream: Stream
    handles: list[int]

    def abandon(self, error: errors.ServerError) -> None:
        """Frees the handles and tells the client why."""
        for handle in self.handles:
            self.refuse(handle, error)

    def refuse(self, handle: int, error: errors.ServerError) -> None:
        """Frees one handle."""
        self.stream.free(handle)
        self.stream.fault(error, handle)


def begin_forks(host: Host, stream: Stream, frame: pb.Fork) -> None:
    """Queues a Fork frame's copies, all of one session as one item; a fault names the handle its copy was to have."""
    handles = frames.handles_of(frame.handles, host.limits.max_frame_rows)
    new_handles = frames.handles_of(frame.new_handles, host.limits.max_frame_rows)
    if len(handles) != len(new_handles):
        raise errors.FrameInvalid(f"{len(new_handles)} new_handles for {len(handles)} handles; send one per handle")
    host.bring_back(stream, handles)
    forks: dict[Place, list[int]] = {}
    for handle, new_handle in zip(handles.tolist(), new_handles.tolist(), strict=True):
        try:
            if host.draining:
                raise errors.Draining("the server is going away; fork the session on another one")
            check_handle(stream, new_handle)
            place = host.place(stream, handle)
            if place not in forks:
                place.model.check_open(stream, place.row)
                stream.backlog += 1
        except errors.ServerError as error:
            host.metrics.fault(error)
            stream.fault(error, new_handle)
            continue
        stream.reserve(new_handle)
        forks.setdefault(place, []).append(new_handle)
    for (model, row), copies in forks.items():
        model.scheduler.add(np.array([row]), None, FORK, host.clock(), arguments=[Copies(stream, copies)])


def fork(host: Host, model: ServedModel, batch: Batch, _now: float) -> None:
    """Makes the copies whose turn it is; those there is no room for are refused."""
    for row in batch.rows.tolist():
        asked: Copies = batch.arguments[row]
        stream = asked.stream
        rows = copy_session(host, model, row, len(asked.handles), keep=batch.rows)
        handles = np.array(asked.handles[: len(rows)], np.uint32)
        model.table.attach(rows, stream.number, handles)
        for handle, copy in zip(handles.tolist(), rows.tolist(), strict=True):
            stream.bind(handle, model.base + copy)
        for handle in asked.handles[len(rows) :]:
            error = no_place(host, model)
            host.metrics.fault(error)
            asked.refuse(handle, error)
        # The copies may have no rows any more when they are durable.
        lease = model.table.lease.item(row)
        answer = opened(host, model, handles, rows, lease) if len(rows) else None
        host.when_durable(model, rows, partial(_answer, stream, answer))


def _answer(stream: Stream, answer: pb.Opened | None) -> None:
    stream.backlog -= 1
    if answer is not None:
        stream.opened(now_durable(answer))


def copy_session(host: Host, model: ServedModel, row: int, count: int, keep: RowArray) -> RowArray:
    """Rows of up to `count` detached copies, as many as there is room for without `keep`."""
    make_room(host, model, count, keep)
    count = min(count, room(host, model))
    table, arena = model.table, model.arena
    rows = arena.allocate(count)
    if count:
        tenant = tenant_of(table.keys[row])
        table.start(rows, [key_of(tenant, made) for made in make_ids(count)], table.lease.item(row), host.clock())
        table.applied[rows] = table.accepted[rows] = table.applied[row]
        table.detach(rows, host.clock())
        for copy in rows.tolist():
            table.labels[copy] = table.labels[row]
            host.directory.add(table.keys[copy], Place(model, copy))
        arena.copy(row, rows)
        model.history.copy(row, rows)
        model.metrics.opened("forked", count)
    return rows
