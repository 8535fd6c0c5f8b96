"""What the store does not have yet, and who waits until it has.

Knows no thread and no I/O: the keeper asks for chunks of records, has them written, and says how it went.

A session is in one of three places: a row of an arena; packed in memory, on its way to or from the store; or in the
store alone. Its fence says whose it is: the store refuses what is written with a lower one than somebody has claimed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, KeysView, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.stepping.held import Held
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.store import Record

CHUNK_RECORDS = 1024
_CHUNK_BYTES = 4 << 20


class Packed(NamedTuple):
    """A session in memory that has no row."""

    record: Record
    durable: int
    """Observations in the state that the store has."""
    stored: bool
    """Whether the store knows the session."""


class Holder(NamedTuple):
    """The stream, and its handle, that hold a session without a row."""

    stream: int
    handle: int


class Rows(NamedTuple):
    """Rows of one model in a chunk, as they were when it was packed."""

    model: ServedModel
    rows: RowArray
    keys: Sequence[str]
    fences: NDArray[np.int64]
    steps: NDArray[np.int64]
    rewinds: NDArray[np.int64]
    uses: NDArray[np.float64]


class Chunk(NamedTuple):
    """Records that are written together."""

    records: list[Record]
    rows: Rows | None
    """Where the first of the records come from; the rest come from memory."""


class Outcome(NamedTuple):
    """What became of a chunk."""

    saved: list[Record]
    """Those from memory."""
    lost_keys: list[str]
    """Sessions that others own, or that the store has ended."""
    fences: list[int]
    """With what they were refused."""


class Waiter(NamedTuple):
    """Somebody who wants to know when sessions are durable."""

    keys: frozenset[str]
    call: Callable[[], None]


class Ledger:
    """Sessions without rows, and everything unsaved."""

    def __init__(self, owner: str, every_step: bool, limit: int) -> None:
        """`owner` names this process in the store; at most about `limit` sessions wait in memory for the store."""
        self.owner = owner
        self.every_step = every_step
        self.unsaved: dict[str, Packed] = {}
        """By key: packed sessions, and endings, that the store does not have."""
        self.claimed: dict[str, tuple[Record, float]] = {}
        """By key: what was fetched from the store for somebody about to use it, and when."""
        self.wake: Callable[[], None] = _nobody
        """Called when somebody waits for the store."""
        self.held = Held(lambda: self.wake()) if every_step else None
        """Answers that wait; None where they do not."""
        self.releasing = False
        """Sessions are given up to whoever wants them."""
        self.stored = 0
        """Live sessions in the store, counted now and then."""
        self.shared = False
        """Other processes write to the store."""
        self._limit = limit
        self._saved_until = 0.0
        self._away: dict[str, int] = {}
        self._waiters: list[Waiter] = []
        self._taken_back: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether too much waits for the store."""
        return len(self.unsaved) >= self._limit

    @property
    def packed(self) -> int:
        """Live sessions in memory without a row."""
        return len(self.claimed) + sum(not packed.record.ended for packed in self.unsaved.values())

    def lag(self, models: Iterable[ServedModel], now: float) -> tuple[int, float]:
        """Observations applied that the store does not have, and how old the oldest may be in seconds."""
        steps, waiting = 0, bool(self.unsaved)
        for model in models:
            table = model.table
            rows = np.union1d(table.unsaved_rows(), np.flatnonzero(table.writing[: len(table.keys)]))
            steps += int((table.applied[rows] - table.durable[rows]).sum())
            waiting = waiting or bool(len(rows))
        steps += sum(record.step - durable for record, durable, _ in self.unsaved.values() if not record.ended)
        return steps, now - self._saved_until if waiting else 0.0

    # sessions without rows

    def live(self, key: str) -> Record | None:
        """The session in memory."""
        packed = self.unsaved.get(key)
        if packed is not None:
            return None if packed.record.ended else packed.record
        claimed = self.claimed.get(key)
        return None if claimed is None else claimed[0]

    def ended(self, key: str) -> bool:
        """Whether the session has ended and the store does not know."""
        packed = self.unsaved.get(key)
        return packed is not None and bool(packed.record.ended)

    def durable(self, record: Record) -> int:
        """Observations of a session without a row that the store has."""
        packed = self.unsaved.get(record.key)
        return record.step if packed is None else packed.durable

    def take(self, key: str) -> Packed | None:
        """Removes a live session from memory, for a row."""
        if self.live(key) is None:
            return None
        if key in self.unsaved:
            self._taken_back.add(key)
            return self.unsaved.pop(key)
        record, _ = self.claimed.pop(key)
        return Packed(record, record.step, True)

    def replace(self, record: Record) -> None:
        """Changes what is kept in memory of a live session."""
        packed = self.unsaved.get(record.key)
        if packed is None:
            packed = Packed(record, record.step, True)
        self.claimed.pop(record.key, None)
        self.unsaved[record.key] = packed._replace(record=record)

    def forget(self, key: str) -> None:
        """Drops what is kept in memory of a session."""
        self.unsaved.pop(key, None)
        self.claimed.pop(key, None)

    def forget_claimed(self, before: float) -> None:
        """Drops what was fetched before a monotonic second and not used: the store has it."""
        for key in [key for key, (_, at) in self.claimed.items() if at < before]:
            del self.claimed[key]

    def hold(self, key: str, holder: Holder) -> None:
        """Notes who holds a session without a row."""
        self._away[key] = holder.stream << 32 | holder.handle

    def holder(self, key: str) -> Holder | None:
        """Who holds it."""
        packed = self._away.get(key)
        return None if packed is None else Holder(packed >> 32, packed & 0xFFFF_FFFF)

    def let_go(self, key: str) -> None:
        """Nobody holds it, or it has a row again."""
        self._away.pop(key, None)

    @property
    def away(self) -> KeysView[str]:
        """Keys of sessions that are held and have no row."""
        return self._away.keys()

    # who waits

    def when_durable(self, keys: Iterable[str], call: Callable[[], None]) -> None:
        """Calls back once the store has these sessions as they are now."""
        self._waiters.append(Waiter(frozenset(keys), call))
        self.wake()

    def hurry(self) -> None:
        """Has everything saved soon: who has lost a stream may come back elsewhere."""
        self.when_durable((), _nobody)

    @property
    def waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters or self.held)

    def sweep(self, models: Sequence[ServedModel], records_of: RecordsOf, now: float) -> Sweep:
        """Begins to save everything that is unsaved now, at a monotonic second."""
        waiters, self._waiters = self._waiters, []
        self._taken_back.clear()
        return Sweep(self, models, records_of, waiters, 0 if self.held is None else self.held.mark, now)

    def finish(self, sweep: Sweep) -> None:
        """Everything in the sweep is saved."""
        self._saved_until = sweep.begun
        if self.held is not None:
            self.held.release(sweep.mark)
        for waiter in sweep.waiters:
            # Who was taken back from memory meanwhile is unsaved again.
            if waiter.keys & self._taken_back:
                self._waiters.append(waiter)
            else:
                waiter.call()

    def give_up(self, sweep: Sweep) -> None:
        """The sweep failed; the next one has it all."""
        self._waiters = sweep.waiters + self._waiters


RecordsOf = Callable[[ServedModel, RowArray], list[Record]]
"""Records of some rows as they are now."""


class Sweep:
    """A run through everything unsaved, in chunks that are packed when their turn comes."""

    def __init__(
        self,
        ledger: Ledger,
        models: Sequence[ServedModel],
        records_of: RecordsOf,
        waiters: list[Waiter],
        mark: int,
        begun: float,
    ) -> None:
        self.begun = begun
        self.waiters = waiters
        self.mark = mark
        self._ledger = ledger
        self._records_of = records_of
        self._models = deque((model, model.table.unsaved_rows()) for model in models)
        self._packed: deque[str] | None = None

    def next(self) -> Chunk | None:
        """The next records to write, none if a tick must pass first; None when all are written.

        Rows come before what is in memory: a row that is packed up in the middle of a sweep is saved by it.
        """
        while self._models:
            model, rows = self._models.popleft()
            limit = max(1, min(CHUNK_RECORDS, _CHUNK_BYTES // model.packer.row_bytes))
            if len(rows) > limit:
                self._models.appendleft((model, rows[limit:]))
            rows = rows[:limit]
            rows = rows[model.table.unsaved[rows]]
            moving = model.table.replaying[rows]
            if moving.any():
                # A row on its way back is in no state that ever was; it arrives within a few ticks.
                self._models.append((model, rows[moving]))
                rows = rows[~moving]
                if not len(rows):
                    return Chunk([], None)
            if len(rows):
                return self._pack(model, rows)
        if self._packed is None:
            self._packed = deque(self._ledger.unsaved)
        records: list[Record] = []
        while self._packed and len(records) < CHUNK_RECORDS:
            packed = self._ledger.unsaved.get(self._packed.popleft())
            if packed is not None:
                records.append(packed.record)
        return Chunk(records, None) if records else None

    def _pack(self, model: ServedModel, rows: RowArray) -> Chunk:
        table = model.table
        table.unsaved[rows] = False
        table.writing[rows] = True
        taken = Rows(
            model,
            rows,
            [table.keys[row] for row in rows.tolist()],
            table.fence[rows],
            table.applied[rows],
            table.rewinds[rows],
            table.last_use[rows],
        )
        return Chunk(self._records_of(model, rows), taken)


def written(ledger: Ledger, chunk: Chunk, refused: Iterable[str]) -> Outcome:
    """Notes what the store has now."""
    refused = frozenset(refused)
    if chunk.rows is not None:
        return _rows_written(chunk.rows, refused)
    outcome = Outcome([], [], [])
    for record in chunk.records:
        packed = ledger.unsaved.get(record.key)
        # What was packed again since, or claimed again by ourselves, is still to be written.
        if packed is not None and packed.record is record:
            del ledger.unsaved[record.key]
            if record.key in refused:
                outcome.lost_keys.append(record.key)
                outcome.fences.append(record.fence)
            else:
                outcome.saved.append(record)
    return outcome


def _rows_written(taken: Rows, refused: frozenset[str]) -> Outcome:
    table = taken.model.table
    same = _same_sessions(taken)
    table.writing[taken.rows[same]] = False
    current = same & (table.fence[taken.rows] == taken.fences)
    saved, outcome = current, Outcome([], [], [])
    if refused:
        unwelcome = np.fromiter((key in refused for key in taken.keys), np.bool_, len(taken.keys))
        # A row whose fence has risen since was claimed by ourselves; it is saved under the new one.
        table.unsaved[taken.rows[same & unwelcome]] = True
        saved = current & ~unwelcome
        for index in np.flatnonzero(current & unwelcome).tolist():
            outcome.lost_keys.append(taken.keys[index])
            outcome.fences.append(taken.fences.item(index))
    rows = taken.rows[saved]
    table.stored[rows] = True
    table.stored_use[rows] = taken.uses[saved]
    # What was saved before observations were taken back says nothing of those that came after.
    straight = saved & (table.rewinds[taken.rows] == taken.rewinds)
    table.durable[taken.rows[straight]] = taken.steps[straight]
    return outcome


def failed(chunk: Chunk) -> None:
    """The store took nothing of it."""
    if chunk.rows is not None:
        rows = chunk.rows.rows[_same_sessions(chunk.rows)]
        chunk.rows.model.table.writing[rows] = False
        chunk.rows.model.table.unsaved[rows] = True


def _same_sessions(taken: Rows) -> NDArray[np.bool_]:
    """[n]: which rows still hold the session that was packed."""
    keys = taken.model.table.keys
    pairs = zip(taken.rows.tolist(), taken.keys, strict=True)
    return np.fromiter((keys[row] is key for row, key in pairs), np.bool_, len(taken.keys))


def _nobody() -> None:
    """Nobody is to be woken."""
