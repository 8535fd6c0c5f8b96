"""When the store is written to next: often while that costs little, less often the more it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Sweeps begin `shortest` seconds apart, further if they took more of a processor than `share`, up to `longest`."""

    def __init__(self, shortest: float, longest: float, share: float) -> None:
        self.shortest = shortest
        self._longest = max(shortest, longest)
        self._share = share
        self._spent = 0.0
        self._next = 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Counts what the calling thread works until the block is left."""
        before = time.thread_time()
        try:
            yield
        finally:
            self._spent += time.thread_time() - before

    def begin(self, now: float) -> None:
        """A sweep begins, at a monotonic second."""
        self._begun, self._spent = now, 0.0
        self._next = now + self.shortest

    def end(self) -> None:
        """The sweep is over; what it took says when the next one is due."""
        self._next = self._begun + min(self._longest, max(self.shortest, self._spent / self._share))

    def due_in(self, now: float) -> float:
        """Seconds until the next sweep is due; not positive where it is."""
        return self._next - now
