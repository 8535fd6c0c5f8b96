"""Free-running continuations, as they are generated."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

from hiddenstate.calls import Call, Generating, Piece
from hiddenstate.connection import Connection

_T = TypeVar("_T")


class AsyncGeneration(AsyncIterator[_T], Generic[_T]):
    """A continuation of a session: an iterator over what is generated, step by step; `close` ends it early."""

    def __init__(
        self,
        connection: Connection,
        call: Generating,
        items: Callable[[Piece], list[_T]],
        commit: Callable[[list[_T]], Call] | None,
        timeout: float | None,
    ) -> None:
        self._connection = connection
        self._call = call
        self._items = items
        self._commit = commit
        self._timeout = timeout
        self._ready: deque[_T] = deque()
        self._taken: list[_T] = []
        self._committed: Call | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while not self._ready:
            if self._call.pieces:
                self._ready.extend(self._items(self._call.pieces.popleft()))
            elif self._call.remaining:
                await self._connection.wait(self._call, self._timeout)
            else:
                await self.close()
                self._call.raise_any()
                raise StopAsyncIteration
        item = self._ready.popleft()
        self._taken.append(item)
        return item

    async def close(self) -> None:
        """Ends it. With `commit`, what was taken from it is then in the session."""
        if self._call.remaining:
            self._connection.protocol.abandon(self._call)
            self._connection.wake()
        self.commit()
        call, self._committed = self._committed, None
        if call is not None:
            await self._connection.wait(call, self._timeout)
            call.raise_any()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def commit(self) -> None:
        """With `commit`, sends what was taken so far to the session."""
        if self._commit is not None and self._taken:
            taken, self._taken = self._taken, []
            self._committed = self._commit(taken)
