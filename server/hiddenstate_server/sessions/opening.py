"""What an Open frame does: each handle a session, new or resumed, or a fault of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions import residence
from hiddenstate_server.sessions.labels import packed
from hiddenstate_server.sessions.residence import Known, NeedsStore
from hiddenstate_server.sessions.snapshots import Snapshot
from hiddenstate_server.sessions.transfers import fill, unsealed
from hiddenstate_server.stepping import frames
from hiddenstate_server.stepping.directory import Ended, Place, id_of, key_of, make_ids, valid_id
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.streams import Stream, duration
from hiddenstate_server.stepping.twins import check_related, start_shadows
from hiddenstate_server.store import Record

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host


Refusals = list[tuple[int, errors.ServerError]]


def open_sessions(host: Host, stream: Stream, frame: pb.Open, known: Known) -> None:
    """Opens or resumes one session per handle; FrameInvalid or InputInvalid refuse the frame.

    `known` says what other processes, and the store, know of the keys. NeedsStore if they have to be asked first.
    """
    handles = frames.handles_of(frame.handles, host.limits.max_frame_rows).tolist()
    ids = list(frame.session_ids)
    if ids and len(ids) != len(handles):
        raise errors.FrameInvalid(f"{len(ids)} session_ids for {len(handles)} handles; send one per handle, or none")
    if frame.mode == pb.OPEN_MODE_RESTORE and len(frame.snapshots) != len(handles):
        raise errors.FrameInvalid(f"{len(frame.snapshots)} snapshots for {len(handles)} handles; send one per handle")
    lease, labels = _lease(host, frame), packed(frame.labels)
    if host.ledger is not None and not host.draining:
        _ask_store(host, stream, frame, known)
    refused: Refusals = []
    usable: list[tuple[int, str]] = []
    seen: set[int] = set()
    for handle, session_id in zip(handles, ids or [""] * len(handles), strict=True):
        try:
            _check(host, stream, handle, session_id, seen)
        except errors.ServerError as error:
            refused.append((handle, error))
        else:
            seen.add(handle)
            usable.append((handle, session_id))
    if frame.mode == pb.OPEN_MODE_RESUME:
        refused += _resume(host, stream, usable, frame, lease, known)
    elif frame.mode == pb.OPEN_MODE_RESTORE:
        snapshots = dict(zip(handles, frame.snapshots, strict=True))
        refused += _restore(host, stream, usable, snapshots, frame, lease, labels, known)
    else:
        refused += _create(host, stream, usable, frame, lease, labels, known)
    for handle, refusal in refused:
        host.metrics.fault(refusal)
        stream.fault(refusal, handle)


def _ask_store(host: Host, stream: Stream, frame: pb.Open, known: Known) -> None:
    assert host.ledger is not None
    keys = [key_of(stream.tenant, session_id) for session_id in frame.session_ids if valid_id(session_id)]
    unasked = [key for key in keys if key not in known.asked]
    if frame.mode == pb.OPEN_MODE_RESUME:
        claims = [key for key in unasked if host.ledger.shared or not residence.present(host, key)]
        if claims:
            raise NeedsStore(claims=claims)
        return
    finds = [key for key in unasked if not residence.known_here(host, key)]
    if finds:
        raise NeedsStore(finds=finds)


def _lease(host: Host, frame: pb.Open) -> float | None:
    """Seconds asked for, capped; None if left to the server."""
    if not frame.HasField("idle_timeout"):
        return None
    seconds = frame.idle_timeout.ToNanoseconds() / 1e9
    if seconds <= 0:
        raise errors.InputInvalid(f"idle_timeout is {seconds} s; ask for a positive one, or leave it out")
    return min(seconds, host.limits.max_idle_timeout)


def _check(host: Host, stream: Stream, handle: int, session_id: str, seen: set[int]) -> None:
    if host.draining:
        raise errors.Draining("the server is going away; open the session on another one")
    if handle in seen:
        raise errors.HandleInUse(f"handle {handle} stands in the frame twice; choose another")
    check_handle(stream, handle)
    check_id(session_id)


def check_id(session_id: str) -> None:
    """Raises InputInvalid unless the id is empty, for the server to make one, or a valid one."""
    if session_id and not valid_id(session_id):
        raise errors.InputInvalid("a session id has 1 to 128 characters of A-Z a-z 0-9 . _ : -")


def exists(session_id: str) -> errors.SessionExists:
    """Why a session cannot be made."""
    return errors.SessionExists(f"session {session_id!r} is live; resume it or choose another id")


def check_handle(stream: Stream, handle: int) -> None:
    """Raises HandleInUse unless the handle can be given to another session."""
    if handle >= stream.max_sessions:
        raise errors.HandleInUse(f"handles go from 0 to {stream.max_sessions - 1}; choose a small one")
    if stream.is_bound(handle):
        raise errors.HandleInUse(f"handle {handle} is open on this stream; close it first or choose another")


def _create(
    host: Host,
    stream: Stream,
    usable: list[tuple[int, str]],
    frame: pb.Open,
    lease: float | None,
    labels: str,
    known: Known,
) -> Refusals:
    try:
        model = host.model(frame.model, frame.version)
    except errors.ModelNotFound as error:
        return [(handle, error) for handle, _ in usable]
    return _make(host, stream, model, usable, {}, frame, lease, labels, known)


def _restore(
    host: Host,
    stream: Stream,
    usable: list[tuple[int, str]],
    data: Mapping[int, bytes],
    frame: pb.Open,
    lease: float | None,
    labels: str,
    known: Known,
) -> Refusals:
    """Makes sessions that begin where the snapshots in `data`, by handle, were taken."""
    refused: Refusals = []
    snapshots: dict[int, Snapshot] = {}
    by_model = defaultdict[ServedModel, list[tuple[int, str]]](list)
    for handle, session_id in usable:
        try:
            model, snapshots[handle] = unsealed(host, stream.tenant, data[handle])
            if frame.model not in ("", model.info.name) or frame.version not in ("", model.info.version):
                raise errors.SnapshotInvalid(f"the snapshot is of {model.info}; name that model, or none")
        except errors.ServerError as error:
            refused.append((handle, error))
        else:
            by_model[model].append((handle, session_id))
    for model, of_model in by_model.items():
        refused += _make(host, stream, model, of_model, snapshots, frame, lease, labels, known)
    return refused


def _make(
    host: Host,
    stream: Stream,
    model: ServedModel,
    usable: list[tuple[int, str]],
    snapshots: Mapping[int, Snapshot],
    frame: pb.Open,
    lease: float | None,
    labels: str,
    known: Known,
) -> Refusals:
    try:
        shadow = _shadow_model(host, model, frame.shadow_version)
    except (errors.ModelNotFound, errors.InputInvalid) as error:
        return [(handle, error) for handle, _ in usable]
    refused: Refusals = []
    new: dict[str, int] = {}
    for (handle, session_id), made in zip(usable, make_ids(len(usable)), strict=True):
        key = key_of(stream.tenant, session_id or made)
        refusal = known.refusals.get(key)
        if isinstance(refusal, errors.StoreUnavailable):
            refused.append((handle, refusal))
        elif key in new or residence.is_live(host, key) or isinstance(refusal, _LIVE):
            refused.append((handle, exists(session_id)))
        else:
            new[key] = handle
    make_room(host, model, len(new))
    places = room(host, model)
    for key, handle in list(new.items())[places:]:
        del new[key]
        refused.append((handle, no_place(host, model)))
    if new:
        if host.ledger is not None:
            host.ledger.stored += len(new)
        seconds = host.limits.idle_timeout if lease is None else lease
        rows = _start(host, stream, model, new, seconds, labels, known)
        if snapshots:
            fill(host, model, rows, [snapshots[handle] for handle in new.values()], lease, labels)
            _answer_restored(host, stream, model, rows)
        else:
            model.metrics.opened("created", len(rows))
            stream.opened(opened(host, model, model.table.handle[rows], rows, model.table.lease.item(rows[0])))
        if shadow is not None:
            start_shadows(model, rows, shadow, host.clock())
    return refused


def _shadow_model(host: Host, model: ServedModel, version: str) -> ServedModel | None:
    """The model that is to be fed along; None for none."""
    if not version:
        return None
    shadow = host.model(model.info.name, version)
    if shadow is model:
        raise errors.InputInvalid(f"{model.info} cannot be its own shadow; name another version")
    check_related(model.info, shadow.info)
    return shadow


def no_place(host: Host, model: ServedModel) -> errors.SessionLimit:
    """Why there is no room for another session of this model."""
    limit = host.limits.max_sessions
    if host.ledger is not None:
        stored = host.limits.max_stored_sessions
        if host.ledger.stored >= stored:
            return errors.SessionLimit(
                f"{stored} sessions are live, the limit; close some or try again later", limit=stored
            )
        return errors.SessionLimit(
            f"{limit} sessions of {model.info.name} are in memory, the limit, and the store does not take them fast "
            "enough; try again",
            limit=limit,
        )
    return errors.SessionLimit(
        f"{limit} sessions of {model.info.name} are live, the limit; close some or try again later", limit=limit
    )


def room(host: Host, model: ServedModel) -> int:
    """How many more sessions there may be at once."""
    if host.ledger is None:
        return model.arena.free
    return max(0, min(model.arena.free, host.limits.max_stored_sessions - host.ledger.stored))


def make_room(host: Host, model: ServedModel, count: int, keep: RowArray | None = None) -> None:
    """Has twins, then sessions used longest ago, give up their rows, so that `count` more fit if possible; `keep` stay.

    Where there is no store they are detached ones, and end.
    """
    if host.ledger is not None:
        residence.make_room(host, model, count, keep)
        return
    lacking = count - model.arena.free
    if lacking > 0:
        model.give_up_twins(lacking)
        lacking = count - model.arena.free
    if lacking > 0:
        detached = model.table.detached()
        if keep is not None:
            detached = detached[~np.isin(detached, keep)]
        evicted = model.table.longest_unused(detached, lacking)
        if len(evicted):
            host.end(model, evicted, Ended.EVICTED)


def _start(
    host: Host,
    stream: Stream,
    model: ServedModel,
    new: dict[str, int],
    lease: float,
    labels: str,
    known: Known,
) -> RowArray:
    rows = model.arena.allocate(len(new))
    handles = np.fromiter(new.values(), np.uint32, len(new))
    model.table.start(rows, list(new), lease, host.clock(), labels)
    model.table.attach(rows, stream.number, handles)
    for (key, handle), row in zip(new.items(), rows.tolist(), strict=True):
        host.directory.add(key, Place(model, row))
        stream.bind(handle, model.base + row)
        model.table.fence[row] = residence.make_fence(host, key, known)
    return rows


def _answer_restored(host: Host, stream: Stream, model: ServedModel, rows: RowArray) -> None:
    """Tells of each when it is durable; the leases of snapshots may differ."""

    def answer(opening: pb.Opened) -> None:
        stream.backlog -= 1
        stream.opened(now_durable(opening))

    model.metrics.opened("restored", len(rows))
    stream.backlog += len(rows)
    for row in rows.tolist():
        one = np.array([row])
        opening = opened(host, model, model.table.handle[one], one, model.table.lease.item(row))
        host.when_durable(model, one, partial(answer, opening))


def _resume(
    host: Host,
    stream: Stream,
    usable: list[tuple[int, str]],
    frame: pb.Open,
    lease: float | None,
    known: Known,
) -> Refusals:
    refused: Refusals = []
    for handle, session_id in usable:
        try:
            key = key_of(stream.tenant, session_id)
            place = host.directory.get(key)
            record = None if host.ledger is None else host.ledger.live(key)
            if key in known.refusals and (place is None or key in known.asked):
                raise known.refusals[key]
            if place is not None:
                _check_model(place.model.info.name, session_id, frame)
                _take_over(host, stream, handle, place, lease)
            elif record is not None:
                _check_model(record.model, session_id, frame)
                _take_stored(host, stream, handle, record, lease)
            else:
                raise residence.missing(host, key)
        except errors.ServerError as error:
            refused.append((handle, error))
    return refused


def _check_model(name: str, session_id: str, frame: pb.Open) -> None:
    # It may have moved to another version than its client knows of; the answer tells which.
    if frame.model and frame.model != name:
        raise errors.SessionNotFound(
            f"session {session_id!r} belongs to {name}; name that model, or none, to resume it"
        )


def _take_stored(host: Host, stream: Stream, handle: int, record: Record, lease: float | None) -> None:
    """Resumes a session that has no row; it gets one when it is used."""
    model = host.model(record.model, record.version, retired=True)
    record = residence.attach_away(host, stream, handle, model, record, lease)
    model.metrics.opened("resumed", 1)
    answer = pb.Opened(
        handles=frames.handle_bytes(np.array([handle])),
        session_ids=[record.id],
        steps=frames.step_bytes(np.array([record.step])),
        rewinds=frames.handle_bytes(np.array([record.rewinds])),
        durable_steps=frames.step_bytes(stream.away.durable[handle : handle + 1]),
    )
    stream.opened(_described(host, answer, model, record.lease))


def _take_over(host: Host, stream: Stream, handle: int, place: Place, lease: float | None) -> None:
    model, row = place
    table, rows, now = model.table, np.array([place.row]), host.clock()
    holder = host.streams.get(int(table.stream[row]))
    if holder is not None:
        model.drop(rows, Ended.TAKEN_OVER.error())
        old_handle = int(table.handle[row])
        holder.unbind(old_handle, Ended.TAKEN_OVER)
        host.metrics.fault(Ended.TAKEN_OVER.error())
        holder.fault(Ended.TAKEN_OVER.error(), old_handle)
    if lease is not None:
        table.lease[row] = lease
        table.unsaved[row] = True
    table.last_use[row] = now
    table.attach(rows, stream.number, np.array([handle], np.uint32))
    stream.bind(handle, model.base + row)
    model.metrics.opened("resumed", 1)
    stream.opened(opened(host, model, table.handle[rows], rows, float(table.lease[row])))


def opened(host: Host, model: ServedModel, handles: NDArray[np.uint32], rows: RowArray, lease: float) -> pb.Opened:
    """The answer for sessions with one lease."""
    table = model.table
    answer = pb.Opened(
        handles=frames.handle_bytes(handles),
        session_ids=[id_of(table.keys[row]) for row in rows.tolist()],
        steps=frames.step_bytes(table.applied[rows]),
        rewinds=frames.handle_bytes(table.rewinds[rows]),
        durable_steps=b"" if host.ledger is None else frames.step_bytes(table.durable[rows]),
    )
    return _described(host, answer, model, lease)


def now_durable(answer: pb.Opened) -> pb.Opened:
    """The same answer, once the store has what it tells."""
    if answer.durable_steps:
        answer.durable_steps = answer.steps
    return answer


def _described(host: Host, answer: pb.Opened, model: ServedModel, lease: float) -> pb.Opened:
    answer.model, answer.version = model.info.name, model.info.version
    answer.rewind_limit = model.history.limit
    answer.idle_timeout.CopyFrom(duration(lease))
    answer.durability = host.durability
    return answer


_LIVE = (errors.SessionElsewhere, errors.SessionExists)
"""What refuses a new session of the same id."""
