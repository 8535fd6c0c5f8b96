"""What is asked of the server, and the sessions it is asked of, as the client knows them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate.columns import Columns
from hiddenstate.errors import HiddenstateError, fresh

Array = NDArray[Any]


class Kind(IntEnum):
    """What a call asks for."""

    OPEN = 1
    OBSERVE = 2
    PEEK = 3
    CLOSE = 4
    HEARTBEAT = 5


class Session:
    """One session, as this client knows it."""

    __slots__ = (
        "abandoned",
        "error",
        "handle",
        "id",
        "idle_timeout",
        "model",
        "on_end",
        "opened",
        "opening",
        "resume",
        "step",
        "version",
    )

    def __init__(
        self, handle: int, model: str, version: str, id: str, resume: bool, idle_timeout: float | None
    ) -> None:
        self.handle = handle
        self.model = model
        self.version = version
        self.id = id
        self.resume = resume
        self.idle_timeout = idle_timeout
        self.opened = False
        """Whether the server ever confirmed it; from then on it can only be resumed."""
        self.opening: Call | None = None
        """The call that waits for it to be opened."""
        self.abandoned = False
        """Nobody waits for it any more: close it as soon as it is open."""
        self.step = 0
        """Observations in its state when it ended."""
        self.error: HiddenstateError | None = None
        """Why it ended."""
        self.on_end: Callable[[HiddenstateError], None] | None = None
        """Told when it ends."""


class Call:
    """Something asked of the server, for one or many sessions; finished when nothing of it remains."""

    __slots__ = ("errors", "handles", "kind", "number", "parts", "refused", "remaining", "rows")

    def __init__(self, kind: Kind, handles: Array, rows: int) -> None:
        self.kind = kind
        self.handles = handles
        self.rows = rows
        self.remaining = rows
        self.errors: dict[int, HiddenstateError] = {}
        """What went wrong, by handle."""
        self.refused: HiddenstateError | None = None
        """The last refusal after which it was tried again."""
        self.parts: list[tuple[Array, Columns]] = []
        """Answers as they came, with the rows they belong to."""
        self.number = 0

    def raise_any(self) -> None:
        """Raises what went wrong; for calls of one session."""
        for error in self.errors.values():
            raise fresh(error)

    def columns(self) -> Columns:
        """The answers, [rows]; rows that failed are missing."""
        rows = np.arange(self.rows)
        positions = [positions for positions, _ in self.parts]
        answers = [answers for _, answers in self.parts]
        if sum(map(len, positions)) < self.rows:
            absent = np.setdiff1d(rows, np.concatenate([rows[:0], *positions]))
            positions.append(absent)
            answers.append(Columns.missing(answers[0] if answers else None, absent.size))
        joined = np.concatenate(positions)
        columns = Columns.concatenate(answers)
        if (joined == rows).all():
            return columns
        order = np.empty(self.rows, np.int64)
        order[joined] = rows
        return columns.take(order)


class Observing(Call):
    """Observations: run i has `counts[i]` rows from row `starts[i]` on, for session `handles[i]`."""

    __slots__ = ("counts", "inputs", "starts")

    def __init__(self, handles: Array, starts: Array, counts: Array, inputs: Array) -> None:
        super().__init__(Kind.OBSERVE, handles, len(inputs))
        self.starts = starts
        self.counts = counts
        self.inputs = inputs
        """int32 [rows] tokens or float64 [rows, columns] values."""


class Asking(Call):
    """A peek, close or heartbeat, one row a session."""

    __slots__ = ("positions",)

    def __init__(self, kind: Kind, handles: Array) -> None:
        super().__init__(kind, handles, len(handles))
        self.positions = np.arange(len(handles))
        """Row of each handle in the answer."""
