"""Preallocated rows, one a session: its recurrent state and its last outputs."""

from __future__ import annotations

import numpy as np

from hiddenstate_server.runtimes import FloatArray, Outputs, RowArray, each_column, write_rows


class Arena:
    """States float32 [capacity, state_size] and last outputs [capacity, ...], with a free list of rows.

    Pages are touched only when a row is used first, so capacity costs address space, not memory.
    """

    def __init__(self, capacity: int, outputs: Outputs, state: FloatArray) -> None:
        """`outputs` and `state` are what a new session starts with, one row each."""
        self.capacity = capacity
        self.states = np.zeros((capacity, state.shape[-1]), np.float32)
        self.outputs = each_column(outputs, lambda column: np.zeros((capacity, *column.shape[1:]), column.dtype))
        self.initial = state.reshape(-1)
        """What a new session starts with, [state_size]."""
        self._initial_outputs = outputs
        # Rows given back, for the next ones; those from `_ever_used` on were never held.
        self._returned = np.zeros(capacity, np.int64)
        self._returned_count = 0
        self._ever_used = 0

    @property
    def free(self) -> int:
        """Rows nobody holds."""
        return self._returned_count + self.capacity - self._ever_used

    @property
    def row_bytes(self) -> int:
        """Bytes a row takes."""
        return sum(column[:1].nbytes for column in (self.states, *self.outputs))

    @property
    def used(self) -> int:
        """Rows held by sessions."""
        return self._ever_used - self._returned_count

    def allocate(self, count: int) -> RowArray:
        """`count` rows in the initial state; the caller has checked `free`."""
        if count > self.free:
            raise ValueError(f"{count} rows asked for, {self.free} free")
        again = min(count, self._returned_count)
        self._returned_count -= again
        returned = self._returned[self._returned_count : self._returned_count + again]
        rows: RowArray = np.concatenate([returned, np.arange(self._ever_used, self._ever_used + count - again)])
        self._ever_used += count - again
        self.reset(rows)
        return rows

    def reset(self, rows: RowArray) -> None:
        """Brings rows to the initial state."""
        self.states[rows] = self.initial
        write_rows(self.outputs, rows, self._initial_outputs)

    def copy(self, row: int, copies: RowArray) -> None:
        """Gives rows the state and outputs of another."""
        self.states[copies] = self.states[row]
        for column in self.outputs:
            column[copies] = column[row]

    def release(self, rows: RowArray) -> None:
        """Gives rows back, zeroed, so that nothing of a session outlives it."""
        self.states[rows] = 0
        write_rows(self.outputs, rows, 0)
        self._returned[self._returned_count : self._returned_count + len(rows)] = rows
        self._returned_count += len(rows)

    @property
    def returned(self) -> RowArray:
        """Rows that were held and are free."""
        return self._returned[: self._returned_count]

    def check_integrity(self) -> None:
        """Raises AssertionError unless rows given back are distinct."""
        free = np.zeros(self._ever_used, np.bool_)
        free[self.returned] = True
        if np.count_nonzero(free) != len(self.returned):
            raise AssertionError("a row is free twice")

    def check_empty(self, free: RowArray) -> None:
        """Raises AssertionError unless these rows are zero."""
        if self.states[free].any() or any(column[free].any() for column in self.outputs):
            raise AssertionError("a free row holds something")
