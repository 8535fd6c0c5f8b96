"""What the client knows of its sessions, and what it awaits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import (
    Asking,
    Call,
    Forking,
    Gathered,
    Generating,
    Kind,
    Observing,
    One,
    Rewinding,
    Session,
    Waited,
    Wish,
)
from hiddenstate.columns import Columns
from hiddenstate.errors import AnswersLost, HiddenstateError, ResourceExhausted
from hiddenstate.marks import HELD, UNOPENED, Marks
from hiddenstate.questions import Questions
from hiddenstate.retention import Retention
from hiddenstate.rewinds import Rewinds
from hiddenstate.runs import Run, Runs

Array = NDArray[Any]

_A = TypeVar("_A", bound=Asking)

_REUSE_AFTER = 1024  # freed handles rest this long, since late answers to their last session may still come


class Ledger:
    """Sessions with all that waits for them: it settles calls, and ends sessions."""

    def __init__(self, max_sessions: int, max_retained: int) -> None:
        self.max_sessions = max_sessions
        self.sessions: dict[int, Session] = {}
        """Live ones, by handle."""
        self.unopened: dict[int, float] = {}
        """Handles, and when to send their opens."""
        self._outbox: list[Observing | Asking] = []
        self._gathering: dict[type, tuple[dict[int, One], list[Any]]] = {}  # by handle, and inputs; by their type
        self.unsent = 0
        """Observations in the outbox."""
        self.unanswered = 0
        """Observations without an answer."""
        self.calls: dict[int, Observing] = {}
        """Observations under way, by number."""
        self.runs = Runs()
        self.questions = Questions()
        self.generations: dict[int, Generating] = {}
        """Continuations under way, by number."""
        self.cancelled: list[int] = []
        """Continuations given up, which the server does not know yet."""
        self.targets: dict[int, int] = {}
        """Where the rewinds go that are awaited, by handle."""
        self.finished: list[Waited] = []
        """What is done, or has a new piece, since this was last taken."""
        self.marks = Marks()
        self.rewinds = Rewinds()
        self.retention = Retention(max_retained, self.marks.span)
        self.on_end: Callable[[int], None] | None = None
        """Told the handles of sessions that end."""
        self._free: deque[int] = deque()
        self._handles = 0  # handles below were used before
        self._numbers = 0

    @property
    def outbox(self) -> list[Observing | Asking]:
        """What was not sent yet, in order."""
        if self._gathering:
            gathering, self._gathering = self._gathering, {}
            self._outbox += [_gathered(list(ones.values()), inputs) for ones, inputs in gathering.values()]
        return self._outbox

    @outbox.setter
    def outbox(self, calls: list[Observing | Asking]) -> None:
        self._outbox = calls

    @property
    def busy(self) -> bool:
        """Whether anything is to be sent or awaited."""
        waiting = (self.outbox, self.unopened, self.calls, self.generations, self.cancelled, self.questions)
        return any(map(bool, waiting))

    # beginning

    def add(self, wish: Wish, id: str = "", source: int | None = None) -> Session:
        """A new session."""
        session = Session(self._take_handle(), wish, id, source)
        self.sessions[session.handle] = session
        return session

    def require_place(self, count: int) -> None:
        """Raises ResourceExhausted where there is none for so many more sessions."""
        if len(self.sessions) + count > self.max_sessions:
            raise ResourceExhausted(
                f"a client holds at most {self.max_sessions} sessions at once; close some or use another client",
                reason="CLIENT_SESSIONS",
            )

    def number(self) -> int:
        """A new number for a call."""
        self._numbers += 1
        return self._numbers

    def put(self, call: _A) -> _A:
        """To be asked when it is its turn."""
        self.outbox.append(call)
        return call

    def gather(self, handle: int, value: float) -> One:
        """An observation, a token (int) or a value (float), to be sent with those that come until then."""
        kind = type(value)
        ones, inputs = self._gathering.get(kind, (None, None))
        if ones is None or inputs is None or handle in ones:
            if ones is not None:
                self._outbox = self.outbox  # each session stands in a call once
            ones, inputs = self._gathering[kind] = {}, []
        one = ones[handle] = One(handle)
        inputs.append(value)
        self.unanswered += 1
        self.unsent += 1
        return one

    def withdraw(self, one: One) -> None:
        """Sends it not, if it was not sent."""
        outbox = self.outbox
        call = one.call
        if call is None or call not in outbox:
            return
        call.without(one)
        if not len(call.handles):
            outbox.remove(call)
        self.unsent -= 1
        self.finish(call, 1)

    def _take_handle(self) -> int:
        if len(self._free) > _REUSE_AFTER or (self._free and self._handles >= self.max_sessions):
            handle = self._free.popleft()
            self.retention.rewrite(handle)
        else:
            handle = self._handles
            self._handles += 1
        if handle >= len(self.marks):
            size = max(64, 2 * len(self.marks))
            for arrays in (self.marks, self.runs, self.rewinds):
                arrays.grow(size)
        self.marks.begin(handle)
        self.rewinds.begin(handle, 0)
        return handle

    # answers

    def deliver(self, numbers: Array, positions: Array, columns: Columns, rows: Array) -> None:
        """Gives rows of `columns` to the calls with these numbers."""
        if (numbers == numbers[0]).all():
            groups: list[Any] = [slice(None)]
        else:
            order = np.argsort(numbers, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        for group in groups:
            call = self.calls[int(numbers[group][0])]
            taken = rows[group]
            call.take(positions[group], columns, taken)
            self.finish(call, len(taken))

    def answer(self, kind: Kind, handle: int, columns: Columns | None = None, *, position: int | None = None) -> None:
        """The oldest question of this kind (or the one with this row) is answered."""
        entry = self.release(kind, handle, position)
        if entry is None:
            return
        call, row = entry
        if columns is not None:
            call.parts.append((np.array([row]), columns))
        self.finish(call, 1)

    def release(self, kind: Kind, handle: int, position: int | None = None) -> tuple[Asking, int] | None:
        """Such a question is not asked any more, so that it no longer holds its session."""
        entry = self.questions.take(kind, handle, position)
        if entry is not None and not self.questions.holds(handle):
            self.marks.open(handle, HELD)
        return entry

    def finish(self, call: Call, rows: int) -> None:
        """`rows` more of the call are done."""
        call.remaining -= rows
        if isinstance(call, Observing):
            self.unanswered -= rows
        if isinstance(call, Gathered):
            self.finished += call.settled
            call.settled.clear()
        if call.remaining or not rows:
            return
        if isinstance(call, Observing):
            self.calls.pop(call.number, None)
        if not isinstance(call, Gathered):
            self.finished.append(call)

    # what went wrong

    def refuse(self, handle: int, error: HiddenstateError) -> None:
        """What is unanswered of this session was refused, and will be tried again."""
        for run in self.waiting(handle):
            self.calls[run.call].refuse(handle, error)

    def lose(self, handle: int, runs: list[Run], last: int) -> None:
        """Steps up to `last` were applied and will never be answered."""
        for run in runs:
            lost = min(max(last + 1 - run.first, 0), run.count)
            if not lost:
                continue
            call = self.calls[run.call]
            final = run.first + lost - 1
            error = AnswersLost(
                f"the connection broke before the answers to steps {run.first} to {final} came; "
                "the session has them in its state and can be used on",
                reason="ANSWERS_LOST",
                metadata={"first": str(run.first), "last": str(final)},
            )
            call.fail(handle, error)
            run.first, run.start, run.count = run.first + lost, run.start + lost, run.count - lost
            self.finish(call, lost)
        self.runs.set(handle, runs)
        self.marks.step[handle] = max(int(self.marks.step[handle]), last)

    def fail_runs(self, handle: int, error: HiddenstateError) -> None:
        """Unanswered observations fail, and are not sent again."""
        runs = self.waiting(handle)
        if not runs:
            return
        for run in runs:
            call = self.calls[run.call]
            call.fail(handle, error)
            self.finish(call, run.count)
        self.runs.set(handle, [])
        self.retention.rewrite(handle)
        self.marks.next[handle] = runs[0].first

    def fail_sent(self, error: HiddenstateError) -> None:
        """Everything that was sent and is not answered fails; sessions that are open live on."""
        for handle in self.runs.busy():
            self.fail_runs(handle, error)
        for handle, asked, position in self.questions.take_all():
            self.fail_row(asked, handle, position, error)
        for generating in list(self.generations.values()):
            self.fail_row(generating, int(generating.handles[0]), 0, error)
        for session in list(self.sessions.values()):
            if not session.opened and session.handle not in self.unopened:
                self.end(session, error)

    def fail_row(self, call: Asking, handle: int, position: int, error: HiddenstateError) -> None:
        """One row of a question fails; to close what has ended is no failure."""
        if call.kind is not Kind.CLOSE:
            call.errors[handle] = error
        if isinstance(call, Forking):
            copy = call.copies[position]
            copy.opening = None
            self.end(copy, error)
        elif isinstance(call, Rewinding):
            self.targets.pop(handle, None)
        elif isinstance(call, Generating):
            self.generations.pop(call.number, None)
        self.finish(call, 1)

    def end(self, session: Session, error: HiddenstateError) -> None:
        """The session is over: everything that waits for it gets `error`."""
        handle = session.handle
        session.step, session.durable_step = int(self.marks.step[handle]), int(self.marks.durable[handle])
        session.rewinds = int(self.rewinds.count[handle])
        session.error = error
        if session.opening:
            session.opening.errors[handle] = error
            self.finish(session.opening, 1)
            session.opening = None
        self.fail_runs(handle, error)
        for _, asked, position in self.questions.take_all(handle):
            self.fail_row(asked, handle, position, error)
        for generating in self.generations_of(handle):
            self.fail_row(generating, handle, 0, error)
        self._drop_unsent(handle, error)
        del self.sessions[handle]
        self.unopened.pop(handle, None)
        self.targets.pop(handle, None)
        self.marks.gate[handle] = UNOPENED
        self.marks.next[handle] = 0  # nothing of it is kept
        self._free.append(handle)
        if self.on_end:
            self.on_end(handle)
        if session.on_end:
            session.on_end(error)

    def _drop_unsent(self, handle: int, error: HiddenstateError) -> None:
        for call in [call for call in self.outbox if (call.handles == handle).any()]:
            keep = call.handles != handle
            call.handles = call.handles[keep]
            if not keep.any():
                self.outbox.remove(call)
            if isinstance(call, Observing):
                call.fail(handle, error)
                rows = int(call.counts[~keep].sum())
                call.starts, call.counts = call.starts[keep], call.counts[keep]
                self.unsent -= rows
                self.finish(call, rows)
            else:
                positions, call.positions = call.positions[~keep], call.positions[keep]
                for position in positions.tolist():
                    self.fail_row(call, handle, position, error)

    # small parts

    def generations_of(self, handle: int) -> list[Generating]:
        """Continuations of this session that are under way."""
        return [call for call in self.generations.values() if call.handles[0] == handle]

    def waiting(self, handle: int) -> list[Run]:
        """What of this session is unanswered, oldest first."""
        return self.runs.of(handle, int(self.marks.step[handle]))


def _gathered(ones: list[One], inputs: list[Any]) -> Gathered:
    column = np.array(inputs)
    return Gathered(ones, column.astype(np.int32) if column.dtype.kind == "i" else column[:, None])
