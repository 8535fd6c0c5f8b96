"""Who the sessions are: columns by row for one model, and keys for all models.

A session's key is its tenant and its id; clients only ever see the id.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray

if TYPE_CHECKING:
    from hiddenstate_server.stepping.model import ServedModel

DETACHED = -1
_NO_TENANT = -1
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Ended(enum.IntEnum):
    """How a session left; the value is also what stands in a stream's handle column afterwards."""

    EXPIRED = -2
    CLOSED = -3
    EVICTED = -4
    TAKEN_OVER = -5

    def error(self) -> errors.ServerError:
        """The error that tells it."""
        return _ENDINGS[self]


_ENDINGS: dict[Ended, errors.ServerError] = {
    Ended.EXPIRED: errors.SessionExpired("the session's lease ran out; open a new one"),
    Ended.CLOSED: errors.SessionClosed("the session was closed; open a new one"),
    Ended.EVICTED: errors.SessionEvicted("the server needed the session's place; open a new one"),
    Ended.TAKEN_OVER: errors.SessionTakenOver("the session was resumed elsewhere; this handle is void"),
}


def key_of(tenant: str, session_id: str) -> str:
    """What names a session inside the server."""
    return f"{tenant}/{session_id}"


def id_of(key: str) -> str:
    """What its tenant calls the session of this key; ids hold no slash."""
    return key[key.rindex("/") + 1 :]


def tenant_of(key: str) -> str:
    """Whose session it is."""
    return key[: key.rindex("/")]


class Saved(NamedTuple):
    """Columns of a session that was packed."""

    applied: int
    rewinds: int
    created: int
    fence: int
    lease: float
    last_use: float
    stored_use: float
    durable: int
    stored: bool
    unsaved: bool


class SessionTable:
    """Columns by row: steps, use, lease and the stream that holds it."""

    def __init__(self, capacity: int) -> None:
        self.applied = np.zeros(capacity, np.int64)
        """Observations in the state."""
        self.accepted = np.zeros(capacity, np.int64)
        """Observations in the state or queued for it."""
        self.last_use = np.zeros(capacity)
        """Monotonic seconds; infinite in a free row, so that it never expires."""
        self.lease = np.zeros(capacity)
        """Seconds the session may be idle."""
        self.detached_at = np.zeros(capacity)
        """Monotonic seconds; infinite while a stream holds it."""
        self.created = np.zeros(capacity, np.int64)
        """Nanoseconds since 1970, distinct; 0 in a free row."""
        self.stream = np.zeros(capacity, np.int64)
        self.handle = np.zeros(capacity, np.uint32)
        self.closing = np.zeros(capacity, np.bool_)
        """A close is queued: nothing more is accepted."""
        self.rewinds = np.zeros(capacity, np.int64)
        """How many times observations were taken back."""
        self.replaying = np.zeros(capacity, np.bool_)
        """The state is on its way back, to be neither written nor copied; the other columns say how it was before."""
        self.durable = np.zeros(capacity, np.int64)
        """Observations in the state that the store has."""
        self.stored = np.zeros(capacity, np.bool_)
        """The store knows the session."""
        self.unsaved = np.zeros(capacity, np.bool_)
        """Something changed that the store is to be told of."""
        self.writing = np.zeros(capacity, np.bool_)
        """What changed is on its way to the store."""
        self.stored_use = np.zeros(capacity)
        """The last use the store knows of, in monotonic seconds."""
        self.fence = np.zeros(capacity, np.int64)
        """Rises with every change of owner; the store refuses what comes with a lower one."""
        self.keys: list[str] = []
        """As long as rows were ever used; empty in a free row."""
        self.labels: list[str] = []
        """Likewise; packed."""
        # A number for each tenant, so that its sessions are found among all without looking at a key.
        self._tenant = np.zeros(capacity, np.int64)
        self._tenants: dict[str, int] = {}

    def start(self, rows: RowArray, keys: Sequence[str], lease: float, now: float, labels: str = "") -> None:
        """Fills rows for new sessions."""
        self._grow(int(rows.max()) + 1)
        self.applied[rows] = self.accepted[rows] = 0
        self.last_use[rows] = now
        self.lease[rows] = lease
        self.created[rows] = time.time_ns() + np.arange(len(rows))
        self.closing[rows] = False
        self.rewinds[rows] = self.durable[rows] = 0
        self.fence[rows] = 1
        self.stored_use[rows] = now
        self.stored[rows] = self.writing[rows] = False
        self.unsaved[rows] = True
        for row, key in zip(rows.tolist(), keys, strict=True):
            self.keys[row] = key
            self.labels[row] = labels
            self._tenant[row] = self._tenants.setdefault(tenant_of(key), len(self._tenants))

    def resume(self, rows: RowArray, saved: Sequence[Saved]) -> None:
        """Sets what `start` did not know of sessions that were packed."""
        columns = [np.array(column) for column in zip(*saved, strict=True)]
        self.applied[rows], self.rewinds[rows], self.created[rows], self.fence[rows] = columns[:4]
        self.accepted[rows] = self.applied[rows]
        self.lease[rows], self.last_use[rows], self.stored_use[rows] = columns[4:7]
        self.durable[rows], self.stored[rows], self.unsaved[rows] = columns[7:]

    def _grow(self, used: int) -> None:
        # Rows that were never used are not looked at, so capacity costs address space and no memory.
        fresh = slice(len(self.keys), used)
        self.last_use[fresh] = self.detached_at[fresh] = np.inf
        self.stream[fresh] = DETACHED
        self.labels.extend([""] * (used - len(self.keys)))
        self.keys.extend([""] * (used - len(self.keys)))

    def attach(self, rows: RowArray, stream: int, handles: NDArray[np.uint32]) -> None:
        """Binds rows to a stream's handles."""
        self.stream[rows] = stream
        self.handle[rows] = handles
        self.detached_at[rows] = np.inf

    def detach(self, rows: RowArray, now: float) -> None:
        """Leaves rows to be resumed."""
        self.stream[rows] = DETACHED
        self.detached_at[rows] = now

    def start_twins(self, rows: RowArray) -> None:
        """Prepares rows that are no sessions: they have no key, are in no list and never expire."""
        self._grow(int(rows.max()) + 1)
        self.lease[rows] = np.inf
        self.rewinds[rows] = 0

    def take_over(self, row: int, other: SessionTable, other_row: int) -> None:
        """Makes a twin's row that of the session it has followed."""
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray | list):
                column[row] = vars(other)[name][other_row]
        self._tenant[row] = self._tenants.setdefault(tenant_of(self.keys[row]), len(self._tenants))
        self.writing[row] = False
        self.unsaved[row] = True

    def clear(self, rows: RowArray) -> None:
        """Empties rows whose sessions ended."""
        self.last_use[rows] = np.inf
        self.detached_at[rows] = np.inf
        self.created[rows] = 0
        self.stream[rows] = DETACHED
        self.closing[rows] = self.unsaved[rows] = self.writing[rows] = False
        self.stored[rows] = self.replaying[rows] = False
        for row in rows.tolist():
            self.keys[row] = self.labels[row] = ""

    def unsaved_rows(self) -> RowArray:
        """Rows of sessions that the store is to be told of."""
        used = slice(len(self.keys))
        return np.flatnonzero(self.unsaved[used] & (self.created[used] > 0))

    def expired(self, now: float) -> RowArray:
        """Rows whose lease has run out."""
        used = slice(len(self.keys))
        return np.flatnonzero(self.last_use[used] + self.lease[used] <= now)

    def deserted(self, now: float, detach_timeout: float) -> RowArray:
        """Rows whose time without a stream has run out."""
        return np.flatnonzero(self.detached_at[: len(self.keys)] + detach_timeout <= now)

    def detached(self) -> RowArray:
        """Rows that no stream holds."""
        return np.flatnonzero(np.isfinite(self.detached_at[: len(self.keys)]))

    def longest_unused(self, rows: RowArray, count: int) -> RowArray:
        """Up to `count` of these rows, those used longest ago."""
        if len(rows) <= count:
            return rows
        return rows[np.argpartition(self.last_use[rows], count - 1)[:count]]

    def live(self, tenant: str | None = None) -> RowArray:
        """Rows that hold sessions, all or those of a tenant."""
        used = slice(len(self.keys))
        if tenant is None:
            return np.flatnonzero(self.created[used])
        number = self._tenants.get(tenant, _NO_TENANT)
        return np.flatnonzero((self.created[used] > 0) & (self._tenant[used] == number))


class Place(NamedTuple):
    """Where a live session is."""

    model: ServedModel
    row: int


class Directory:
    """Keys of all live sessions of this process, and how the most recently ended ones ended."""

    def __init__(self, model_of: Callable[[int], ServedModel], tombstones: int = 100_000) -> None:
        """`model_of` says which model a row of the process belongs to."""
        # One number a session: a place made when asked for costs nothing while nobody asks.
        self._rows: dict[str, int] = {}
        self._model_of = model_of
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._tombstones = tombstones

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Place | None:
        """The live session's place."""
        row = self._rows.get(key)
        if row is None:
            return None
        model = self._model_of(row)
        return Place(model, row - model.base)

    def ending(self, key: str) -> Ended | None:
        """How the session of this key ended, if that is known."""
        return self._ended.get(key)

    def missing(self, key: str) -> errors.ServerError:
        """Why there is no live session of this key."""
        ending = self._ended.get(key)
        if ending is None:
            return errors.SessionNotFound(f"there is no session {id_of(key)!r}; open a new one")
        return ending.error()

    def add(self, key: str, place: Place) -> None:
        """Enters a new session, forgetting an earlier one of the same key."""
        self._ended.pop(key, None)
        self._rows[key] = place.model.base + place.row

    def move(self, key: str, place: Place) -> None:
        """Enters a live session's new place."""
        self._rows[key] = place.model.base + place.row

    def forget(self, key: str) -> None:
        """The session has no place any more; it lives elsewhere."""
        del self._rows[key]

    def end(self, key: str, ending: Ended) -> None:
        """Remembers how a session without a place ended."""
        self._ended[key] = ending
        if len(self._ended) > self._tombstones:
            self._ended.popitem(last=False)

    def remove(self, key: str, ending: Ended) -> None:
        """Remembers how a session ended."""
        self.forget(key)
        self.end(key, ending)


def make_ids(count: int) -> list[str]:
    """Ids of 128 random bits."""
    digits = os.urandom(16 * count).hex()
    return [digits[start : start + 32] for start in range(0, 32 * count, 32)]


def valid_id(session_id: str) -> bool:
    """Whether a client may name a session so."""
    return _ID.fullmatch(session_id) is not None
