"""Timeouts of many waits with few timers: those that begin about together share one."""

from __future__ import annotations

import asyncio

from hiddenstate.calls import Waited

_TOGETHER = 0.01
"""Seconds within which they do; by so much one may be late."""


class Group:
    """Waits of one length that began about together; each is in it until it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.seconds = seconds
        self._until = loop.time() + _TOGETHER
        self._waits: set[Waited] = set()
        self._loop = loop
        self._timer = loop.call_later(seconds + _TOGETHER, self._run_out)

    @property
    def open(self) -> bool:
        """Whether a wait that begins now may still join."""
        return self._loop.time() < self._until

    def add(self, wait: Waited) -> None:
        """From now on its waiter, a future, fails with TimeoutError if the time runs out."""
        self._waits.add(wait)

    def leave(self, wait: Waited) -> None:
        """The wait is over."""
        self._waits.discard(wait)
        if not self._waits and not self.open:
            self._timer.cancel()

    def _run_out(self) -> None:
        for wait in self._waits:
            # One that was answered a moment ago has no waiter any more, and has not come to leave yet.
            if wait.waiter is not None and not wait.waiter.done():
                wait.waiter.set_exception(TimeoutError())


class Deadlines:
    """Ends waits that take too long."""

    def __init__(self) -> None:
        self._latest: Group | None = None

    def join(self, wait: Waited, seconds: float) -> Group:
        """From now on it has so many seconds."""
        group = self._latest
        if group is None or group.seconds != seconds or not group.open:
            group = self._latest = Group(asyncio.get_running_loop(), seconds)
        group.add(wait)
        return group
