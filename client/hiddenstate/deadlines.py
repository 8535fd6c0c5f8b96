"""Timeouts of many waits with few timers: those that begin about together share one."""

from __future__ import annotations

import asyncio

from hiddenstate.calls import Waited

_TOGETHER = 0.01
"""Seconds within which they do; by so much one may be late."""


class Group:
    """Waits of one length that began about together; each is in it until it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.begun = loop.time()
        self.waits: set[Waited] = set()
        self._loop = loop
        self._seconds = seconds
        self._timer = loop.call_later(seconds + _TOGETHER, self._run_out)

    def leave(self, wait: Waited) -> None:
        """The wait is over."""
        self.waits.discard(wait)
        if not self.waits and self._loop.time() > self.begun + _TOGETHER:
            self._timer.cancel()

    def _run_out(self) -> None:
        for wait in self.waits:
            if not wait.waiter.done():
                wait.waiter.set_exception(TimeoutError())


class Deadlines:
    """Ends waits that take too long."""

    def __init__(self) -> None:
        self._groups: dict[float, Group] = {}

    def join(self, wait: Waited, seconds: float) -> Group:
        """From now on it has so many seconds: then its waiter, a future, fails with TimeoutError."""
        loop = asyncio.get_running_loop()
        group = self._groups.get(seconds)
        if group is None or loop.time() > group.begun + _TOGETHER:
            group = self._groups[seconds] = Group(loop, seconds)
        group.waits.add(wait)
        return group
