"""The client's side of the wire contract, without input or output.

`Protocol` numbers observations, keeps what waits for an answer, builds the frames to send and takes the frames
that came. A shell moves the frames, wakes whoever waits for a finished `Call`, and says when a connection
begins or breaks; then every session is resumed, and what was not answered is sent again from the step the server
reports, so that nothing is applied twice.

State per session lives in arrays indexed by handle, so that a frame of thousands of rows costs a few array
operations. A call's rows for one session are a *run* of consecutive steps. The oldest unanswered run of each
session (its head) lies in the arrays; later ones, which are rare, wait in a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from hiddenstate.columns import Columns
from hiddenstate.errors import (
    AnswersLost,
    HiddenstateError,
    InvalidInput,
    ResourceExhausted,
    SessionClosed,
    SessionError,
    SessionLost,
    SessionNotFound,
    Unavailable,
    fresh,
    from_status,
)
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

MAX_FRAME_ROWS = 16_384
MAX_FRAME_BYTES = 2 * 1024 * 1024
MAX_SESSIONS = 65_536
_IDLE = 0
_REUSE_AFTER = 1024  # freed handles rest this long, since late answers to their last session may still come


class Kind(IntEnum):
    """What a call asks for."""

    OPEN = 1
    OBSERVE = 2
    PEEK = 3
    CLOSE = 4
    HEARTBEAT = 5


_BLOCKED = 255


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


@dataclass(slots=True)
class _Run:
    """Consecutive steps of one session in one call."""

    call: int
    first: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of an observe frame."""

    handles: Array
    steps: Array
    inputs: Array


class Protocol:
    """The state of one client's stream. Not thread-safe; every method returns at once."""

    def __init__(
        self,
        *,
        max_unanswered: int = 65_536,
        max_frame_rows: int = MAX_FRAME_ROWS,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.max_unanswered = max_unanswered
        self.max_frame_rows = max_frame_rows
        self.max_sessions = max_sessions
        self.unanswered = 0
        """Observations without an answer."""
        self.broken: HiddenstateError | None = None
        """Set where the two sides disagree about what was sent: the shell must begin a new connection."""
        self._sessions: dict[int, Session] = {}
        self._free: deque[int] = deque()
        self._handles = 0  # handles below were used before
        self._unopened: dict[int, float] = {}  # handle -> when to send its open
        self._stalled: dict[int, tuple[int, float]] = {}  # handle -> first step to send again, and when
        self._calls: dict[int, Observing] = {}
        self._numbers = _IDLE
        self._outbox: list[Observing | Asking] = []
        self._resends: list[_Rows] = []
        self._queues: dict[int, deque[_Run]] = {}
        self._asked: dict[Kind, dict[int, deque[tuple[Asking, int]]]] = {
            kind: {} for kind in (Kind.PEEK, Kind.CLOSE, Kind.HEARTBEAT)
        }
        self._finished: list[Call] = []
        # by handle
        self._sendable = np.zeros(0, bool)  # opened on this connection, and not stalled
        self._phase = np.zeros(0, np.uint8)  # kind taken in the current round
        self._step = np.zeros(0, np.int64)  # last step answered
        self._next = np.zeros(0, np.int64)  # next step to send
        self._call = np.zeros(0, np.int64)  # the head run: its call, or _IDLE
        self._first = np.zeros(0, np.int64)
        self._start = np.zeros(0, np.int64)
        self._count = np.zeros(0, np.int64)

    # asking

    def open(
        self,
        model: str,
        ids: Sequence[str],
        *,
        resume: bool = False,
        version: str = "",
        idle_timeout: float | None = None,
    ) -> tuple[Call, list[Session]]:
        """Opens one session per id (empty: the server makes one)."""
        if len(self._sessions) + len(ids) > self.max_sessions:
            raise ResourceExhausted(
                f"a client holds at most {self.max_sessions} sessions at once; close some or use another client",
                reason="CLIENT_SESSIONS",
            )
        sessions = [Session(self._take_handle(), model, version, id, resume, idle_timeout) for id in ids]
        call = Call(Kind.OPEN, np.array([session.handle for session in sessions], np.int64), len(sessions))
        for session in sessions:
            session.opening = call
            self._sessions[session.handle] = session
            self._unopened[session.handle] = 0.0
        return call, sessions

    def observe(self, session: Session, inputs: Array) -> Observing:
        """Feeds `inputs` (int32 [n] tokens or float64 [n, columns] values) to one session, in order."""
        self._require_live(session)
        count = len(inputs)
        return self._submit(Observing(np.array([session.handle]), np.array([0]), np.array([count]), inputs))

    def observe_rows(self, handles: Array, inputs: Array) -> tuple[Observing, Array | None]:
        """Feeds row i of `inputs` to the session with handle `handles[i]`; a session may stand in several rows.

        Returns the call and the order of its rows: row j of the answer is for input `order[j]` (None: unchanged).
        """
        n = len(handles)
        rows = np.arange(n)
        self._start[handles], kept = rows, self._start[handles]  # the last writer of each handle wins
        unique = bool((self._start[handles] == rows).all())
        self._start[handles] = kept
        if unique:
            return self._submit(Observing(handles, rows, np.ones(n, np.int64), inputs)), None
        order = np.argsort(handles, kind="stable")
        distinct, starts, counts = np.unique(handles[order], return_index=True, return_counts=True)
        return self._submit(Observing(distinct, starts, counts, inputs[order])), order

    def ask(self, kind: Kind, sessions: Iterable[Session]) -> Asking:
        """Peeks at, closes or renews the leases of sessions."""
        live = list(sessions)
        for session in live:
            self._require_live(session)
        call = Asking(kind, np.array([session.handle for session in live], np.int64))
        self._outbox.append(call)
        return call

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more: what was not sent will not be, what was is answered to nobody."""
        if call.kind is Kind.OPEN:
            self._abandon_opening(call)
        elif call in self._outbox:
            self._outbox.remove(call)
            if isinstance(call, Observing):
                self.unanswered -= call.rows

    def step(self, session: Session) -> int:
        """Observations in the session's state, as far as answered."""
        return session.step if session.error else int(self._step[session.handle])

    def session(self, handle: int) -> Session:
        """The live session with this handle."""
        return self._sessions[handle]

    @property
    def sessions(self) -> int:
        """Live sessions."""
        return len(self._sessions)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be sent or awaited."""
        waiting = any(queues for queues in self._asked.values())
        return not (self._outbox or self._unopened or self._calls or self._resends or waiting)

    # sending

    def frames(self, now: float) -> list[pb.StreamRequest]:
        """Everything that can be sent at time `now` (seconds of any clock), in order."""
        frames = self._open_frames(now)
        self._wake_stalled(now)
        resends, self._resends = self._resends, []
        frames += self._observe_frames(resends)
        while taken := self._next_round():
            frames += self._observe_frames([self._number(call) for call in taken if isinstance(call, Observing)])
            for kind in (Kind.PEEK, Kind.HEARTBEAT, Kind.CLOSE):
                frames += self._ask_frames(kind, [call for call in taken if call.kind is kind])  # type: ignore[misc]
        return frames

    @property
    def next_due(self) -> float | None:
        """When `frames` will have something to try again; None if nothing is put off."""
        dues = [*self._unopened.values(), *(due for _, due in self._stalled.values())]
        return min(dues, default=None)

    def _open_frames(self, now: float) -> list[pb.StreamRequest]:
        due = [self._sessions[handle] for handle, due in self._unopened.items() if due <= now]
        for session in due:
            del self._unopened[session.handle]
        frames = []
        for (model, version, resume, idle_timeout), group in groupby(
            due, key=lambda s: (s.model, s.version, s.resume, s.idle_timeout)
        ):
            sessions = list(group)
            for piece in (sessions[i : i + 4096] for i in range(0, len(sessions), 4096)):
                frame = pb.Open(
                    handles=np.array([session.handle for session in piece], "<u4").tobytes(),
                    model=model,
                    version=version,
                    mode=pb.OPEN_MODE_RESUME if resume else pb.OPEN_MODE_CREATE,
                    session_ids=[session.id for session in piece],
                )
                if idle_timeout is not None:
                    frame.idle_timeout.FromNanoseconds(round(idle_timeout * 1e9))
                frames.append(pb.StreamRequest(open=frame))
        return frames

    def _next_round(self) -> list[Observing | Asking]:
        """Takes the waiting calls whose sessions are ready, one kind per session, so that order is kept."""
        outbox, self._outbox = self._outbox, []
        taken: list[Observing | Asking] = []
        for call in outbox:
            handles = call.handles
            phase = self._phase[handles]
            if self._sendable[handles].all() and ((phase == 0) | (phase == call.kind)).all():
                self._phase[handles] = call.kind
                taken.append(call)
            else:
                self._phase[handles] = _BLOCKED
                self._outbox.append(call)
        for call in outbox:
            self._phase[call.handles] = 0
        return taken

    def _number(self, call: Observing) -> _Rows:
        """Gives the call's observations their steps and waits for their answers."""
        self._numbers += 1
        call.number = self._numbers
        self._calls[call.number] = call
        handles, counts = call.handles, call.counts
        first = self._next[handles]
        self._next[handles] += counts
        idle = self._call[handles] == _IDLE
        heads = handles[idle]
        self._call[heads] = call.number
        self._first[heads] = first[idle]
        self._start[heads] = call.starts[idle]
        self._count[heads] = counts[idle]
        for i in np.flatnonzero(~idle):
            run = _Run(call.number, int(first[i]), int(call.starts[i]), int(counts[i]))
            self._queues.setdefault(int(handles[i]), deque()).append(run)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(call.starts, counts) + within
        return _Rows(np.repeat(handles, counts), np.repeat(first, counts) + within, call.inputs[rows])

    def _observe_frames(self, parts: list[_Rows]) -> list[pb.StreamRequest]:
        by_shape: dict[tuple[int, ...], list[_Rows]] = {}
        for part in parts:
            by_shape.setdefault(part.inputs.shape[1:], []).append(part)
        frames = []
        for shape, group in by_shape.items():
            handles = np.concatenate([part.handles for part in group]).astype("<u4")
            steps = np.concatenate([part.steps for part in group]).astype("<u8")
            inputs = np.concatenate([part.inputs for part in group])
            row_bytes = 12 + (8 * shape[0] if shape else 4)
            length = max(1, min(self.max_frame_rows, MAX_FRAME_BYTES // row_bytes))
            for at in range(0, len(handles), length):
                piece = slice(at, at + length)
                frame = pb.Observe(handles=handles[piece].tobytes(), steps=steps[piece].tobytes())
                if shape:
                    frame.values = inputs[piece].astype("<f8").tobytes()
                else:
                    frame.tokens = inputs[piece].astype("<i4").tobytes()
                frames.append(pb.StreamRequest(observe=frame))
        return frames

    def _ask_frames(self, kind: Kind, calls: list[Asking]) -> list[pb.StreamRequest]:
        if not calls:
            return []
        asked = self._asked[kind]
        for call in calls:
            for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                asked.setdefault(handle, deque()).append((call, position))
        handles = np.concatenate([call.handles for call in calls]).astype("<u4")
        frames = []
        for at in range(0, len(handles), self.max_frame_rows):
            packed = handles[at : at + self.max_frame_rows].tobytes()
            if kind is Kind.PEEK:
                frames.append(pb.StreamRequest(peek=pb.Peek(handles=packed)))
            elif kind is Kind.CLOSE:
                frames.append(pb.StreamRequest(close=pb.Close(handles=packed)))
            else:
                frames.append(pb.StreamRequest(heartbeat=pb.Heartbeat(handles=packed)))
        return frames

    # receiving

    def receive(self, response: pb.StreamResponse, now: float) -> list[Call]:
        """Takes one frame from the server; returns the calls that it finished."""
        for opened in response.opened:
            self._on_opened(opened)
        for predictions in response.observed:
            self._on_observed(*Columns.parse(predictions))
        for predictions in response.peeked:
            handles, columns = Columns.parse(predictions)
            for row, handle in enumerate(handles.tolist()):
                self._answer(Kind.PEEK, handle, columns.take(slice(row, row + 1)))
        for handle in np.frombuffer(response.leases.handles, "<u4").tolist():
            self._answer(Kind.HEARTBEAT, handle)
        for handle in np.frombuffer(response.closed, "<u4").tolist():
            if session := self._sessions.get(handle):
                self._end(session, SessionClosed(f"session {session.id} is closed", reason="SESSION_CLOSED"))
        for fault in response.faults:
            self._on_fault(fault, now)
        return self.take_finished()

    def take_finished(self) -> list[Call]:
        """The calls that finished since this was last asked."""
        finished, self._finished = self._finished, []
        return finished

    def connection_lost(self) -> None:
        """The connection broke: every session is to be resumed on the next one."""
        self.broken = None
        self._sendable[:] = False
        self._stalled.clear()
        self._resends.clear()
        again: dict[int, Asking] = {}
        for asked in self._asked.values():
            for call, handle, position in [(c, h, p) for h, queue in asked.items() for c, p in queue]:
                if id(call) not in again:
                    again[id(call)] = call
                    call.handles, call.positions = np.empty(0, np.int64), np.empty(0, np.int64)
                call.handles = np.append(call.handles, handle)
                call.positions = np.append(call.positions, position)
            asked.clear()
        self._outbox[:0] = again.values()
        for handle in self._sessions:
            self._unopened[handle] = 0.0

    def fail(self, error: HiddenstateError) -> list[Call]:
        """Fails everything that waits, for instance since the server refuses this client; sessions live on."""
        for session in list(self._sessions.values()):
            if not session.opened:
                self._end(session, error)
        for handle in np.flatnonzero(self._call).tolist():
            self._fail_runs(handle, error)
        for asked in self._asked.values():
            for handle, queue in asked.items():
                for call, _ in queue:
                    call.errors[handle] = error
                    self._finish(call, 1)
            asked.clear()
        outbox, self._outbox = self._outbox, []
        for waiting in outbox:
            for handle in waiting.handles.tolist():
                waiting.errors[handle] = error
            self._finish(waiting, waiting.remaining)
        return self.take_finished()

    def _on_opened(self, opened: pb.Opened) -> None:
        handles = np.frombuffer(opened.handles, "<u4").tolist()
        steps = np.frombuffer(opened.steps, "<u8").tolist()
        for handle, id, step in zip(handles, opened.session_ids, steps, strict=True):
            session = self._sessions.get(handle)
            if session is None:
                continue
            session.id = id
            session.version = opened.version
            session.idle_timeout = _seconds(opened.idle_timeout)
            session.opened = session.resume = True
            self._sendable[handle] = True
            self._synchronise(session, step)
            if session.opening:
                self._finish(session.opening, 1)
                session.opening = None
            if session.abandoned:
                self.ask(Kind.CLOSE, [session])

    def _synchronise(self, session: Session, step: int) -> None:
        """The server holds the session at `step`: sends the rest again; answers to what it has may be lost."""
        handle = session.handle
        runs = self._runs(handle)
        if runs and runs[0].first > step + 1:
            self._end(session, SessionLost(f"session {session.id} went back to step {step} on the server"))
            return
        for run in runs:
            # the last result can be asked for again, older ones cannot
            if lost := min(max(step - run.first, 0), run.count):
                self._lose(handle, run, lost)
        runs = self._set_runs(handle, runs)
        self._step[handle] = step if not runs else runs[0].first - 1
        self._next[handle] = runs[-1].first + runs[-1].count if runs else step + 1
        if runs:
            self._resend(handle, runs[0].first)

    def _on_observed(self, handles: Array, columns: Columns) -> None:
        steps = columns.steps.astype(np.int64)
        rows = np.flatnonzero(handles < len(self._call))
        while rows.size:
            handle = handles[rows]
            offset = steps[rows] - self._first[handle]
            waited = self._call[handle] != _IDLE
            mine = waited & (offset >= 0) & (offset < self._count[handle])
            if not mine.any():
                return  # answers that nobody waits for, such as to an observation sent twice
            owners, at = handle[mine], offset[mine]
            self._deliver(self._call[owners], self._start[owners] + at, columns, rows[mine])
            self._step[owners] = steps[rows[mine]]
            done = owners[at == self._count[owners] - 1]
            self._call[done] = _IDLE
            if self._queues:
                for finished in done.tolist():
                    self._promote(finished)
            rows = rows[waited & (offset >= 0) & ~mine]

    def _deliver(self, numbers: Array, positions: Array, columns: Columns, rows: Array) -> None:
        """Gives rows of `columns` to the calls with these numbers."""
        if (numbers == numbers[0]).all():
            groups: list[Any] = [slice(None)]
        else:
            order = np.argsort(numbers, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        for group in groups:
            call = self._calls[int(numbers[group][0])]
            taken = rows[group]
            call.parts.append((positions[group], columns.take(taken)))
            self._finish(call, len(taken))

    def _answer(self, kind: Kind, handle: int, columns: Columns | None = None) -> None:
        queue = self._asked[kind].get(handle)
        if not queue:
            return
        call, position = queue.popleft()
        if not queue:
            del self._asked[kind][handle]
        if columns is not None:
            call.parts.append((np.array([position]), columns))
        self._finish(call, 1)

    def _on_fault(self, fault: pb.Fault, now: float) -> None:
        error = from_status(fault.status)
        if not fault.HasField("handle"):
            self._on_frame_refused(error)
            return
        session = self._sessions.get(fault.handle)
        if session is None:
            return
        again = error.retry_after is not None and isinstance(error, ResourceExhausted | Unavailable)
        if not self._sendable[fault.handle] and fault.handle not in self._stalled:
            self._on_open_refused(session, error, now + (error.retry_after or 0.0) if again else None)
        elif isinstance(error, SessionError):
            self._end(session, error)
        elif error.reason == "STEP_GAP":
            if fault.handle not in self._stalled:
                self._stall(session, int(error.metadata["expected"]), now)
        elif error.reason == "STEP_ALREADY_APPLIED":
            self._on_applied(session, fault.step, now)
        elif again and fault.step:
            self._refuse(fault.handle, error)
            self._stall(session, fault.step, now + (error.retry_after or 0.0))
        elif fault.step:
            self._reject(session, fault.step, error, now)
        else:
            self._fail_asked(fault.handle, error)

    def _on_open_refused(self, session: Session, error: HiddenstateError, due: float | None) -> None:
        if due is not None:
            if session.opening:
                session.opening.refused = error
            self._refuse(session.handle, error)
            self._unopened[session.handle] = due
            if error.reason == "SESSION_ELSEWHERE":
                self.broken = error  # only another connection may reach the worker that holds it
        elif session.opened and type(error) is SessionNotFound:
            self._end(session, SessionLost(str(error), reason=error.reason, metadata=error.metadata))
        else:
            self._end(session, error)

    def _on_frame_refused(self, error: HiddenstateError) -> None:
        """A whole frame was refused, and nothing says which: only a new connection makes both sides agree."""
        if error.retry_after is None:
            for handle in np.flatnonzero(self._call).tolist():
                self._fail_runs(handle, error)
        else:
            for handle in np.flatnonzero(self._call).tolist():
                self._refuse(handle, error)
        self.broken = error

    def _on_applied(self, session: Session, step: int, now: float) -> None:
        """A step sent again was applied long ago; if its answer was still awaited, it is lost."""
        runs = self._runs(session.handle)
        if runs and runs[0].first <= step < runs[0].first + runs[0].count:
            self._lose(session.handle, runs[0], step - runs[0].first + 1)
            self._set_runs(session.handle, runs)
            self._step[session.handle] = step
            self._stall(session, step + 1, now)  # answers to later steps may have come before this was known

    # what went wrong

    def _reject(self, session: Session, step: int, error: HiddenstateError, now: float) -> None:
        """The observation at `step` was refused for good: the rest of its call fails, later calls move up."""
        handle = session.handle
        runs = self._runs(handle)
        index = next((i for i, run in enumerate(runs) if run.first <= step < run.first + run.count), None)
        if index is None:
            return
        run, later = runs[index], runs[index + 1 :]
        dropped = run.first + run.count - step
        run.count -= dropped
        for moved in later:
            moved.first -= dropped
        self._set_runs(handle, runs)
        self._next[handle] -= dropped
        call = self._calls[run.call]
        call.errors[handle] = error
        self._finish(call, dropped)
        if later:
            self._stall(session, step, now)

    def _end(self, session: Session, error: HiddenstateError) -> None:
        """The session is over: everything that waits for it gets `error`."""
        handle = session.handle
        session.step = int(self._step[handle])
        session.error = error
        if session.opening:
            session.opening.errors[handle] = error
            self._finish(session.opening, 1)
            session.opening = None
        self._fail_runs(handle, error)
        self._fail_asked(handle, error, everything=True)
        self._drop_unsent(handle, error)
        del self._sessions[handle]
        self._unopened.pop(handle, None)
        self._stalled.pop(handle, None)
        self._sendable[handle] = False
        self._free.append(handle)
        if session.on_end:
            session.on_end(error)

    def _fail_runs(self, handle: int, error: HiddenstateError) -> None:
        for run in self._runs(handle):
            call = self._calls[run.call]
            call.errors[handle] = error
            self._finish(call, run.count)
        self._set_runs(handle, [])

    def _fail_asked(self, handle: int, error: HiddenstateError, *, everything: bool = False) -> None:
        """Fails the oldest question about a session, or every one; to close what has ended is no failure."""
        for kind, asked in self._asked.items():
            queue = asked.pop(handle, deque())
            while queue:
                call, _ = queue.popleft()
                if kind is not Kind.CLOSE:
                    call.errors[handle] = error
                self._finish(call, 1)
                if not everything:
                    if queue:
                        asked[handle] = queue
                    return

    def _drop_unsent(self, handle: int, error: HiddenstateError) -> None:
        for call in [call for call in self._outbox if (call.handles == handle).any()]:
            keep = call.handles != handle
            if call.kind is not Kind.CLOSE:
                call.errors[handle] = error
            call.handles = call.handles[keep]
            if isinstance(call, Observing):
                dropped = int(call.counts[~keep].sum())
                call.starts, call.counts = call.starts[keep], call.counts[keep]
            else:
                dropped = int((~keep).sum())
                call.positions = call.positions[keep]
            if not keep.any():
                self._outbox.remove(call)
            self._finish(call, dropped)

    def _lose(self, handle: int, run: _Run, lost: int) -> None:
        """The first `lost` rows of `run` were applied and will never be answered."""
        last = run.first + lost - 1
        call = self._calls[run.call]
        call.errors[handle] = AnswersLost(
            f"the connection broke before the answers to steps {run.first} to {last} came; "
            "the session has them in its state and can be used on",
            reason="ANSWERS_LOST",
            metadata={"first": str(run.first), "last": str(last)},
        )
        run.first, run.start, run.count = run.first + lost, run.start + lost, run.count - lost
        self._finish(call, lost)

    def _stall(self, session: Session, step: int, due: float) -> None:
        """Sends the session's observations from `step` on again when `due`; nothing else of it before."""
        runs = self._runs(session.handle)
        if not runs or not runs[0].first <= step < runs[-1].first + runs[-1].count:
            return  # a late word about what was answered or given up since
        if session.handle in self._stalled:
            step = min(step, self._stalled[session.handle][0])
        self._stalled[session.handle] = (step, due)
        self._sendable[session.handle] = False

    def _wake_stalled(self, now: float) -> None:
        for handle in [handle for handle, (_, due) in self._stalled.items() if due <= now]:
            step, _ = self._stalled.pop(handle)
            self._sendable[handle] = True
            self._resend(handle, step)

    def _resend(self, handle: int, step: int) -> None:
        for run in self._runs(handle):
            skip = max(0, step - run.first)
            if skip < run.count:
                steps = np.arange(run.first + skip, run.first + run.count)
                inputs = self._calls[run.call].inputs[run.start + skip : run.start + run.count]
                self._resends.append(_Rows(np.full(len(steps), handle), steps, inputs))

    def _refuse(self, handle: int, error: HiddenstateError) -> None:
        for run in self._runs(handle):
            self._calls[run.call].refused = error

    def _abandon_opening(self, call: Call) -> None:
        for handle in call.handles.tolist():
            session = self._sessions.get(handle)
            if session is None:
                continue
            if session.opened:
                self.ask(Kind.CLOSE, [session])
            elif handle in self._unopened:
                self._end(session, SessionClosed("the session was given up before it was opened"))
            else:
                session.abandoned = True

    # small parts

    def _submit(self, call: Observing) -> Observing:
        if call.rows == 0:
            raise InvalidInput("there is nothing to observe")
        if self.unanswered + call.rows > self.max_unanswered:
            raise ResourceExhausted(
                f"{self.unanswered} observations of this client wait for their answers, and it allows "
                f"{self.max_unanswered}; await some before sending {call.rows} more, or raise max_unanswered",
                reason="CLIENT_BACKLOG",
            )
        self.unanswered += call.rows
        self._outbox.append(call)
        return call

    def _finish(self, call: Call, rows: int) -> None:
        """`rows` more of the call are done."""
        call.remaining -= rows
        if call.remaining or not rows:
            return
        if isinstance(call, Observing):
            self.unanswered -= call.rows
            self._calls.pop(call.number, None)
        self._finished.append(call)

    def _runs(self, handle: int) -> list[_Run]:
        """What of the session's runs is unanswered, oldest first."""
        if self._call[handle] == _IDLE:
            return []
        first, count = int(self._first[handle]), int(self._count[handle])
        answered = max(0, int(self._step[handle]) + 1 - first)
        head = _Run(int(self._call[handle]), first + answered, int(self._start[handle]) + answered, count - answered)
        return [head, *self._queues.get(handle, ())]

    def _set_runs(self, handle: int, runs: list[_Run]) -> list[_Run]:
        """Keeps what is left of `runs`, and returns it."""
        left = [run for run in runs if run.count]
        self._call[handle] = _IDLE
        self._queues.pop(handle, None)
        if left:
            self._queues[handle] = deque(left)
            self._promote(handle)
        return left

    def _promote(self, handle: int) -> None:
        """Makes the oldest queued run the session's head."""
        queue = self._queues.get(handle)
        if not queue:
            return
        run = queue.popleft()
        if not queue:
            del self._queues[handle]
        self._call[handle] = run.call
        self._first[handle] = run.first
        self._start[handle] = run.start
        self._count[handle] = run.count

    def _require_live(self, session: Session) -> None:
        if session.error:
            raise fresh(session.error)

    def _take_handle(self) -> int:
        if len(self._free) > _REUSE_AFTER or (self._free and self._handles >= self.max_sessions):
            handle = self._free.popleft()
        else:
            handle = self._handles
            self._handles += 1
        if handle >= len(self._call):
            self._grow(max(64, 2 * len(self._call)))
        self._step[handle] = 0
        self._next[handle] = 1
        self._call[handle] = _IDLE
        return handle

    def _grow(self, size: int) -> None:
        for name in ("_sendable", "_phase", "_step", "_next", "_call", "_first", "_start", "_count"):
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
