"""Which questions about which sessions wait for an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from hiddenstate.calls import Asking, Kind

Entry = tuple[Asking, int]
"""A call and the row of it."""


class Questions:
    """What was asked on this connection, by kind and handle, in order.

    All but heartbeats wait until everything before them is answered, and hold their session: what is asked of it
    later is sent once they are answered. So a question always concerns the newest observation, also where something
    is refused for now, or asked again on another connection.
    """

    def __init__(self) -> None:
        self._asked: dict[Kind, dict[int, deque[Entry]]] = {}

    def __bool__(self) -> bool:
        return any(self._asked.values())

    def add(self, handle: int, call: Asking, position: int) -> None:
        """Was asked just now."""
        self._asked.setdefault(call.kind, {}).setdefault(handle, deque()).append((call, position))

    def first(self, kind: Kind, handle: int) -> Entry | None:
        """The oldest of this kind."""
        queue = self._asked.get(kind, {}).get(handle)
        return queue[0] if queue else None

    def take(self, kind: Kind, handle: int, position: int | None = None) -> Entry | None:
        """The oldest of this kind, or the one with this row; it is not asked any more."""
        queues = self._asked.get(kind, {})
        queue = queues.get(handle)
        if not queue:
            return None
        entry = next((entry for entry in queue if position in (None, entry[1])), None)
        if entry is not None:
            queue.remove(entry)
        if not queue:
            del queues[handle]
        return entry

    def oldest(self, handle: int) -> Entry | None:
        """What a fault that names no observation concerns: the question that holds the session, else a heartbeat."""
        kinds = sorted((kind for kind, queues in self._asked.items() if handle in queues), key=_holds, reverse=True)
        return self.first(kinds[0], handle) if kinds else None

    def holds(self, handle: int) -> bool:
        """Whether something asked holds this session."""
        return any(handle in queues for kind, queues in self._asked.items() if _holds(kind))

    def take_all(self, handle: int | None = None) -> Iterator[tuple[int, Asking, int]]:
        """Everything (about one session), oldest first; nothing of it is asked any more."""
        for queues in self._asked.values():
            for name in [*queues] if handle is None else [handle]:
                for call, position in queues.pop(name, ()):
                    yield name, call, position


def _holds(kind: Kind) -> bool:
    return kind is not Kind.HEARTBEAT
