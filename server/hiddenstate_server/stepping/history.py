"""The last observations of each row, and states to feed them to again: how a session goes back.

Few states are kept, and what came after one is replayed: a ring of all states would go back with a single step, but
takes ten times the memory. Sessions that do go back have more of them for a while.

Observations come in with every tick and are needed hardly ever. So a tick only notes its arrays, and every so many
ticks they are written in bulk; rows that have come far enough from their newest kept state then keep the one they are
in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.runtimes import FloatArray, InputArray, RowArray
from hiddenstate_server.stepping.recent import RecentStates

KEPT = 2
"""States kept for each row."""
_WRITE_TICKS = 16
_ANY = 2**31


class Replay(NamedTuple):
    """Feeding `inputs` [n, ...], one by one, to `state` [state_size] leads to where the session was."""

    state: FloatArray
    inputs: InputArray


class History:
    """Rings by row. An observation has its place by the number of its step, so going back moves nothing."""

    def __init__(
        self,
        limit: int,
        inputs: InputArray,
        states: FloatArray,
        applied: NDArray[np.int64],
        initial: FloatArray,
        kept: int = KEPT,
    ) -> None:
        """`limit`: observations to be able to take back; 0 keeps nothing.

        `inputs`: an empty array of the inputs' dtype and shape; `states` [capacity, state_size] and `applied`
        [capacity]: the columns of the arena and the table; `initial` [state_size]: what a session starts with.
        """
        self.limit = limit
        self._interval = -(-(limit + 1) // (kept - 1))
        self._length = limit + self._interval + _WRITE_TICKS if limit else 0
        self._arena = states
        self._applied = applied
        self._initial = initial.reshape(-1)
        self._input_type = inputs.dtype
        stored = np.dtype(np.int32) if inputs.dtype.kind == "i" else inputs.dtype
        capacity, state_size = states.shape
        self._inputs = np.zeros((capacity, self._length, *inputs.shape[1:]), stored)
        self._flat_inputs = self._inputs.reshape(-1, *inputs.shape[1:])
        self._states = np.zeros((capacity, kept if limit else 0, state_size), np.float32)
        self._at = np.zeros((capacity, kept if limit else 0), np.int64)
        """The step of each kept state; 0 where there is none."""
        self._newest = np.zeros(capacity, np.int64)
        """The highest of a row's `at`."""
        self._furthest = np.zeros(capacity, np.int64)
        """The step a row was at before it went back."""
        self._first = np.zeros(capacity, np.int64)
        """The first step that can be gone back to, however near it is; 0 if the row began here."""
        self._columns = (self._inputs, self._states, self._at, self._newest, self._furthest, self._first)
        names = ("inputs", "states", "at", "newest", "furthest", "first")
        self.columns: dict[str, NDArray[Any]] = dict(zip(names, self._columns, strict=True)) if limit else {}
        """All there is of a row, to be read after `settle`, and written."""
        self._noted: list[tuple[RowArray, NDArray[np.int64], InputArray]] = []
        self._recent_states = RecentStates(states)
        self._replayed: dict[int, int] = {}
        """Rows that are on their way back, and the steps they are at."""

    @property
    def row_bytes(self) -> int:
        """Bytes a row takes."""
        return sum(column[:1].nbytes for column in self._columns)

    # what a tick tells

    def record(self, rows: RowArray, steps: NDArray[np.int64], inputs: InputArray) -> None:
        """Notes observations just applied, `steps` [n] being their numbers; the arrays must not change afterwards."""
        if self.limit:
            if self._recent_states:
                self._recent_states.note(rows, steps)
            self._noted.append((rows, steps, inputs))
            if len(self._noted) >= _WRITE_TICKS:
                self.settle()

    def replayed(self, rows: RowArray) -> None:
        """Notes that rows on their way back came a step further."""
        for row in rows.tolist():
            self._replayed[row] += 1
        self._recent_states.note(rows, np.array([self._replayed[row] for row in rows.tolist()]))

    def room(self, row: int) -> int:
        """How many observations of a row may be recorded at once, so that states are kept as close as they should."""
        if not self.limit:
            return _ANY
        left = self._newest.item(row) + self._interval - self._applied.item(row)
        if left <= 0:
            self.settle()
            left = self._interval
        return left

    def settle(self) -> None:
        """Brings the columns up to date."""
        if not self._noted:
            return
        rows, steps, inputs = (np.concatenate(column) for column in zip(*self._noted, strict=True))
        self._noted.clear()
        self._flat_inputs[rows * self._length + steps % self._length] = inputs
        # Of a row's several steps only the last is where its state is.
        due = (steps == self._applied[rows]) & (steps - self._newest[rows] >= self._interval)
        if due.any():
            rows, steps = rows[due], steps[due]
            places = self._at[rows].argmin(axis=1)
            self._states[rows, places] = self._arena[rows]
            self._at[rows, places] = steps
            self._newest[rows] = steps

    # going back

    def oldest(self, row: int, furthest: int) -> int:
        """The first step a row can go back to, when what is queued leads it as far as `furthest`."""
        if not self.limit:
            return furthest
        return max(int(self._first[row]), max(furthest, int(self._furthest[row])) - self.limit)

    def replay(self, row: int, step: int) -> Replay:
        """From which state, and with which inputs, a row comes to a step from 1 that is not before `oldest`.

        The row is told of by `replayed` until it is there.
        """
        self.settle()
        at = self._at[row]
        before = np.where(at < step, at, 0)
        place = int(before.argmax())
        start = int(before[place])
        state = self._states[row, place] if start else self._initial
        recent = self._recent_states.before(row, step)
        if recent is not None and recent.step > start:
            start, state = recent
        self._replayed[row] = start
        return Replay(state.copy(), self._between(row, start, step))

    def recent(self, row: int) -> InputArray:
        """[n, ...]: the last observations in a row's state, as many as are kept."""
        if not self.limit:
            return self._inputs[row, :0].astype(self._input_type)
        self.settle()
        step = int(self._applied[row])
        kept_since = max(step, int(self._furthest[row])) - self._length
        return self._between(row, max(kept_since, int(self._first[row]) - 1, 0), step)

    def _between(self, row: int, start: int, end: int) -> InputArray:
        """The inputs of the steps after `start` up to `end`."""
        inputs: InputArray = self._inputs[row, np.arange(start + 1, end + 1) % self._length]
        return inputs.astype(self._input_type)

    def went_back(self, row: int, furthest: int, step: int) -> None:
        """A row that was at `furthest` is now at `step`."""
        self._replayed.pop(row, None)
        self._furthest[row] = max(furthest, int(self._furthest[row]))
        at = self._at[row]
        self._states[row, at > step] = 0
        at[at > step] = 0
        self._newest[row] = at.max(initial=0)
        self._recent_states.forget_after(row, step)

    # rows

    def start(self, row: int, step: int) -> None:
        """A row begins at a step with the state it has, nothing being known of what came before."""
        self._first[row] = step + 1
        self._newest[row] = step
        self._at[row, :1] = step
        self._states[row, :1] = self._arena[row]

    def copy(self, row: int, copies: RowArray) -> None:
        """Gives free rows the history of another."""
        self.settle()
        for column in self._columns:
            column[copies] = column[row]

    def clear(self, rows: RowArray) -> None:
        """Forgets rows."""
        self.settle()
        self._recent_states.clear(rows)
        # States that were never kept are not written to: their memory was never touched.
        kept, places = np.nonzero(self._at[rows])
        self._states[rows[kept], places] = 0
        for column in self._columns:
            if column is not self._states:
                column[rows] = 0

    def check_integrity(self, free: RowArray) -> None:
        """Raises AssertionError unless nothing is kept for these rows."""
        self.settle()
        self._recent_states.check_integrity(free)
        if any(column[free].any() for column in self._columns):
            raise AssertionError("a free row has a history")
