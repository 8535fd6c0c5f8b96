"""What is asked of the server, and the sessions it is asked of, as the client knows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    HEARTBEAT = 4
    REWIND = 5
    FORK = 6
    EXPORT = 7
    REWARM = 8
    GENERATE = 9
    CLOSE = 10


@dataclass(slots=True)
class Wish:
    """How a session is to be opened."""

    model: str
    version: str = ""
    resume: bool = False
    idle_timeout: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    shadow: str = ""
    snapshot: bytes = b""
    """Opens where this was taken; names the model."""


class Session:
    """One session, as this client knows it."""

    __slots__ = (
        "abandoned",
        "asked",
        "coded",
        "durable_step",
        "error",
        "handle",
        "id",
        "idle_timeout",
        "labels",
        "model",
        "on_end",
        "opened",
        "opening",
        "resume",
        "rewind_limit",
        "rewinds",
        "source",
        "step",
        "version",
        "wish",
    )

    def __init__(self, handle: int, wish: Wish, id: str = "", source: int | None = None) -> None:
        self.handle = handle
        self.wish = wish
        self.id = id
        self.source = source
        """Handle of the session it is a copy of."""
        self.model = wish.model
        self.version = wish.version
        self.coded = ""
        """The version whose vocabulary its observations are written in."""
        self.idle_timeout = wish.idle_timeout
        """The lease granted, once it is open."""
        self.labels = wish.labels
        self.rewind_limit = 0
        """How many of the last observations can be taken back."""
        self.resume = wish.resume
        """Whether it is on the server already."""
        self.opened = False
        """Whether the server ever confirmed it."""
        self.asked = False
        """Whether a connection broke on which it was asked for: it may be there without this client knowing."""
        self.opening: Call | None = None
        """The call that waits for it to be opened."""
        self.abandoned = False
        """Nobody waits for it any more: close it as soon as it is open."""
        self.step = self.durable_step = self.rewinds = 0
        """As they were when it ended."""
        self.error: HiddenstateError | None = None
        """Why it ended."""
        self.on_end: Callable[[HiddenstateError], None] | None = None
        """Told when it ends."""


class Waited:
    """Something that somebody waits for."""

    __slots__ = ("refused", "waiter")

    def __init__(self) -> None:
        self.waiter: Any = None
        """Whom the shell wakes when there is news."""
        self.refused: HiddenstateError | None = None
        """The last refusal after which it was tried again."""


class Call(Waited):
    """Something asked of the server, for one or many sessions; finished when nothing of it remains."""

    __slots__ = ("errors", "handles", "kind", "number", "parts", "remaining", "rows")

    def __init__(self, kind: Kind, handles: Array, rows: int) -> None:
        super().__init__()
        self.kind = kind
        self.handles = handles
        self.rows = rows
        self.remaining = rows
        self.errors: dict[int, HiddenstateError] = {}
        """What went wrong, by handle."""
        self.parts: list[tuple[Array, Columns]] = []
        """Answers as they came, with the rows they belong to."""
        self.number = 0

    def take(self, positions: Array, columns: Columns, rows: Array) -> None:
        """Rows of `columns` are the answers to these rows of the call."""
        self.parts.append((positions, columns.take(rows)))

    def fail(self, handle: int, error: HiddenstateError) -> None:
        """What is left of this session fails."""
        self.errors[handle] = error

    def refuse(self, _handle: int, error: HiddenstateError) -> None:
        """It was refused for now, and will be tried again."""
        self.refused = error

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


class One(Waited):
    """One observation of one session, that travels with those of other sessions."""

    __slots__ = ("call", "columns", "error", "handle", "row")

    def __init__(self, handle: int) -> None:
        super().__init__()
        self.handle = handle
        self.call: Gathered | None = None
        """What it travels with."""
        self.columns: Columns | None = None
        """Answers of which it has the `row`, once they are there."""
        self.row = 0
        self.error: HiddenstateError | None = None
        """Why there is none."""


class Gathered(Observing):
    """Observations that came one by one, each of another session; each is finished by itself."""

    __slots__ = ("_of", "ones", "settled")

    def __init__(self, ones: Sequence[One], inputs: Array) -> None:
        rows = np.arange(len(ones))
        super().__init__(np.array([one.handle for one in ones]), rows, np.ones(len(ones), np.int64), inputs)
        self.ones = ones
        """By row."""
        self.settled: list[One] = []
        """Those that are answered or have failed since this was last emptied."""
        self._of: dict[int, One] | None = None
        for one in ones:
            one.call = self

    def parts_by(self, ready: NDArray[np.bool_]) -> list[Gathered]:
        """Those of the sessions in `ready` [handles], and the others."""
        masks = [mask for mask in (ready, ~ready) if mask.any()]
        rows = [self.starts[mask] for mask in masks]
        return [Gathered([self.ones[row] for row in some.tolist()], self.inputs[some]) for some in rows]

    def without(self, one: One) -> None:
        """Leaves one out that was not sent."""
        kept = self.handles != one.handle
        self.handles, self.starts, self.counts = self.handles[kept], self.starts[kept], self.counts[kept]

    def take(self, positions: Array, columns: Columns, rows: Array) -> None:
        """Tells each where its answer is."""
        ones = self.ones
        for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
            one = ones[position]
            one.columns, one.row = columns, row
            self.settled.append(one)

    def fail(self, handle: int, error: HiddenstateError) -> None:
        """The session's observation fails."""
        one = self._one(handle)
        one.error = error
        self.settled.append(one)

    def refuse(self, handle: int, error: HiddenstateError) -> None:
        """The session's observation will be tried again."""
        self._one(handle).refused = error

    def _one(self, handle: int) -> One:
        if self._of is None:
            self._of = {one.handle: one for one in self.ones}
        return self._of[handle]


class Asking(Call):
    """A question about sessions, one row each: what has no arguments (peek, heartbeat, export, close)."""

    __slots__ = ("positions", "snapshots")

    def __init__(self, kind: Kind, handles: Sequence[int]) -> None:
        super().__init__(kind, np.array(handles, np.int64), len(handles))
        self.positions = np.arange(len(handles))
        """Row of each handle in the answer."""
        self.snapshots: dict[int, bytes] = {}
        """What was exported, by handle."""

    def withdraw(self, handle: int, position: int) -> None:
        """This row is to be asked again."""
        self.handles = np.append(self.handles, handle)
        self.positions = np.append(self.positions, position)


class Rewinding(Asking):
    """Takes the last `count` observations back."""

    __slots__ = ("count",)

    def __init__(self, handle: int, count: int) -> None:
        super().__init__(Kind.REWIND, [handle])
        self.count = count


class Forking(Asking):
    """Makes copies of one session; row i is `copies[i]`."""

    __slots__ = ("copies",)

    def __init__(self, handle: int, copies: list[Session]) -> None:
        super().__init__(Kind.FORK, [handle] * len(copies))
        self.copies = copies


class Rewarming(Asking):
    """Moves a session to another version (empty: the newest)."""

    __slots__ = ("version",)

    def __init__(self, handle: int, version: str) -> None:
        super().__init__(Kind.REWARM, [handle])
        self.version = version


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to generate; None leaves it to the server."""

    count: int
    seed: int
    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    stop_tokens: Sequence[int] = ()
    paths: int = 0
    quantiles: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Steps of a continuation: tokens int32 [m] and probabilities float32 [m], or values float64 [m, paths or
    quantiles, targets]."""

    tokens: Array
    probabilities: Array
    values: Array

    def __len__(self) -> int:
        return len(self.tokens) or len(self.values)

    def after(self, count: int) -> Piece:
        """Without the first `count` steps."""
        return Piece(self.tokens[count:], self.probabilities[count:], self.values[count:])


class Generating(Asking):
    """A continuation of one session. Its pieces are taken from `pieces` as they come."""

    __slots__ = ("pieces", "place", "received", "recipe", "shape", "skip")

    def __init__(self, handle: int, recipe: Recipe, shape: tuple[int, int]) -> None:
        super().__init__(Kind.GENERATE, [handle])
        self.recipe = recipe
        self.shape = shape
        """Of the values of one step: paths or quantiles, and targets."""
        self.pieces: deque[Piece] = deque()
        self.received = 0
        """Steps that came."""
        self.skip = 0
        """Steps that will come again, since it was asked for again after a connection broke."""
        self.place: tuple[int, int] | None = None
        """Rewinds and step of the session where it starts."""
