"""Which queued work goes into the next tick: at most one item of a session, in the order sent.

Items live in columns. Those of one session form a chain (`_next`), and only the first of a chain is in the
ready queue; when it is taken, its successor becomes ready for a later tick. So every session stands in the
ready queue at most once, sessions never wait for each other's chains, and everything is index arithmetic on
whole arrays: enqueueing a frame or taking a batch costs no Python per item.

The ready queue holds chunks (arrays of slots). A chunk too long for a tick is cut, and its rest goes to the
back of the queue, which keeps one long frame from holding up the others.

What few items carry beyond an input (where to rewind to, which copies to make) stands in a side table, so that
the columns stay as narrow as an observation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.runtimes import DoubleArray, InputArray, RowArray

if TYPE_CHECKING:
    from hiddenstate_server.errors import ServerError

OBSERVE, PEEK, CLOSE, REWIND, REWOUND, EXPORT, GENERATE, FORK, REWARM = range(9)
"""REWOUND is what answers a rewind once all is fed again that it has to.

A tick acts on its items kind by kind, in this order: those that need new rows, and may evict, come last."""
KIND = 0b0000_1111
HOLD = 0b0001_0000
"""More of the same session's run follows: the answer may wait for it."""
WORDS = 0b0010_0000
"""Answer with words beside the tokens."""
CATCH_UP = 0b1000_0000
"""An observation that a twin is fed late: its surprise is not compared with its session's."""
SILENT = 0b0100_0000
"""An observation fed again: it is neither counted nor answered."""

FlagArray = NDArray[np.uint8]
SlotArray = NDArray[np.int64]

_NONE = 0
"""No slot: the first one is never given out, so that columns start as untouched zeros."""
_NO_ARGUMENTS: Mapping[int, Any] = MappingProxyType({})


class Argument(Protocol):
    """What an item carries beyond an input."""

    def abandon(self, error: ServerError) -> None:
        """Tells whoever waits for the item that it is dropped."""


class Batch(NamedTuple):
    """Work of one tick; no row stands in it twice."""

    rows: RowArray
    inputs: InputArray
    flags: FlagArray
    received: DoubleArray
    """Seconds of the monotonic clock."""
    arguments: Mapping[int, Any]
    """By row, where an item has one."""

    def only(self, mask: NDArray[np.bool_]) -> Batch:
        """The items where `mask` [n] is true."""
        return Batch(self.rows[mask], self.inputs[mask], self.flags[mask], self.received[mask], self.arguments)


class Dropped(NamedTuple):
    """Work that is not done; a row may stand in it often."""

    rows: RowArray
    flags: FlagArray
    arguments: Sequence[Argument | None]
    """One per item; None where it has none."""


class Runs(NamedTuple):
    """A frame's rows grouped by session, keeping the order inside each."""

    order: SlotArray
    """Positions in the frame, sorted by row."""
    first: NDArray[np.bool_]
    """Over the sorted positions: the first of its row."""
    last: NDArray[np.bool_]
    """Over the sorted positions: the last of its row."""

    def ordinals(self) -> SlotArray:
        """[n] in frame order: how many earlier rows of the frame have the same session."""
        positions = np.arange(len(self.order))
        starts = np.maximum.accumulate(np.where(self.first, positions, 0))
        ordinals = np.empty_like(positions)
        ordinals[self.order] = positions - starts
        return ordinals

    def flagged(self, flags: int, held: int) -> FlagArray:
        """[n] in frame order: `flags`, with `held` where a later row of the frame has the same session."""
        column = np.empty(len(self.order), np.uint8)
        column[self.order] = np.where(self.last, flags, flags | held)
        return column


def runs_of(rows: RowArray) -> Runs:
    """Groups `rows` [n] by value, stably."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    boundary = np.empty(len(rows) + 1, np.bool_)
    boundary[0] = boundary[-1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=boundary[1:-1])
    return Runs(order, boundary[:-1], boundary[1:])


class Scheduler:
    """Queued items of one model. `capacity` is the number of sessions' rows."""

    def __init__(self, capacity: int, inputs: InputArray, slots: int = 1024) -> None:
        """`inputs` is an empty array of the model's input dtype and row shape: [0] or [0, columns]."""
        self.pending = np.zeros(capacity, np.int64)
        """Items queued for each row."""
        self._tail = np.zeros(capacity, np.int64)
        self._stamp = np.zeros(capacity, np.int64)
        self._row = np.zeros(slots, np.int64)
        self._next = np.zeros(slots, np.int64)
        self._flags = np.zeros(slots, np.uint8)
        self._received = np.zeros(slots, np.float64)
        self._inputs = np.zeros((slots, *inputs.shape[1:]), inputs.dtype)
        self._used = np.zeros(slots, np.bool_)
        self._arguments: dict[int, Argument] = {}
        self._slots = np.arange(slots)
        self._free = self._slots[::-1].copy()
        self._free_count = slots - 1
        self._ready: deque[SlotArray] = deque()

    def __len__(self) -> int:
        """Items queued in all."""
        return len(self._free) - 1 - self._free_count

    @property
    def ready(self) -> bool:
        """Whether a tick would find work."""
        return bool(self._ready)

    def distinct(self, rows: RowArray) -> bool:
        """Whether no row stands in `rows` twice."""
        if len(rows) == 1:
            return True
        positions = np.arange(len(rows))
        self._stamp[rows] = positions
        return bool((self._stamp[rows] == positions).all())

    def add(
        self,
        rows: RowArray,
        inputs: InputArray | None,
        flags: FlagArray | int,
        received: float,
        runs: Runs | None = None,
        arguments: Sequence[Argument] = (),
    ) -> None:
        """Queues n items behind what their rows have; `runs` unless the rows are distinct.

        `arguments` has none or n.
        """
        if len(rows) == 1:
            flag = flags if isinstance(flags, int) else int(flags[0])
            self.add_one(int(rows[0]), None if inputs is None else inputs[0], flag, received, arguments)
            return
        slots = self._fill(rows, len(rows), inputs, flags, received, arguments)
        if runs is None:
            self.pending[rows] += 1
            self._chain(rows, slots, slots)
            return
        np.add.at(self.pending, rows, 1)
        slots = slots[runs.order]
        inner = ~runs.last[:-1]
        self._next[slots[:-1][inner]] = slots[1:][inner]
        self._chain(rows[runs.order][runs.first], slots[runs.first], slots[runs.last])

    def _fill(
        self,
        rows: RowArray | int,
        count: int,
        inputs: InputArray | None,
        flags: FlagArray | int,
        received: float,
        arguments: Sequence[Argument],
    ) -> SlotArray:
        """Slots for n items, without a chain."""
        slots = self._allocate(count)
        self._row[slots] = rows
        self._next[slots] = _NONE
        self._flags[slots] = flags
        self._received[slots] = received
        self._used[slots] = True
        if inputs is not None:
            self._inputs[slots] = inputs
        if arguments:
            self._arguments.update(zip(slots.tolist(), arguments, strict=True))
        return slots

    def add_one(self, row: int, value: Any, flags: int, received: float, arguments: Sequence[Argument] = ()) -> None:
        """`add` of a single item, `value` its input or None: plain indexing costs a fifth of the array operations."""
        if not self._free_count:
            self._grow()
        self._free_count -= 1
        slot = self._free.item(self._free_count)
        self._row[slot] = row
        self._next[slot] = _NONE
        self._flags[slot] = flags
        self._received[slot] = received
        self._used[slot] = True
        if value is not None:
            self._inputs[slot] = value
        if arguments:
            self._arguments[slot] = arguments[0]
        self.pending[row] = self.pending.item(row) + 1
        tail = self._tail.item(row)
        self._tail[row] = slot
        if tail == _NONE:
            self._ready.append(self._slots[slot : slot + 1])
        else:
            self._next[tail] = slot

    def _chain(self, rows: RowArray, heads: SlotArray, tails: SlotArray) -> None:
        """Appends one chain per row (distinct) to what is queued for it."""
        ends = self._tail[rows]
        self._tail[rows] = tails
        if (ends == _NONE).all():
            self._ready.append(heads)
            return
        waits = ends != _NONE
        self._next[ends[waits]] = heads[waits]
        if not waits.all():
            self._ready.append(heads[~waits])

    def insert(
        self,
        row: int,
        inputs: InputArray | None,
        flags: FlagArray,
        received: float,
        arguments: Sequence[Argument] = (),
    ) -> None:
        """Queues n items, as many as `flags` has, before what a row has."""
        count = len(flags)
        if not self.pending[row]:
            rows = np.full(count, row, np.int64)
            self.add(rows, inputs, flags, received, runs_of(rows), arguments)
            return
        head = self._head(row)
        slots = self._fill(row, count, inputs, flags, received, arguments)
        # The slot of a chain's head stands in the ready queue. So it stays, for the first of the new items, and what it
        # held moves behind the last of them.
        moved = int(slots[0])
        self._swap(head, moved)
        chain = np.concatenate([[head], slots[1:], [moved]])
        self._next[moved] = self._next[head]
        self._next[chain[:-1]] = chain[1:]
        if self._tail[row] == head:
            self._tail[row] = moved
        self.pending[row] += count

    def _head(self, row: int) -> int:
        """The ready slot of a row with something queued; what was made ready last is looked at first."""
        for chunk in reversed(self._ready):
            found = chunk[self._row[chunk] == row]
            if len(found):
                return int(found[0])
        raise AssertionError("a row with something queued is not ready")

    def _swap(self, slot: int, other: int) -> None:
        for column in (self._flags, self._received, self._inputs):
            column[[slot, other]] = column[[other, slot]]
        arguments = self._arguments
        held = {to: arguments.pop(at) for at, to in ((slot, other), (other, slot)) if at in arguments}
        arguments.update(held)

    def take(self, limit: int) -> Batch:
        """Removes up to `limit` ready items; what waits behind them becomes ready for the next tick."""
        slots = self._take_ready(limit)
        arguments = self._take_arguments(slots) if self._arguments else _NO_ARGUMENTS
        if len(slots) == 1:
            return self._take_one(slots.item(), arguments)
        rows = self._row[slots]
        batch = Batch(rows, self._inputs[slots], self._flags[slots], self._received[slots], arguments)
        self.pending[rows] -= 1
        following = self._next[slots]
        if following.max() == _NONE:
            self._tail[rows] = _NONE
        else:
            waits = following != _NONE
            self._tail[rows[~waits]] = _NONE
            self._ready.append(following[waits])
        self._release(slots)
        return batch

    def _take_one(self, slot: int, arguments: Mapping[int, Any]) -> Batch:
        """`take` of the ready item in this slot."""
        at = slice(slot, slot + 1)
        rows, inputs, flags = self._row[at].copy(), self._inputs[at].copy(), self._flags[at].copy()
        batch = Batch(rows, inputs, flags, self._received[at].copy(), arguments)
        row, following = rows.item(), self._next.item(slot)
        self.pending[row] = self.pending.item(row) - 1
        if following == _NONE:
            self._tail[row] = _NONE
        else:
            self._ready.append(self._slots[following : following + 1])
        self._used[slot] = False
        self._free[self._free_count] = slot
        self._free_count += 1
        return batch

    def take_run(self, row: int, shortest: int, longest: int) -> Batch | None:
        """Removes the observations a row's chain begins with, `longest` at most, if `shortest` at least are alike.

        The batch has the row in every place. Raises AssertionError if nothing is queued for the row.
        """
        head = self._head(row)
        kind = self._flags.item(head) & ~HOLD
        if kind & KIND != OBSERVE:
            return None
        chain: list[int] = []
        slot = head
        while (
            slot != _NONE
            and len(chain) < longest
            and self._flags.item(slot) & ~HOLD == kind
            and slot not in self._arguments
        ):
            chain.append(slot)
            slot = self._next.item(slot)
        if len(chain) < shortest:
            return None
        slots = np.array(chain)
        batch = Batch(self._row[slots], self._inputs[slots], self._flags[slots], self._received[slots], _NO_ARGUMENTS)
        self.pending[row] -= len(chain)
        self._unready(head)
        if slot == _NONE:
            self._tail[row] = _NONE
        else:
            self._ready.append(self._slots[slot : slot + 1])
        self._release(slots)
        return batch

    def _unready(self, slot: int) -> None:
        for index in reversed(range(len(self._ready))):
            others = self._ready[index] != slot
            if not others.all():
                self._ready[index] = self._ready[index][others]
                if not others.any():
                    del self._ready[index]
                return

    def _take_ready(self, limit: int) -> SlotArray:
        chunks: list[SlotArray] = []
        room = limit
        while self._ready and room:
            chunk = self._ready.popleft()
            if len(chunk) > room:
                self._ready.append(chunk[room:])
                chunk = chunk[:room]
            chunks.append(chunk)
            room -= len(chunk)
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _take_arguments(self, slots: SlotArray) -> Mapping[int, Any]:
        rows = self._row[slots].tolist()
        arguments = self._arguments
        return {row: arguments.pop(slot) for row, slot in zip(rows, slots.tolist(), strict=True) if slot in arguments}

    def drop(self, rows: RowArray) -> Dropped:
        """Removes everything queued for these rows; returns, in the order queued, what was to be answered."""
        rows = rows[self.pending[rows] > 0]
        doomed = np.zeros(len(self.pending), np.bool_)
        doomed[rows] = True
        slots = np.flatnonzero(self._used & doomed[self._row])
        slots = slots[np.argsort(self._received[slots], kind="stable")]
        heard = slots[(self._flags[slots] & SILENT) == 0]
        arguments = [self._arguments.pop(slot, None) for slot in heard.tolist()]
        dropped = Dropped(self._row[heard], self._flags[heard], arguments)
        if len(slots):
            self._forget(rows, doomed, slots)
        return dropped

    def _forget(self, rows: RowArray, doomed: NDArray[np.bool_], slots: SlotArray) -> None:
        """Empties rows: `doomed` [capacity] marks them, `slots` are all they have."""
        self.pending[rows] = 0
        self._tail[rows] = _NONE
        kept = (chunk[~doomed[self._row[chunk]]] for chunk in self._ready)
        self._ready = deque(chunk for chunk in kept if len(chunk))
        self._release(slots)

    def move(
        self, row: int, target: Scheduler, new_row: int, translated: Callable[[InputArray], InputArray]
    ) -> list[Argument]:
        """Queues all that a row has for a row of another scheduler that has nothing; returns what items carry."""
        if not self.pending[row]:
            return []
        chain = [self._head(row)]
        while (following := int(self._next[chain[-1]])) != _NONE:
            chain.append(following)
        slots = np.array(chain)
        new = target._fill(new_row, len(slots), translated(self._inputs[slots]), self._flags[slots], 0.0, ())
        target._received[new] = self._received[slots]
        target._next[new[:-1]] = new[1:]
        target.pending[new_row] = len(new)
        target._chain(np.array([new_row]), new[:1], new[-1:])
        pairs = zip(chain, new.tolist(), strict=True)
        arguments = {moved: self._arguments.pop(slot) for slot, moved in pairs if slot in self._arguments}
        target._arguments.update(arguments)
        doomed = np.zeros(len(self.pending), np.bool_)
        doomed[row] = True
        self._forget(np.array([row]), doomed, slots)
        return list(arguments.values())

    def _allocate(self, count: int) -> SlotArray:
        while count > self._free_count:
            self._grow()
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def _release(self, slots: SlotArray) -> None:
        self._used[slots] = False
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)

    def _grow(self) -> None:
        size = len(self._row)
        for name in ("_row", "_next", "_flags", "_received", "_inputs", "_used", "_free"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self._slots = np.arange(2 * size)
        self._free[self._free_count : self._free_count + size] = self._slots[: size - 1 : -1]
        self._free_count += size

    def check_integrity(self) -> None:
        """Raises AssertionError unless chains, counts, ready queue and free slots agree."""
        ready = np.concatenate([*self._ready, np.empty(0, np.int64)]).astype(np.int64)
        used = np.flatnonzero(self._used)
        if len(used) != len(self) or self._used[self._free[: self._free_count]].any():
            raise AssertionError("free slots and used slots disagree")
        if not self._used[ready].all() or len(np.unique(self._row[ready])) != len(ready):
            raise AssertionError("a session is ready twice, or with nothing queued")
        if set(self._row[ready]) != set(np.flatnonzero(self.pending)):
            raise AssertionError("ready sessions are not those with something pending")
        for slot in ready.tolist():
            row, length = self._row[slot], 1
            while self._next[slot] != _NONE:
                slot = int(self._next[slot])
                length += 1
                if self._row[slot] != row:
                    raise AssertionError("a chain holds another session's item")
            if length != self.pending[row] or self._tail[row] != slot:
                raise AssertionError("a chain is not as long as its session's count")
        if not (self._tail[self.pending == 0] == _NONE).all():
            raise AssertionError("a session without work has a chain")
        if not self._used[list(self._arguments)].all():
            raise AssertionError("an argument is left of an item that is gone")
