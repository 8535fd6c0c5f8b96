"""Who the sessions are: columns by row for one model, and ids for all models."""

from __future__ import annotations

import enum
import os
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray

if TYPE_CHECKING:
    from hiddenstate_server.model import ServedModel

DETACHED = -1
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


class SessionTable:
    """Columns by row: steps, use, lease and the stream that holds it."""

    def __init__(self, capacity: int) -> None:
        self.applied = np.zeros(capacity, np.int64)
        """Observations in the state."""
        self.accepted = np.zeros(capacity, np.int64)
        """Observations in the state or queued for it."""
        self.last_use = np.full(capacity, np.inf)
        """Monotonic seconds; infinite in a free row, so that it never expires."""
        self.lease = np.zeros(capacity)
        """Seconds the session may be idle."""
        self.detached_at = np.full(capacity, np.inf)
        """Monotonic seconds; infinite while a stream holds it."""
        self.created = np.zeros(capacity, np.int64)
        """Nanoseconds since 1970, distinct; 0 in a free row."""
        self.stream = np.full(capacity, DETACHED, np.int64)
        self.handle = np.zeros(capacity, np.uint32)
        self.closing = np.zeros(capacity, np.bool_)
        """A close is queued: nothing more is accepted."""
        self.ids: list[str] = [""] * capacity
        # Rows from here on were never used: what looks at all sessions need not look at all places.
        self._ever_used = 0

    def start(self, rows: RowArray, ids: Sequence[str], lease: float, now: float) -> None:
        """Fills rows for new sessions."""
        self._ever_used = max(self._ever_used, int(rows.max()) + 1)
        self.applied[rows] = self.accepted[rows] = 0
        self.last_use[rows] = now
        self.lease[rows] = lease
        self.created[rows] = time.time_ns() + np.arange(len(rows))
        self.closing[rows] = False
        for row, session_id in zip(rows.tolist(), ids, strict=True):
            self.ids[row] = session_id

    def attach(self, rows: RowArray, stream: int, handles: NDArray[np.uint32]) -> None:
        """Binds rows to a stream's handles."""
        self.stream[rows] = stream
        self.handle[rows] = handles
        self.detached_at[rows] = np.inf

    def detach(self, rows: RowArray, now: float) -> None:
        """Leaves rows to be resumed."""
        self.stream[rows] = DETACHED
        self.detached_at[rows] = now

    def clear(self, rows: RowArray) -> None:
        """Empties rows whose sessions ended."""
        self.last_use[rows] = np.inf
        self.detached_at[rows] = np.inf
        self.created[rows] = 0
        self.stream[rows] = DETACHED
        self.closing[rows] = False
        for row in rows.tolist():
            self.ids[row] = ""

    def expired(self, now: float, detach_timeout: float) -> RowArray:
        """Rows whose lease, or whose time without a stream, has run out."""
        used = slice(self._ever_used)
        idle = self.last_use[used] + self.lease[used] <= now
        return np.flatnonzero(idle | (self.detached_at[used] + detach_timeout <= now))

    def least_recently_used(self, count: int) -> RowArray:
        """Up to `count` detached rows, those used longest ago."""
        detached = np.flatnonzero(np.isfinite(self.detached_at[: self._ever_used]))
        if len(detached) <= count:
            return detached
        return detached[np.argpartition(self.last_use[detached], count - 1)[:count]]

    def live(self) -> RowArray:
        """Rows that hold sessions."""
        return np.flatnonzero(self.created[: self._ever_used])


class Place(NamedTuple):
    """Where a live session is."""

    model: ServedModel
    row: int


class Directory:
    """Ids of all live sessions of this process, and how the most recently ended ones ended."""

    def __init__(self, tombstones: int = 100_000) -> None:
        self._places: dict[str, Place] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._tombstones = tombstones

    def __len__(self) -> int:
        return len(self._places)

    def get(self, session_id: str) -> Place | None:
        """The live session's place."""
        return self._places.get(session_id)

    def ending(self, session_id: str) -> Ended | None:
        """How the session of this id ended, if that is known."""
        return self._ended.get(session_id)

    def missing(self, session_id: str) -> errors.ServerError:
        """Why there is no live session of this id."""
        ending = self._ended.get(session_id)
        if ending is None:
            return errors.SessionNotFound(f"no session {session_id!r}; open it with OPEN_MODE_CREATE")
        return ending.error()

    def add(self, session_id: str, place: Place) -> None:
        """Enters a new session, forgetting an earlier one of the same id."""
        self._ended.pop(session_id, None)
        self._places[session_id] = place

    def remove(self, session_id: str, ending: Ended) -> None:
        """Remembers how a session ended."""
        del self._places[session_id]
        self._ended[session_id] = ending
        if len(self._ended) > self._tombstones:
            self._ended.popitem(last=False)


def make_ids(count: int) -> list[str]:
    """Ids of 128 random bits."""
    digits = os.urandom(16 * count).hex()
    return [digits[start : start + 32] for start in range(0, 32 * count, 32)]


def valid_id(session_id: str) -> bool:
    """Whether a client may name a session so."""
    return _ID.fullmatch(session_id) is not None
