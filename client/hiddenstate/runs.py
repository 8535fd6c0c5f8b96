"""Which observations of which session wait for an answer, and in which call."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

IDLE = 0


@dataclass(slots=True)
class Run:
    """Consecutive steps of one session in one call: `count` steps from `first` on, at its rows from `start` on."""

    call: int
    first: int
    start: int
    count: int


class Runs:
    """Unanswered runs by handle.

    The oldest of each session (its head) lies in arrays indexed by handle, so that a frame of thousands of rows
    costs a few array operations; later ones, which are rare, wait in a queue.
    """

    def __init__(self) -> None:
        self._queues: dict[int, deque[Run]] = {}
        self.call = np.zeros(0, np.int64)  # number of the head's call, or IDLE
        self._first = np.zeros(0, np.int64)
        self._start = np.zeros(0, np.int64)
        self._count = np.zeros(0, np.int64)

    def grow(self, size: int) -> None:
        """Makes place for handles below `size`."""
        for name in ("call", "_first", "_start", "_count"):
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def add(self, call: int, handles: Array, first: Array, starts: Array, counts: Array) -> None:
        """One run for each of `handles`, which are distinct."""
        idle = self.call[handles] == IDLE
        heads = handles[idle]
        self.call[heads] = call
        self._first[heads] = first[idle]
        self._start[heads] = starts[idle]
        self._count[heads] = counts[idle]
        for i in np.flatnonzero(~idle):
            run = Run(call, int(first[i]), int(starts[i]), int(counts[i]))
            self._queues.setdefault(int(handles[i]), deque()).append(run)

    def busy(self) -> list[int]:
        """Handles with something unanswered."""
        handles: list[int] = np.flatnonzero(self.call).tolist()
        return handles

    def match(self, handles: Array, steps: Array, answered: Array) -> tuple[Array, Array, Array, Array]:
        """Finds what answers to `steps` of `handles`, of which steps up to `answered` are, belong to.

        Returns which of them belong to a head, the calls and the rows therein of those, and which belong to a later
        run, to be asked for again once the heads are done.
        """
        offset = steps - self._first[handles]
        due = (self.call[handles] != IDLE) & (steps > answered)
        mine = due & (offset < self._count[handles])
        owners, at = handles[mine], offset[mine]
        calls, rows = self.call[owners], self._start[owners] + at
        done = owners[at == self._count[owners] - 1]
        self.call[done] = IDLE
        if self._queues:
            for finished in done.tolist():
                self._promote(finished)
        return mine, calls, rows, due & ~mine

    def of(self, handle: int, answered: int) -> list[Run]:
        """What of the session's runs is unanswered, oldest first; steps up to `answered` are."""
        if self.call[handle] == IDLE:
            return []
        first, count = int(self._first[handle]), int(self._count[handle])
        skip = max(0, answered + 1 - first)
        head = Run(int(self.call[handle]), first + skip, int(self._start[handle]) + skip, count - skip)
        return [head, *self._queues.get(handle, ())]

    def set(self, handle: int, runs: list[Run]) -> list[Run]:
        """Keeps what is left of `runs`, and returns it."""
        left = [run for run in runs if run.count]
        self.call[handle] = IDLE
        self._queues.pop(handle, None)
        if left:
            self._queues[handle] = deque(left)
            self._promote(handle)
        return left

    def _promote(self, handle: int) -> None:
        """Makes the oldest queued run the session's head."""
        queue = self._queues.get(handle)
        if not queue:
            return
        run = queue.popleft()
        if not queue:
            del self._queues[handle]
        self.call[handle] = run.call
        self._first[handle] = run.first
        self._start[handle] = run.start
        self._count[handle] = run.count
