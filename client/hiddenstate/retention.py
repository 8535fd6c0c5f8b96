"""What was sent and may have to be sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate.frames import Rows

Array = NDArray[Any]

_SMALLEST = 1024


class Retention:
    """Numbered observations in the order they were sent, columns in and out.

    A row is needed as long as its step lies between two marks of its session, and no later row has the same step.
    `marks` gives the marks, arrays by handle: what is needed is above the first and below the second. So neither an
    answer nor a durable step touches a row; rows that are not needed any more are dropped when they are half of all.
    """

    def __init__(self, limit: int, marks: Callable[[], tuple[Array, Array]]) -> None:
        self.limit = limit
        """Rows kept at most."""
        self._marks = marks
        self._logs: dict[tuple[int, ...], _Log] = {}  # by the shape of an input
        self._rewritten: set[int] = set()  # handles of which some step may stand in several rows
        self._size = 0
        self._clean_at = _SMALLEST  # size at which to look for rows that are not needed

    def add(self, rows: Rows) -> None:
        """Keeps these as well."""
        shape = rows.inputs.shape[1:]
        if shape not in self._logs:
            self._logs[shape] = _Log(shape, rows.inputs.dtype)
        self._logs[shape].add(rows)
        self._size += len(rows.steps)
        # Not before they are in: the marks count them already, and would take older rows of their steps for them.
        if self._size > self._clean_at:
            self._clean()
            self._clean_at = max(_SMALLEST, 2 * self._size)

    def has_room(self, count: int) -> bool:
        """Whether `count` more can be kept."""
        if self._size + count > self.limit:
            self._clean()
        return self._size + count <= self.limit

    def rows(self, first: Array, last: Array) -> list[Rows]:
        """What is kept of each session from step `first` to step `last` (arrays by handle), in order."""
        if self._rewritten:
            self._clean()
        return [rows for log in self._logs.values() if len((rows := log.between(first, last)).steps)]

    def rewrite(self, handle: int) -> None:
        """Steps of this handle will be numbered again."""
        if self._size:
            self._rewritten.add(handle)

    def remove(self, handle: int, step: int, count: int) -> None:
        """Takes `count` steps from `step` on out; the later ones of this handle move up."""
        self._clean()
        for log in self._logs.values():
            log.remove(handle, step, count)

    def _clean(self) -> None:
        above, below = self._marks()
        rewritten = np.fromiter(self._rewritten, np.int64, len(self._rewritten))
        for shape, log in list(self._logs.items()):
            log.clean(above, below, rewritten)
            if not log.size:
                del self._logs[shape]
        self._rewritten.clear()
        self._size = sum(log.size for log in self._logs.values())


class _Log:
    """Rows whose inputs have one shape."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.size = 0
        self._handles = np.empty(0, np.int32)
        self._steps = np.empty(0, np.int64)
        self._inputs = np.empty((0, *shape), dtype)

    def add(self, rows: Rows) -> None:
        end = self.size + len(rows.steps)
        if end > len(self._steps):
            self._resize(2 * end)
        self._handles[self.size : end] = rows.handles
        self._steps[self.size : end] = rows.steps
        self._inputs[self.size : end] = rows.inputs
        self.size = end

    def between(self, first: Array, last: Array) -> Rows:
        handles, steps = self._handles[: self.size], self._steps[: self.size]
        rows = np.flatnonzero((steps >= first[handles]) & (steps <= last[handles]))
        return Rows(handles[rows], steps[rows], self._inputs[rows])

    def remove(self, handle: int, step: int, count: int) -> None:
        rows = np.flatnonzero((self._handles[: self.size] == handle) & (self._steps[: self.size] >= step))
        self._steps[rows[:count]] = 0  # no step is 0, so these are needed by nobody
        self._steps[rows[count:]] -= count

    def clean(self, above: Array, below: Array, rewritten: Array) -> None:
        """Keeps only the newest row of each step between the marks."""
        handles, steps = self._handles[: self.size].astype(np.int64), self._steps[: self.size]
        needed = (steps > above[handles]) & (steps < below[handles])
        if rewritten.size:
            suspects = np.flatnonzero(needed & np.isin(handles, rewritten))[::-1]
            names = np.stack([handles[suspects], steps[suspects]], axis=1)
            _, newest = np.unique(names, axis=0, return_index=True)
            needed[suspects] = False
            needed[suspects[newest]] = True
        rows = np.flatnonzero(needed)
        self.size = len(rows)
        for name in ("_handles", "_steps", "_inputs"):
            column = getattr(self, name)
            column[: self.size] = column[rows]
        if len(self._steps) > 4 * max(self.size, _SMALLEST):
            self._resize(2 * self.size)

    def _resize(self, capacity: int) -> None:
        for name in ("_handles", "_steps", "_inputs"):
            old = getattr(self, name)
            new = np.empty((capacity, *old.shape[1:]), old.dtype)
            new[: self.size] = old[: self.size]
            setattr(self, name, new)
