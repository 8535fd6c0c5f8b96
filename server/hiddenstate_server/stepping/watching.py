"""Those who follow sessions without holding them: each has a queue of bounded length, and costs its session nothing.

They are found by the session's key, so they stay with it wherever it moves inside the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import ServerError
from hiddenstate_server.runtimes import Outputs, each_column
from hiddenstate_server.stepping.frames import handle_bytes, step_bytes

QUEUE = 256
"""Predictions that wait for a watcher; beyond, the oldest are left out."""


class Seen(NamedTuple):
    """A prediction."""

    step: int
    outputs: Outputs
    """Of one row."""
    version: str
    """Of the model that made it."""
    vocabulary: Sequence[str]


class Watcher:
    """What waits for one who follows a session."""

    def __init__(self, with_words: bool) -> None:
        self._with_words = with_words
        self._queue = deque[Seen]()
        self._skipped = 0
        self._ending: ServerError | None = None
        self._changed = asyncio.Event()

    def add(self, seen: Seen) -> None:
        """Adds a prediction."""
        if len(self._queue) == QUEUE:
            self._queue.popleft()
            self._skipped += 1
        self._queue.append(seen)
        self._changed.set()

    def end(self, error: ServerError) -> None:
        """Nothing more comes."""
        self._ending = error
        self._changed.set()

    async def next(self) -> pb.WatchSessionResponse:
        """Everything that waits, as soon as there is something; then raises how the session ended."""
        while not self._queue:
            if self._ending is not None:
                raise self._ending
            self._changed.clear()
            await self._changed.wait()
        seen = [self._queue.popleft()]
        while self._queue and self._queue[0].version == seen[0].version:
            seen.append(self._queue.popleft())
        skipped, self._skipped = self._skipped, 0
        return pb.WatchSessionResponse(predictions=self._predictions(seen), skipped=skipped, version=seen[0].version)

    def _predictions(self, seen: Sequence[Seen]) -> pb.Predictions:
        fields = seen[0].outputs._fields
        columns = zip(*(each.outputs for each in seen), strict=True)
        packed: dict[str, Any] = {
            name: b"".join(map(bytes, column)) for name, column in zip(fields, columns, strict=True)
        }
        predictions = pb.Predictions(
            handles=handle_bytes(np.zeros(len(seen), np.uint32)),
            steps=step_bytes(np.array([each.step for each in seen])),
            **packed,
        )
        if self._with_words and seen[0].vocabulary:
            words = seen[0].vocabulary
            tokens = np.frombuffer(predictions.top_tokens, "<i4")
            predictions.top_words.extend(words[token] for token in tokens.tolist())
        return predictions


class Watching:
    """All watchers of one process; false while there are none."""

    def __init__(self) -> None:
        self._watchers: dict[str, list[Watcher]] = {}

    def __bool__(self) -> bool:
        return bool(self._watchers)

    @contextmanager
    def following(self, key: str, with_words: bool) -> Iterator[Watcher]:
        """A watcher of the session of this key."""
        watcher = Watcher(with_words)
        self._watchers.setdefault(key, []).append(watcher)
        try:
            yield watcher
        finally:
            self._watchers[key].remove(watcher)
            if not self._watchers[key]:
                del self._watchers[key]

    def tell(
        self,
        keys: Sequence[str],
        steps: NDArray[np.int64],
        outputs: Outputs,
        version: str,
        vocabulary: Sequence[str],
    ) -> None:
        """Has the watchers of these sessions [n] see predictions of a version, whose outputs are [n, ...]."""
        for index, key in enumerate(keys):
            for watcher in self._watchers.get(key, ()):
                watcher.add(Seen(int(steps[index]), _row(outputs, index), version, vocabulary))

    def end(self, key: str, error: ServerError) -> None:
        """The session has ended, or gone elsewhere."""
        for watcher in self._watchers.get(key, ()):
            watcher.end(error)

    def end_all(self, error: ServerError) -> None:
        """The server goes away."""
        for key in self._watchers:
            self.end(key, error)


def _row(outputs: Outputs, index: int) -> Outputs:
    return each_column(outputs, lambda column: column[index : index + 1].copy())
