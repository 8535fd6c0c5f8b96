"""The client's side of the wire contract, without input or output.

`Protocol` numbers observations, keeps what waits for an answer, builds the frames to send and takes the frames
that came. A shell moves the frames, wakes whoever waits for a finished `Call`, and says when a connection
begins or breaks; then every session is resumed, and what was not answered is sent again from the step the server
reports, so that nothing is applied twice.

State per session lies in arrays indexed by handle, so that a frame of thousands of rows costs a few array
operations. A call's rows for one session are a *run* of consecutive steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from hiddenstate.calls import Asking, Call, Kind, Observing, Session
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
from hiddenstate.frames import MAX_FRAME_ROWS, Rows, ask_frames, observe_frames, open_frames
from hiddenstate.runs import Run, Runs
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

MAX_SESSIONS = 65_536
_REUSE_AFTER = 1024  # freed handles rest this long, since late answers to their last session may still come
_BLOCKED = 255


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
        self._numbers = 0
        self._outbox: list[Observing | Asking] = []
        self._resends: list[Rows] = []
        self._runs = Runs()
        self._asked: dict[Kind, dict[int, deque[tuple[Asking, int]]]] = {
            kind: {} for kind in (Kind.PEEK, Kind.CLOSE, Kind.HEARTBEAT)
        }
        self._finished: list[Call] = []
        # by handle
        self._sendable = np.zeros(0, bool)  # opened on this connection, and not stalled
        self._phase = np.zeros(0, np.uint8)  # kind taken in the current round
        self._step = np.zeros(0, np.int64)  # last step answered
        self._next = np.zeros(0, np.int64)  # next step to send
        self._scratch = np.zeros(0, np.int64)

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
        self._scratch[handles] = rows  # the last writer of each handle wins
        if (self._scratch[handles] == rows).all():
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
        frames = [*open_frames(self._due_opens(now))]
        self._wake_stalled(now)
        resends, self._resends = self._resends, []
        frames += observe_frames(resends, self.max_frame_rows)
        while taken := self._next_round():
            rows = [self._number(call) for call in taken if isinstance(call, Observing)]
            frames += observe_frames(rows, self.max_frame_rows)
            for kind in (Kind.PEEK, Kind.HEARTBEAT, Kind.CLOSE):
                asked = [call for call in taken if isinstance(call, Asking) and call.kind is kind]
                frames += self._ask_frames(kind, asked)
        return frames

    @property
    def next_due(self) -> float | None:
        """When `frames` will have something to try again; None if nothing is put off."""
        dues = [*self._unopened.values(), *(due for _, due in self._stalled.values())]
        return min(dues, default=None)

    def _due_opens(self, now: float) -> list[Session]:
        due = [self._sessions[handle] for handle, due in self._unopened.items() if due <= now]
        for session in due:
            del self._unopened[session.handle]
        return due

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

    def _number(self, call: Observing) -> Rows:
        """Gives the call's observations their steps and waits for their answers."""
        self._numbers += 1
        call.number = self._numbers
        self._calls[call.number] = call
        handles, counts = call.handles, call.counts
        first = self._next[handles]
        self._next[handles] += counts
        self._runs.add(call.number, handles, first, call.starts, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(call.starts, counts) + within
        return Rows(np.repeat(handles, counts), np.repeat(first, counts) + within, call.inputs[rows])

    def _ask_frames(self, kind: Kind, calls: list[Asking]) -> list[pb.StreamRequest]:
        if not calls:
            return []
        asked = self._asked[kind]
        for call in calls:
            for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                asked.setdefault(handle, deque()).append((call, position))
        handles = np.concatenate([call.handles for call in calls])
        return [*ask_frames(kind, handles, self.max_frame_rows)]

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
        for handle in self._runs.busy():
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
        runs = self._waiting(handle)
        if runs and runs[0].first > step + 1:
            self._end(session, SessionLost(f"session {session.id} went back to step {step} on the server"))
            return
        for run in runs:
            # the last result can be asked for again, older ones cannot
            if lost := min(max(step - run.first, 0), run.count):
                self._lose(handle, run, lost)
        runs = self._runs.set(handle, runs)
        self._step[handle] = step if not runs else runs[0].first - 1
        self._next[handle] = runs[-1].first + runs[-1].count if runs else step + 1
        if runs:
            self._resend(handle, runs[0].first)

    def _on_observed(self, handles: Array, columns: Columns) -> None:
        steps = columns.steps.astype(np.int64)
        rows = np.flatnonzero(handles < len(self._step))
        while rows.size:
            mine, calls, positions, later = self._runs.match(handles[rows], steps[rows])
            if not mine.any():
                return  # answers that nobody waits for, such as to an observation sent twice
            self._deliver(calls, positions, columns, rows[mine])
            self._step[handles[rows[mine]]] = steps[rows[mine]]
            rows = rows[later]

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
            for handle in self._runs.busy():
                self._fail_runs(handle, error)
        else:
            for handle in self._runs.busy():
                self._refuse(handle, error)
        self.broken = error

    def _on_applied(self, session: Session, step: int, now: float) -> None:
        """A step sent again was applied long ago; if its answer was still awaited, it is lost."""
        runs = self._waiting(session.handle)
        if runs and runs[0].first <= step < runs[0].first + runs[0].count:
            self._lose(session.handle, runs[0], step - runs[0].first + 1)
            self._runs.set(session.handle, runs)
            self._step[session.handle] = step
            self._stall(session, step + 1, now)  # answers to later steps may have come before this was known

    # what went wrong

    def _reject(self, session: Session, step: int, error: HiddenstateError, now: float) -> None:
        """The observation at `step` was refused for good: the rest of its call fails, later calls move up."""
        handle = session.handle
        runs = self._waiting(handle)
        index = next((i for i, run in enumerate(runs) if run.first <= step < run.first + run.count), None)
        if index is None:
            return
        run, later = runs[index], runs[index + 1 :]
        dropped = run.first + run.count - step
        run.count -= dropped
        for moved in later:
            moved.first -= dropped
        self._runs.set(handle, runs)
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
        for run in self._waiting(handle):
            call = self._calls[run.call]
            call.errors[handle] = error
            self._finish(call, run.count)
        self._runs.set(handle, [])

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

    def _lose(self, handle: int, run: Run, lost: int) -> None:
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
        runs = self._waiting(session.handle)
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
        for run in self._waiting(handle):
            skip = max(0, step - run.first)
            if skip < run.count:
                steps = np.arange(run.first + skip, run.first + run.count)
                inputs = self._calls[run.call].inputs[run.start + skip : run.start + run.count]
                self._resends.append(Rows(np.full(len(steps), handle), steps, inputs))

    def _refuse(self, handle: int, error: HiddenstateError) -> None:
        for run in self._waiting(handle):
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

    def _waiting(self, handle: int) -> list[Run]:
        return self._runs.of(handle, int(self._step[handle]))

    def _require_live(self, session: Session) -> None:
        if session.error:
            raise fresh(session.error)

    def _take_handle(self) -> int:
        if len(self._free) > _REUSE_AFTER or (self._free and self._handles >= self.max_sessions):
            handle = self._free.popleft()
        else:
            handle = self._handles
            self._handles += 1
        if handle >= len(self._step):
            self._grow(max(64, 2 * len(self._step)))
        self._step[handle] = 0
        self._next[handle] = 1
        return handle

    def _grow(self, size: int) -> None:
        for name in ("_sendable", "_phase", "_step", "_next", "_scratch"):
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        self._runs.grow(size)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
