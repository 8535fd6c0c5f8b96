"""Moving sessions to another version of their model: a twin there is fed what is kept, and takes the session's place.

When a client asks for it, the move has its turn among the session's observations, and what comes behind it waits. When
a policy does, the twin goes along with the session until it has caught up. Either way the session is in its old version
until the new row is ready, and stays there if it never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.generation.continuations import Continuation
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions.opening import make_room, now_durable, opened
from hiddenstate_server.stepping.directory import Place
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.scheduler import REWARM, Batch, runs_of
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.stepping.twins import Twin, check_related

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host

Policy = Literal["pin", "rewarm"]

log = structlog.get_logger("hiddenstate_server.stepping.directory")

_AT_ONCE = 64
"""Sessions that a policy moves at the same time: the rest goes on meanwhile, and gets its share of every tick."""


@dataclass(eq=False)
class Rewarm:
    """A move that a client asked for."""

    stream: Stream
    handle: int
    version: str

    def abandon(self, error: errors.ServerError) -> None:
        """Tells the client that it does not happen."""
        self.stream.fault(error, self.handle)


def accept(stream: Stream, model: ServedModel, rows: RowArray, version: str, now: float) -> None:
    """Queues moves behind what the sessions have."""
    accepted: list[int] = []
    arguments: list[Rewarm] = []
    for row in rows.tolist():
        handle = int(model.table.handle[row])
        try:
            model.check_open(stream, row)
        except errors.ServerError as error:
            model.metrics.fault(error)
            stream.fault(error, handle)
            continue
        stream.backlog += 1
        accepted.append(row)
        arguments.append(Rewarm(stream, handle, version))
    if accepted:
        rows = np.array(accepted)
        model.scheduler.add(rows, None, REWARM, now, runs_of(rows), arguments)


def act(host: Host, source: ServedModel, batch: Batch, now: float) -> None:
    """Goes on with the moves whose turn it is."""
    for index, row in enumerate(batch.rows.tolist()):
        asked: Rewarm = batch.arguments[row]
        try:
            twin = source.followers.ahead(row) or _begin(host, source, row, asked.version, now)
            if twin is not None and twin.lost is not None:
                raise twin.lost
        except errors.ServerError as error:
            source.followers.abandon([row])
            host.metrics.fault(error)
            asked.stream.backlog -= 1
            asked.stream.fault(error, asked.handle)
            continue
        if twin is None:
            _answer(host, asked.stream, source, row)
        elif twin.caught_up:
            _move(host, source, row, twin)
            _answer(host, asked.stream, twin.model, twin.row)
        else:
            # It is looked at again in the next tick; what is queued behind it stays behind it.
            source.scheduler.insert(row, None, batch.flags[index : index + 1], float(batch.received[index]), [asked])
            continue


def _begin(host: Host, source: ServedModel, row: int, version: str, now: float) -> Twin | None:
    """A twin to move to; None if the session is there already."""
    target = host.model(source.info.name, version)
    if target is source:
        return None
    check_related(source.info, target.info)
    make_room(host, target, 1)
    if not target.arena.free:
        raise errors.SessionLimit(
            f"{target.capacity} sessions of {target.info} are live, the limit; try again later", limit=target.capacity
        )
    (twin,) = source.followers.start(np.array([row]), target, compared=False, now=now)
    source.followers.wait_for(row, twin)
    return twin


def _answer(host: Host, stream: Stream, model: ServedModel, row: int) -> None:
    """Tells the client that asked, once a restart finds the session there: it sends the new version's tokens now."""
    host.when_durable(model, np.array([row]), partial(_send, stream, now_durable(_opened(host, model, row))))


def _send(stream: Stream, answer: pb.Opened) -> None:
    stream.backlog -= 1
    stream.opened(answer)


def _opened(host: Host, model: ServedModel, row: int) -> pb.Opened:
    rows = np.array([row])
    return opened(host, model, model.table.handle[rows], rows, float(model.table.lease[row]))


def _move(host: Host, source: ServedModel, row: int, twin: Twin) -> None:
    """The twin's row becomes the session's, with all that is queued for it."""
    target, new = twin.model, twin.row
    del target.twins[new]
    target.table.take_over(new, source.table, row)
    key = target.table.keys[new]
    host.directory.move(key, Place(target, new))
    stream = host.streams.get(int(target.table.stream[new]))
    if stream is not None:
        stream.bind(int(target.table.handle[new]), target.base + new)
    for argument in source.scheduler.move(row, target.scheduler, new, twin.translated):
        if isinstance(argument, Continuation):
            argument.move_to(target, twin.translated)
    source.rewinding.move(row, target.rewinding, new)
    source.followers.move(row, twin, target.followers)
    source.release(np.array([row]))
    source.metrics.ended("rewarmed", 1)
    target.metrics.opened("rewarmed", 1)
    log.info("session moved", session=key, model=target.info.name, version=target.info.version)


class Moving:
    """Moves sessions without being asked, as the operator wants it."""

    def __init__(self, host: Host, on_new_version: Policy, on_retire: Policy) -> None:
        self._host = host
        self._on_new_version = on_new_version
        self._on_retire = on_retire
        self._under_way: list[tuple[ServedModel, int, Twin]] = []

    def go_on(self) -> None:
        """Moves the sessions whose twins have caught up, and gives twins to some more."""
        host, now = self._host, self._host.clock()
        for source, row, twin in self._still_under_way():
            if twin.caught_up and _movable(source, np.array([row])).all():
                _move(host, source, row, twin)
                stream = host.streams.get(int(twin.model.table.stream[twin.row]))
                if stream is not None:
                    stream.opened(_opened(host, twin.model, twin.row))
        self._under_way = self._still_under_way()
        for source in host.models:
            target = self._target(source)
            if target is not None:
                self._begin(source, target, now)

    def _still_under_way(self) -> list[tuple[ServedModel, int, Twin]]:
        """Without sessions that have ended, or moved on their own."""
        return [
            (source, row, twin)
            for source, row, twin in self._under_way
            if source in self._host.models and source.followers.along(row) is twin
        ]

    def _target(self, source: ServedModel) -> ServedModel | None:
        """Where the sessions of a model are to go."""
        policy = self._on_retire if source.retired else self._on_new_version
        if policy == "pin" or not source.sessions:
            return None
        try:
            target = self._host.model(source.info.name)
            check_related(source.info, target.info)
        except (errors.ModelNotFound, errors.InputInvalid):
            return None
        # A client that was not asked goes on sending tokens of the vocabulary it knows.
        if target is source or source.followers.translation(target) is not None:
            return None
        return target

    def _begin(self, source: ServedModel, target: ServedModel, now: float) -> None:
        rows = np.setdiff1d(source.table.live(), [row for model, row, _ in self._under_way if model is source])
        rows = rows[_movable(source, rows)]
        count = min(_AT_ONCE - len(self._under_way), self._host.limits.max_sessions - target.arena.used)
        for row in rows[: max(0, count)].tolist():
            twin = source.followers.along(row)
            if twin is None or twin.model is not target:
                (twin,) = source.followers.start(np.array([row]), target, compared=False, now=now)
                source.followers.lead(row, twin)
            self._under_way.append((source, row, twin))


def _movable(source: ServedModel, rows: RowArray) -> NDArray[np.bool_]:
    """[n]: which sessions are in a state that another version can go on from."""
    movable: NDArray[np.bool_] = ~(source.table.closing[rows] | source.table.replaying[rows])
    return movable
