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
        self._initial_outputs = outputs
        self._initial_state = state.reshape(-1)
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int64)
        self._free_count = capacity

    @property
    def free(self) -> int:
        """Rows nobody holds."""
        return self._free_count

    @property
    def used(self) -> int:
        """Rows held by sessions."""
        return self.capacity - self._free_count

    def allocate(self, count: int) -> RowArray:
        """`count` rows in the initial state; the caller has checked `free`."""
        if count > self._free_count:
            raise ValueError(f"{count} rows asked for, {self._free_count} free")
        self._free_count -= count
        rows: RowArray = self._free[self._free_count : self._free_count + count].copy()
        self.states[rows] = self._initial_state
        write_rows(self.outputs, rows, self._initial_outputs)
        return rows

    def release(self, rows: RowArray) -> None:
        """Gives rows back, zeroed, so that nothing of a session outlives it."""
        self.states[rows] = 0
        write_rows(self.outputs, rows, 0)
        self._free[self._free_count : self._free_count + len(rows)] = rows
        self._free_count += len(rows)

    def check_integrity(self) -> None:
        """Raises AssertionError unless free rows are distinct and zero."""
        free = self._free[: self._free_count]
        if len(np.unique(free)) != len(free):
            raise AssertionError("a row is free twice")
        if self.states[free].any() or any(column[free].any() for column in self.outputs):
            raise AssertionError("a free row holds something")
