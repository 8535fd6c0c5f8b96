"""Where sessions are: they move between the rows of an arena, memory and the store, and may turn out to be another's.

Everything here happens at once, in the event loop's thread; what needs the store is asked for with NeedsStore, and done
again once the keeper has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions.ledger import Holder, Outcome, Packed
from hiddenstate_server.stepping.directory import DETACHED, Ended, Place, Saved, id_of, key_of, make_ids, tenant_of
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.records import RecordInvalid
from hiddenstate_server.stepping.streams import AWAY, Stream
from hiddenstate_server.stepping.twins import start_shadows
from hiddenstate_server.store import Record

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host

log = structlog.get_logger("hiddenstate_server.stepping.directory")

_AT_ONCE = 64
"""Rows are freed a 64th of the arena at a time, so that looking for those to free costs little for each."""


_CHECKED_AT_ONCE = 1024


class NeedsStore(Exception):
    """A frame cannot be applied before the store was asked; nothing of it has been."""

    def __init__(self, claims: Sequence[str] = (), finds: Sequence[str] = ()) -> None:
        super().__init__()
        self.claims = claims
        """Keys of sessions that are to be this process's from now on."""
        self.finds = finds
        """Keys that may be anybody's, or nobody's."""


class NeedsRoom(Exception):
    """A frame cannot be applied before rows with work under way become free; nothing of it has been."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = keys
        """Of the sessions that are to have rows."""


@dataclass
class Known:
    """What other processes and the store know of the keys in a frame."""

    refusals: dict[str, errors.ServerError] = field(default_factory=dict)
    """Why a session cannot be had, or not be made."""
    fences: dict[str, int] = field(default_factory=dict)
    """What a new session of the key must have."""
    asked: set[str] = field(default_factory=set)
    """Keys the store was asked about."""


def missing(host: Host, key: str) -> errors.ServerError:
    """Why there is no live session of this key, as far as this process knows."""
    packed = None if host.ledger is None else host.ledger.unsaved.get(key)
    if packed is not None and packed.record.ended:
        return Ended[packed.record.ended].error()
    return host.directory.missing(key)


# records


def records_of(host: Host, model: ServedModel, rows: RowArray) -> list[Record]:
    """What the store is to have of these rows."""
    table = model.table
    owner = _owner(host)
    name, version = model.info.name, model.info.version
    columns = zip(
        rows.tolist(),
        table.fence[rows].tolist(),
        table.applied[rows].tolist(),
        table.rewinds[rows].tolist(),
        table.created[rows].tolist(),
        (table.last_use[rows] + host.wall_seconds).tolist(),
        table.lease[rows].tolist(),
        model.pack(rows),
        strict=True,
    )
    key, labels, shadow = table.keys, table.labels, model.followers.shadow_version
    return [
        Record(key[row], fence, owner, name, version, step, back, made, use, lease, labels[row], shadow(row), "", body)
        for row, fence, step, back, made, use, lease, body in columns
    ]


def _owner(host: Host) -> str:
    assert host.ledger is not None
    return "" if host.ledger.releasing else host.ledger.owner


def record_ends(host: Host, model: ServedModel, rows: RowArray, ending: Ended) -> None:
    """Has the store told how sessions ended."""
    assert host.ledger is not None
    table, wall = model.table, host.wall_seconds
    for row in rows.tolist():
        record = Record(
            table.keys[row],
            table.fence.item(row),
            "",
            model.info.name,
            model.info.version,
            table.applied.item(row),
            table.rewinds.item(row),
            table.created.item(row),
            table.last_use.item(row) + wall,
            table.lease.item(row),
            table.labels[row],
            "",
            ending.name,
            b"",
        )
        host.ledger.unsaved[record.key] = Packed(record, table.durable.item(row), table.stored.item(row))


def make_fence(host: Host, key: str, known: Known) -> int:
    """The fence of a new session, above that of an ended one of its key."""
    ledger = host.ledger
    if ledger is None:
        return 1
    ended = ledger.unsaved.pop(key, None)
    return max(known.fences.get(key, 1), 1 if ended is None else ended.record.fence + 1)


# out of the arena


def make_room(host: Host, model: ServedModel, count: int, keep: RowArray | None = None) -> None:
    """Moves the sessions used longest ago out of the arena, so that `count` more may have rows; `keep` stay.

    There may be fewer left than asked for, where the others have work under way or the store takes no more.
    """
    lacking = model.arena.used + count - host.limits.max_sessions
    if lacking > 0:
        model.give_up_twins(lacking)
        lacking = model.arena.used + count - host.limits.max_sessions
    if lacking > 0:
        table = model.table
        idle = table.live()
        idle = idle[_movable(host, model, idle)]
        if keep is not None:
            movable = np.ones(len(table.keys), np.bool_)
            movable[keep] = False
            idle = idle[movable[idle]]
        evict(host, model, table.longest_unused(idle, max(lacking, host.limits.max_sessions // _AT_ONCE)), "room")


def _movable(host: Host, model: ServedModel, rows: RowArray) -> NDArray[np.bool_]:
    """[n]: which rows may be packed up now."""
    assert host.ledger is not None
    table = model.table
    movable: NDArray[np.bool_] = (model.scheduler.pending[rows] == 0) & ~table.closing[rows] & ~table.replaying[rows]
    if len(model.at_work):
        movable &= ~np.isin(rows, model.at_work)
    if host.ledger.full or host.ledger.every_step:
        # Nothing more is to wait in memory; or answers wait until these rows are saved where they are.
        movable &= _clean(model, rows)
    return movable


def _clean(model: ServedModel, rows: RowArray) -> NDArray[np.bool_]:
    """[n]: which sessions are in the store as they are in their rows."""
    table = model.table
    return table.stored[rows] & ~table.unsaved[rows] & ~table.writing[rows]


def park(host: Host, model: ServedModel, rows: RowArray) -> None:
    """Moves detached sessions out of the arena, to be claimed by whoever is asked for them."""
    evict(host, model, rows[_movable(host, model, rows)], "detached")


def evict(host: Host, model: ServedModel, rows: RowArray, reason: str) -> None:
    """Moves sessions with nothing queued out of the arena; who holds them keeps them."""
    if not len(rows):
        return
    ledger, table = host.ledger, model.table
    assert ledger is not None
    unsaved = ~_clean(model, rows)
    if not ledger.full:
        # What nobody holds is given up, so that its lease runs out without grace.
        unsaved |= table.stream[rows] == DETACHED
    saved_first = rows[unsaved]
    for row, record in zip(saved_first.tolist(), records_of(host, model, saved_first), strict=True):
        if table.stream[row] == DETACHED:
            record = record._replace(owner="")
        ledger.unsaved[record.key] = Packed(record, table.durable.item(row), table.stored.item(row))
    model.stored_until = max(model.stored_until, host.clock() + float(table.lease[rows].max()))
    for row in rows.tolist():
        key = table.keys[row]
        host.directory.forget(key)
        stream = host.streams.get(table.stream.item(row))
        if stream is not None:
            handle = table.handle.item(row)
            stream.put_away(
                handle,
                key,
                table.last_use.item(row),
                table.lease.item(row),
                table.stored_use.item(row),
                table.durable.item(row),
                model.base,
            )
            ledger.hold(key, Holder(stream.number, handle))
    model.release(rows)
    host.metrics.store.evicted(reason, len(rows))


def keys_held(host: Host) -> list[str]:
    """Keys of all sessions of this process that have a row or are held."""
    assert host.ledger is not None
    keys = [model.table.keys[row] for model in host.models for row in model.table.live().tolist()]
    return [*keys, *host.ledger.away]


def not_stored(host: Host) -> int:
    """How many live sessions of this process the store does not know."""
    assert host.ledger is not None
    in_rows = sum(int((~model.table.stored[model.table.live()]).sum()) for model in host.models)
    return in_rows + sum(not packed.stored and not packed.record.ended for packed in host.ledger.unsaved.values())


def expire_away(host: Host) -> None:
    """Tells streams of sessions without rows whose lease has run out; the store ends them by itself."""
    for stream in host.streams.values():
        for handle in stream.away.expired(host.clock()).tolist() if stream.away else ():
            key = stream.away.key(handle)
            take_from_holder(host, key, Ended.EXPIRED)
            host.directory.end(key, Ended.EXPIRED)


# into the arena


def bring_back(host: Host, stream: Stream, handles: NDArray[np.uint32], rows: RowArray, known: Known) -> None:
    """Gives rows to the sessions of these handles (global `rows`) that are away, where the store can be had.

    Raises NeedsStore or NeedsRoom before anything is done.
    """
    assert host.ledger is not None
    away = np.unique(handles[rows == AWAY]).tolist()
    keys = {key: handle for handle in away if (key := stream.away.key(handle)) not in known.refusals}
    absent = [key for key in keys if host.ledger.live(key) is None and key not in known.asked]
    if absent:
        raise NeedsStore(finds=absent)
    wanted = defaultdict[ServedModel, list[str]](list)
    for key in keys:
        record = host.ledger.live(key)
        if record is not None:
            try:
                wanted[model_for(host, record)].append(key)
            except errors.ServerError as error:
                known.refusals[key] = error
    for model, of_model in wanted.items():
        mine = rows[(rows >= model.base) & (rows < model.base + model.capacity)] - model.base
        make_room(host, model, len(of_model), keep=mine)
        if model.arena.free < len(of_model):
            raise NeedsRoom(of_model)
    for model, of_model in wanted.items():
        _restore_held(host, model, of_model, stream, [keys[key] for key in of_model])


def _restore_held(host: Host, model: ServedModel, keys: Sequence[str], stream: Stream, handles: Sequence[int]) -> None:
    rows = restore(host, model, keys)
    model.table.attach(rows, stream.number, np.array(handles, np.uint32))
    for handle, row in zip(handles, rows.tolist(), strict=True):
        model.table.last_use[row] = max(stream.away.used.item(handle), model.table.last_use.item(row))
        stream.bind(handle, model.base + row)


def model_for(host: Host, record: Record) -> ServedModel:
    """The model that can take a record; ModelNotFound or InternalError if there is none."""
    model = host.model(record.model, record.version, retired=True)
    try:
        model.packer.check(record.body)
    except RecordInvalid as error:
        named = {"session": record.id, "tenant": record.tenant, "model": str(model.info)}
        log.error("a stored session does not fit", reason=str(error), **named)
        raise errors.InternalError(f"what is stored of the session does not fit: {error}") from error
    return model


def give_row(host: Host, key: str) -> None:
    """Gives a row to a session in memory; who holds it goes on holding it. Why it cannot be had, if it cannot."""
    ledger = host.ledger
    assert ledger is not None
    record, holder = ledger.live(key), ledger.holder(key)
    if record is None:
        return
    model = model_for(host, record)
    make_room(host, model, 1)
    if not model.arena.free:
        raise errors.SessionLimit("every row has work under way; try again later")
    if holder is None:
        restore(host, model, [key])
    else:
        _restore_held(host, model, [key], host.streams[holder.stream], [holder.handle])


def spawn(host: Host, model: ServedModel, record: Record, count: int) -> RowArray:
    """Free rows for detached copies of a session that has none here."""
    rows, now = model.arena.allocate(count), host.clock()
    model.table.start(rows, [key_of(record.tenant, made) for made in make_ids(count)], record.lease, now, record.labels)
    model.table.applied[rows] = model.table.accepted[rows] = record.step
    model.table.detach(rows, now)
    model.unpack([record.body] * count, rows)
    for row in rows.tolist():
        host.directory.add(model.table.keys[row], Place(model, row))
    model.metrics.opened("forked", count)
    return rows


def restore(host: Host, model: ServedModel, keys: Sequence[str]) -> RowArray:
    """Gives free rows to sessions that are packed in memory, and that the model can take; nobody holds them yet."""
    ledger, table, now, wall = host.ledger, model.table, host.clock(), host.wall_seconds
    assert ledger is not None
    unsaved = [key in ledger.unsaved for key in keys]
    taken = [packed for packed in map(ledger.take, keys) if packed is not None]
    rows = model.arena.allocate(len(taken))
    table.start(rows, keys, 0.0, now)
    table.resume(
        rows,
        [
            Saved(
                record.step,
                record.rewinds,
                record.created,
                record.fence,
                record.lease,
                record.last_use - wall,
                record.last_use - wall,
                durable,
                stored,
                dirty,
            )
            for (record, durable, stored), dirty in zip(taken, unsaved, strict=True)
        ],
    )
    model.unpack([packed.record.body for packed in taken], rows)
    table.detach(rows, now)
    for key, packed, row in zip(keys, taken, rows.tolist(), strict=True):
        table.labels[row] = packed.record.labels
        if packed.record.shadow:
            _restore_shadow(host, model, row, packed.record.shadow)
        host.directory.add(key, Place(model, row))
        ledger.let_go(key)
    host.metrics.store.restored("memory", sum(unsaved))
    host.metrics.store.restored("store", len(keys) - sum(unsaved))
    return rows


def _restore_shadow(host: Host, model: ServedModel, row: int, version: str) -> None:
    for shadow in host.models:
        if (shadow.info.name, shadow.info.version) == (model.info.name, version) and shadow is not model:
            start_shadows(model, np.array([row]), shadow, host.clock())


def attach_away(
    host: Host, stream: Stream, handle: int, model: ServedModel, record: Record, lease: float | None
) -> Record:
    """Gives a session in memory to a stream; it gets a row when it is used."""
    ledger, now, wall = host.ledger, host.clock(), host.wall_seconds
    assert ledger is not None
    take_from_holder(host, record.key, Ended.TAKEN_OVER)
    if record.owner != ledger.owner or lease not in (None, record.lease):
        lease = record.lease if lease is None else lease
        record = record._replace(lease=lease, last_use=now + wall, owner=ledger.owner)
        ledger.replace(record)
    packed = ledger.unsaved.get(record.key)
    durable = record.step if packed is None else packed.durable
    stream.put_away(handle, record.key, now, record.lease, record.last_use - wall, durable, model.base)
    ledger.hold(record.key, Holder(stream.number, handle))
    return record


# what others own


def take_from_holder(host: Host, key: str, ending: Ended) -> None:
    """Tells who holds a session without a row that it has left."""
    assert host.ledger is not None
    holder = host.ledger.holder(key)
    if holder is not None:
        stream = host.streams[holder.stream]
        host.ledger.let_go(key)
        _void(host, stream, holder.handle, ending)


def lose(host: Host, model: ServedModel, rows: RowArray, ending: Ended = Ended.TAKEN_OVER) -> None:
    """Drops sessions that another process owns, or has ended; who holds them is told."""
    table = model.table
    for row in rows.tolist():
        key = table.keys[row]
        log.info(
            "session lost",
            session=id_of(key),
            tenant=tenant_of(key),
            model=str(model.info),
            reason=ending.name.lower(),
        )
        stream = host.streams.get(table.stream.item(row))
        if stream is not None:
            handle = table.handle.item(row)
            model.drop(np.array([row]), ending.error())
            if stream.held is not None:
                stream.held.drop(stream, handle)
            _void(host, stream, handle, ending)
        host.watching.end(key, ending.error())
        host.directory.forget(key)
        if ending is not Ended.TAKEN_OVER:
            host.directory.end(key, ending)
    model.release(rows)


def _void(host: Host, stream: Stream, handle: int, ending: Ended) -> None:
    stream.unbind(handle, ending)
    host.metrics.fault(ending.error())
    stream.fault(ending.error(), handle)


def apply_saved(host: Host, outcome: Outcome) -> None:
    """Notes what the store has now of sessions without rows."""
    assert host.ledger is not None
    for record in outcome.saved:
        holder = host.ledger.holder(record.key)
        if holder is not None:
            away = host.streams[holder.stream].away
            away.durable[holder.handle] = record.step
            away.stored_use[holder.handle] = record.last_use - host.wall_seconds


def apply_lost(host: Host, outcome: Outcome, found: Mapping[str, Record]) -> None:
    """Drops what the store refused, unless it has been claimed again since; `found` is what the store has instead."""
    ledger = host.ledger
    assert ledger is not None
    for key, fence in zip(outcome.lost_keys, outcome.fences, strict=True):
        record = found.get(key)
        ending = Ended[record.ended] if record is not None and record.ended else Ended.TAKEN_OVER
        place = host.directory.get(key)
        if place is None:
            take_from_holder(host, key, ending)
        elif place.model.table.fence.item(place.row) == fence:
            lose(host, place.model, np.array([place.row]), ending)


def drop_stale(host: Host, found: Mapping[str, Record]) -> None:
    """Drops sessions that the store has under a higher fence than this process knows."""
    ledger = host.ledger
    assert ledger is not None
    for key, record in found.items():
        ending = Ended[record.ended] if record.ended else Ended.TAKEN_OVER
        place, live = host.directory.get(key), ledger.live(key)
        if place is not None and place.model.table.fence.item(place.row) < record.fence:
            lose(host, place.model, np.array([place.row]), ending)
        elif live is not None and live.fence < record.fence:
            ledger.forget(key)
            take_from_holder(host, key, ending)


def end_without_row(host: Host, key: str) -> bool:
    """Ends a session that was just claimed; False if it does not live here without a row."""
    ledger = host.ledger
    assert ledger is not None
    record = ledger.live(key)
    if record is None:
        return False
    durable = ledger.durable(record)
    ledger.forget(key)
    ledger.unsaved[key] = Packed(record._replace(ended=Ended.CLOSED.name, owner="", body=b""), durable, True)
    take_from_holder(host, key, Ended.CLOSED)
    host.watching.end(key, Ended.CLOSED.error())
    host.directory.end(key, Ended.CLOSED)
    return True


def present(host: Host, key: str) -> bool:
    """Whether a live session of this key has a row or is in memory."""
    assert host.ledger is not None
    return host.directory.get(key) is not None or host.ledger.live(key) is not None


def is_live(host: Host, key: str) -> bool:
    """Whether a live session of this key is known to this process, wherever its state is."""
    if host.ledger is None:
        return host.directory.get(key) is not None
    return present(host, key) or host.ledger.holder(key) is not None


def known_here(host: Host, key: str) -> bool:
    """Whether the store need not be asked for what was last made or ended under this key."""
    assert host.ledger is not None
    return is_live(host, key) or key in host.ledger.unsaved


def adopt_claimed(host: Host, claimed: Mapping[str, Record], asked: Iterable[str], known: Known) -> None:
    """Takes in what the store has of keys just claimed: `known` says afterwards which cannot be had.

    What this process has of a session is right if nobody has claimed it since; else what the store has is.
    """
    for key in asked:
        known.asked.add(key)
        record = claimed.get(key)
        if record is None:
            if not present(host, key):
                known.refusals[key] = missing(host, key)
        elif record.ended:
            _adopt_ending(host, record, known)
        elif not _still_ours(host, record, known):
            _adopt_live(host, record, known)


def adopt_found(host: Host, found: Mapping[str, Record], asked: Iterable[str], known: Known) -> None:
    """Takes in what the store has of keys that were looked up; sessions of this process are kept for their use."""
    assert host.ledger is not None
    for key in asked:
        known.asked.add(key)
        record = found.get(key)
        if present(host, key):
            continue  # it has come by another way meanwhile
        if record is None:
            if host.ledger.holder(key) is not None:
                known.refusals[key] = missing(host, key)
        elif record.ended:
            known.fences[key] = record.fence + 1
            if host.ledger.holder(key) is not None:
                _adopt_ending(host, record, known)
        elif record.owner == host.ledger.owner and host.ledger.holder(key) is not None:
            _adopt_live(host, record, known)
        else:
            take_from_holder(host, key, Ended.TAKEN_OVER)
            known.refusals[key] = errors.SessionExists(
                f"session {id_of(key)!r} is live; resume it or choose another id"
            )


def _adopt_ending(host: Host, record: Record, known: Known) -> None:
    ledger, key, ending = host.ledger, record.key, Ended[record.ended]
    assert ledger is not None
    place, live = host.directory.get(key), ledger.live(key)
    if place is not None:
        if place.model.table.fence.item(place.row) > record.fence:
            return  # a new session of the same name, not stored yet
        lose(host, place.model, np.array([place.row]), ending)
    elif live is not None and live.fence > record.fence:
        return
    ledger.forget(key)
    take_from_holder(host, key, ending)
    host.directory.end(key, ending)
    known.refusals[key] = ending.error()


def _still_ours(host: Host, record: Record, known: Known) -> bool:
    """Whether this process has the session, or its ending, as the last to have claimed it; then under the new fence."""
    ledger, key = host.ledger, record.key
    assert ledger is not None
    place, packed = host.directory.get(key), ledger.unsaved.get(key)
    if place is not None:
        fences, row = place.model.table.fence, place.row
        if record.fence > fences.item(row) + 1:
            lose(host, place.model, np.array([row]))
            return False
        fences[row] = max(record.fence, fences.item(row))
        return True
    if packed is None or record.fence > packed.record.fence + 1:
        if packed is not None:
            take_from_holder(host, key, Ended.TAKEN_OVER)
        return False
    if packed.record.ended:
        known.refusals[key] = Ended[packed.record.ended].error()
    owner = "" if packed.record.ended else ledger.owner
    ledger.unsaved[key] = packed._replace(record=packed.record._replace(fence=record.fence, owner=owner))
    return True


def _adopt_live(host: Host, record: Record, known: Known) -> None:
    """Keeps what the store has, to be used at once."""
    ledger, key = host.ledger, record.key
    assert ledger is not None
    ledger.forget(key)
    if record.expires > host.clock() + host.wall_seconds or _renewed(host, key):
        ledger.claimed[key] = (record, host.clock())
        return
    ended = record._replace(ended=Ended.EXPIRED.name, owner="", body=b"")
    ledger.unsaved[key] = Packed(ended, record.step, True)
    take_from_holder(host, key, Ended.EXPIRED)
    host.directory.end(key, Ended.EXPIRED)
    known.refusals[key] = Ended.EXPIRED.error()


def _renewed(host: Host, key: str) -> bool:
    """Whether who holds the session has used it more recently than the store knows, within its lease."""
    assert host.ledger is not None
    holder = host.ledger.holder(key)
    if holder is None:
        return False
    away = host.streams[holder.stream].away
    return away.used.item(holder.handle) + away.lease.item(holder.handle) > host.clock()


# leases


def mark_renewed(host: Host, least: float) -> None:
    """Has sessions in rows saved that were used without an observation since the store has heard of them."""
    for model in host.models:
        table = model.table
        rows = table.live()
        later = table.last_use[rows] - table.stored_use[rows]
        table.unsaved[rows[later > np.maximum(table.lease[rows] / 4, least)]] = True


def renewed_away(host: Host, least: float) -> dict[str, float]:
    """When sessions without rows were last used (monotonic seconds), where the store is to be told."""
    renewed = {}
    for stream in host.streams.values():
        away = stream.away
        for handle in away.renewed(least).tolist() if away else ():
            renewed[away.key(handle)] = away.used.item(handle)
    return renewed


def renewals(host: Host, found: Mapping[str, Record], renewed: Mapping[str, float]) -> list[Record]:
    """What the store is to have of sessions found there, if they are still this process's, and only there."""
    assert host.ledger is not None
    return [
        record._replace(last_use=renewed[key] + host.wall_seconds)
        for key, record in found.items()
        if not record.ended and record.owner == host.ledger.owner and not present(host, key)
    ]


def note_renewed(host: Host, records: Iterable[Record]) -> None:
    """The store has heard of the use of sessions without rows."""
    assert host.ledger is not None
    for record in records:
        holder = host.ledger.holder(record.key)
        if holder is not None:
            away = host.streams[holder.stream].away
            away.stored_use[holder.handle] = record.last_use - host.wall_seconds


def checks(host: Host) -> Iterator[None]:
    """Raises AssertionError unless rows, memory and who holds what agree; yields after each part."""
    ledger = host.ledger
    assert ledger is not None
    if ledger.unsaved.keys() & ledger.claimed.keys():
        raise AssertionError("a session is in memory twice")
    if sum(len(stream.away) for stream in host.streams.values()) != len(ledger.away):
        raise AssertionError("a session without a row is held by a stream that does not know it")
    yield
    packed = [*ledger.unsaved, *ledger.claimed]
    for start in range(0, len(packed), _CHECKED_AT_ONCE):
        for key in packed[start : start + _CHECKED_AT_ONCE]:
            if ledger.live(key) is not None and host.directory.get(key) is not None:
                raise AssertionError("a session has a row and is in memory, too")
        yield
    for stream in list(host.streams.values()):
        handles = stream.away.handles()
        for start in range(0, len(handles), _CHECKED_AT_ONCE):
            for handle in handles[start : start + _CHECKED_AT_ONCE].tolist():
                _check_away(host, stream, handle)
            yield


def _check_away(host: Host, stream: Stream, handle: int) -> None:
    assert host.ledger is not None
    key = stream.away.key(handle)
    if not key or stream.number not in host.streams:
        return  # it has come back, or left, since
    if stream.row_of(handle) != AWAY or host.ledger.holder(key) != (stream.number, handle):
        raise AssertionError("a stream's handle leads to a session without a row that it does not hold")
    if host.directory.get(key) is not None:
        raise AssertionError("a session has a row, but its handle does not know")
