"""Answers that wait until the store has what they tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hiddenstate_server.stepping.streams import Part, Single, Stream

Item = Part | Single | bytes
"""Predictions, or handles closed."""


class Held:
    """One queue for all streams, so that what was held first is released first."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called for whatever is held."""
        self._wake = wake
        self._items: deque[tuple[Stream, Item | None]] = deque()
        self._released = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def mark(self) -> int:
        """Everything held so far, for `release`."""
        return self._released + len(self._items)

    def add(self, stream: Stream, item: Item) -> None:
        """Keeps an answer back."""
        self._items.append((stream, item))
        self._wake()

    def release(self, mark: int) -> None:
        """Hands what was held before the mark to the streams."""
        while self._released < mark:
            self._released += 1
            stream, item = self._items.popleft()
            if item is not None:
                stream.release(item)

    def drop(self, stream: Stream, handle: int) -> None:
        """Forgets answers about one session: what they tell is not so."""
        for index, (holder, item) in enumerate(self._items):
            if holder is stream and item is not None and not isinstance(item, bytes):
                part = item if isinstance(item, Part) else item.part()
                kept = part.without(handle)
                stream.backlog -= len(part.received) - len(kept.received)
                self._items[index] = (holder, kept if len(kept.received) else None)
