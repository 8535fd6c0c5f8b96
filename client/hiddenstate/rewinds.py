"""How often each session was rewound, and to where."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Rewinds:
    """Rewinds are numbered from 1 in each session; their targets are kept until a state after them is safe."""

    def __init__(self) -> None:
        self.count = np.zeros(0, np.int64)
        """By handle: rewinds of the session, as far as answered."""
        self._targets: dict[int, list[tuple[int, int]]] = {}  # numbers and targets, both rising

    def grow(self, size: int) -> None:
        """Makes place for handles below `size`."""
        new = np.zeros(size, np.int64)
        new[: len(self.count)] = self.count
        self.count = new

    def begin(self, handle: int, count: int) -> None:
        """A session that was rewound `count` times before this client had it."""
        self.count[handle] = count
        self._targets.pop(handle, None)

    def note(self, handle: int, number: int, target: int, safe: int) -> None:
        """Rewind `number` went back to step `target`. Once a step is `safe`, earlier targets cannot matter again."""
        self.count[handle] = number
        # a target above a later one tells nothing: whoever goes past the later one goes past both
        kept = [entry for entry in self._targets.get(handle, ()) if safe <= entry[1] < target]
        self._targets[handle] = [*kept, (number, target)]

    def lowest(self, handle: int, after: int, before: int) -> int:
        """The earliest step that the session was at since rewind `after`, where it is at `before` now."""
        return min((target for number, target in self._targets.get(handle, ()) if number > after), default=before)
