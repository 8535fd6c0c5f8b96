"""The event loop in a background thread that the blocking client runs on."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")


class Closable(Protocol):
    """Something to be closed at the end."""

    def close(self) -> None:
        """Blocks until it is closed."""


class Background:
    """One event loop for all clients of the process: gRPC's asyncio runs badly on several at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: weakref.WeakSet[Closable] = weakref.WeakSet()

    def enter(self, client: Closable) -> Runner:
        """What runs the client's work."""
        with self._lock:
            self._clients.add(client)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="hiddenstate", daemon=True).start()
                atexit.register(self._leave)
            return Runner(self._loop)

    def _leave(self) -> None:
        """Closes forgotten clients while the interpreter is still whole."""
        for client in list(self._clients):
            client.close()


class Runner:
    """Runs work on the loop for threads that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` and waits; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


background = Background()
