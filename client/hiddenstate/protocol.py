"""The client's side of the wire contract, without input or output.

`Protocol` numbers observations, keeps what waits for an answer, builds the frames to send and takes the frames
that came. A shell moves the frames, wakes whoever waits for a finished `Call`, and says when a connection
begins or breaks; then every session is resumed, and exactly what the server lacks is sent again, so that nothing is
lost and nothing applied twice. For that, observations are kept until the server reports them durable.

State per session lies in arrays indexed by handle, so that a frame of thousands of rows costs a few array
operations. A call's rows for one session are a *run* of consecutive steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from hiddenstate.calls import (
    Asking,
    Call,
    Forking,
    Generating,
    Kind,
    Observing,
    Piece,
    Rewarming,
    Rewinding,
    Session,
    Wish,
)
from hiddenstate.columns import Columns
from hiddenstate.errors import (
    AnswersLost,
    HiddenstateError,
    InvalidInput,
    ResourceExhausted,
    RewindLimit,
    SessionClosed,
    SessionError,
    SessionExists,
    SessionLost,
    SessionNotFound,
    Unavailable,
    fresh,
    from_status,
)
from hiddenstate.frames import (
    MAX_FRAME_ROWS,
    Rows,
    ask_frames,
    fork_frame,
    generate_frame,
    observe_frames,
    open_frames,
    rewarm_frame,
    rewind_frame,
)
from hiddenstate.questions import Questions
from hiddenstate.resuming import Known, way_on
from hiddenstate.retention import Retention
from hiddenstate.rewinds import Rewinds
from hiddenstate.runs import IDLE, Run, Runs
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

_A = TypeVar("_A", bound=Asking)

MAX_SESSIONS = 65_536
_REUSE_AFTER = 1024  # freed handles rest this long, since late answers to their last session may still come
_BLOCKED = 255
_REPLAY_ROWS = 4096  # of a session at once: servers limit what waits in one
_REPLAY_WINDOW = 16_384  # of all sessions at once
_NEVER = np.iinfo(np.int64).max
_SETTLING = 0.1  # seconds: the server says two things about one session

# why nothing new is sent for a session
_UNOPENED, _STALLED, _HELD, _CATCHING_UP = 1, 2, 4, 8


@dataclass(slots=True)
class _Rewind:
    """A rewind that brings a session back to what the client knows, and is not asked for by anybody."""

    step: int
    number: int
    found: int
    """Where the server is before it."""
    due: float = 0.0


class Protocol:
    """The state of one client's stream. Not thread-safe; every method returns at once."""

    def __init__(
        self,
        *,
        max_unanswered: int = 65_536,
        max_retained: int = 1_048_576,
        max_frame_rows: int = MAX_FRAME_ROWS,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.max_unanswered = max_unanswered
        self.max_frame_rows = max_frame_rows
        self.max_sessions = max_sessions
        self.unanswered = 0
        """Observations without an answer."""
        self.replayed = 0
        """Observations that were sent again after a connection broke."""
        self.broken: HiddenstateError | None = None
        """Set where only a new connection helps: the two sides disagree, or the server sends its clients away."""
        self._sessions: dict[int, Session] = {}
        self._free: deque[int] = deque()
        self._handles = 0  # handles below were used before
        self._unopened: dict[int, float] = {}  # handle -> when to send its open
        self._stalled: dict[int, tuple[int, float]] = {}  # handle -> first step to send again, and when
        self._rewinding: dict[int, _Rewind] = {}  # by handle
        self._unsure: dict[int, _Rewind] = {}  # those whose answer was lost, if they arrived
        self._targets: dict[int, int] = {}  # handle -> where the rewind goes that is awaited
        self._replays: dict[int, tuple[int, int]] = {}  # handle -> last step sent again, and last step to send again
        self._calls: dict[int, Observing] = {}
        self._generations: dict[int, Generating] = {}
        self._cancelled: list[int] = []
        self._numbers = 0
        self._outbox: list[Observing | Asking] = []
        self._unsent = 0  # observations in the outbox
        self._runs = Runs()
        self._questions = Questions()
        self._rewinds = Rewinds()
        self._retention = Retention(max_retained, self._marks)
        self._finished: list[Call] = []
        # by handle
        self._gate = np.zeros(0, np.uint8)  # 0 where new things can be sent
        self._phase = np.zeros(0, np.uint8)  # kind taken in the current round
        self._step = np.zeros(0, np.int64)  # last step answered
        self._next = np.zeros(0, np.int64)  # next step to send
        self._seen = np.zeros(0, np.int64)  # last step answered on this connection, while there are replays
        self._durable = np.zeros(0, np.int64)  # last step that is safe in the server's store
        self._base = np.zeros(0, np.int64)  # later steps were sent by this client
        self._lasting = np.zeros(0, bool)  # whether the server ever makes anything safe
        self._scratch = np.zeros(0, np.int64)

    # asking

    def open(self, wish: Wish, ids: Sequence[str]) -> tuple[Call, list[Session]]:
        """Opens one session per id (empty: the server makes one)."""
        self._require_handles(len(ids))
        sessions = [Session(self._take_handle(), wish, id) for id in ids]
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
        """Peeks at, renews the leases of, exports or closes sessions."""
        live = list(sessions)
        for session in live:
            self._require_live(session)
        return self._put(Asking(kind, [session.handle for session in live]))

    def rewind(self, session: Session, count: int) -> Rewinding:
        """Takes the last `count` observations of a session back."""
        self._require_live(session)
        return self._put(Rewinding(session.handle, count))

    def fork(self, session: Session, count: int) -> Forking:
        """Makes copies of a session."""
        self._require_live(session)
        self._require_handles(count)
        wish = Wish(session.model, session.version, idle_timeout=session.idle_timeout, labels=session.wish.labels)
        copies = [Session(self._take_handle(), wish, source=session.handle) for _ in range(count)]
        call = self._put(Forking(session.handle, copies))
        for copy in copies:
            copy.opening = call
            self._sessions[copy.handle] = copy
        return call

    def rewarm(self, session: Session, version: str) -> Rewarming:
        """Moves a session to another version of its model (empty: the newest)."""
        self._require_live(session)
        return self._put(Rewarming(session.handle, version))

    def generate(self, call: Generating) -> None:
        """Starts a continuation."""
        self._require_live(self._sessions[int(call.handles[0])])
        self._numbers += 1
        call.number = self._numbers
        self._put(call)

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call` any more: what was not sent will not be, what was is answered to nobody."""
        if call.kind is Kind.OPEN:
            self._abandon_opening(call)
        elif isinstance(call, Generating) and call.number in self._generations:
            del self._generations[call.number]
            self._cancelled.append(call.number)
            self._release(Kind.GENERATE, int(call.handles[0]), 0)
        elif isinstance(call, Rewinding) and int(call.handles[0]) in self._targets:
            return  # it was sent, and may have been applied
        elif call in self._outbox:
            self._outbox.remove(call)
            if isinstance(call, Observing):
                self.unanswered -= call.rows
                self._unsent -= call.remaining
            elif isinstance(call, Forking):
                for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                    self._fail_row(call, handle, position, SessionClosed("the copy was given up"))
        elif isinstance(call, Forking):
            for copy in call.copies:
                copy.abandoned = True

    def step(self, session: Session) -> int:
        """Observations in the session's state, as far as answered."""
        return session.step if session.error else int(self._step[session.handle])

    def durable_step(self, session: Session) -> int:
        """Up to which step the session is known to be safe in the server's store; 0 where nothing is."""
        return session.durable_step if session.error else int(self._durable[session.handle])

    def rewinds(self, session: Session) -> int:
        """How many times the session was rewound."""
        return session.rewinds if session.error else int(self._rewinds.count[session.handle])

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
        waiting = self._outbox or self._unopened or self._calls or self._generations or self._cancelled
        return not (waiting or self._questions or self._rewinding or self._replays)

    def has_room(self, count: int) -> bool:
        """Whether `count` more observations can be kept until they are durable."""
        return self._retention.has_room(self._unsent + count)

    def unsafe(self) -> list[Session]:
        """Open sessions with observations that the server has, but was not heard to have stored."""
        lagging = np.flatnonzero(self._lasting & (self._durable < self._step))
        return [session for handle in lagging.tolist() if (session := self._sessions.get(handle)) and session.opened]

    # sending

    def frames(self, now: float) -> list[pb.StreamRequest]:
        """Everything that can be sent at time `now` (seconds of any clock), in order."""
        frames = [*open_frames(self._due_opens(now))]
        frames += [pb.StreamRequest(cancel_generate=pb.CancelGenerate(call=number)) for number in self._cancelled]
        self._cancelled.clear()
        frames += self._rewind_frames(now)
        self._wake_stalled(now)
        if self._replays:
            frames += observe_frames(self._replay(), self.max_frame_rows)
        while taken := self._next_round():
            rows = [self._number(call) for call in taken if isinstance(call, Observing)]
            frames += observe_frames(rows, self.max_frame_rows)
            frames += self._ask_frames([call for call in taken if isinstance(call, Asking)])
        return frames

    @property
    def next_due(self) -> float | None:
        """When `frames` will have something to try again; None if nothing is put off."""
        dues = [*self._unopened.values(), *(due for _, due in self._stalled.values())]
        dues += [rewind.due for rewind in self._rewinding.values() if rewind.due < _NEVER]
        return min(dues, default=None)

    def _due_opens(self, now: float) -> list[Session]:
        due = [self._sessions[handle] for handle, due in self._unopened.items() if due <= now]
        for session in due:
            del self._unopened[session.handle]
        return due

    def _rewind_frames(self, now: float) -> list[pb.StreamRequest]:
        """Rewinds that bring sessions back to what is known of them; each is sent once on a connection."""
        due = [(handle, rewind) for handle, rewind in self._rewinding.items() if rewind.due <= now]
        for _, rewind in due:
            rewind.due = _NEVER
        return [rewind_frame([(handle, rewind.step, rewind.number) for handle, rewind in due])] if due else []

    def _next_round(self) -> list[Observing | Asking]:
        """Takes the waiting calls whose sessions are ready, one kind per session, so that order is kept."""
        outbox, self._outbox = self._outbox, []
        taken: list[Observing | Asking] = []
        for call in outbox:
            handles = call.handles
            phase = self._phase[handles]
            alike = 0 if call.kind is Kind.REWIND else call.kind
            if self._ready(call) and ((phase == 0) | (phase == alike)).all():
                self._phase[handles] = call.kind
                taken.append(call)
            else:
                self._phase[handles] = _BLOCKED
                self._outbox.append(call)
        for call in outbox:
            self._phase[call.handles] = 0
        return taken

    def _ready(self, call: Observing | Asking) -> bool:
        gate = self._gate[call.handles]
        if call.kind is Kind.HEARTBEAT:
            return not (gate & ~np.uint8(_HELD)).any()
        if isinstance(call, Asking) and (self._runs.call[call.handles] != IDLE).any():
            return False  # an observation that is refused must not be overtaken
        return not gate.any()

    def _number(self, call: Observing) -> Rows:
        """Gives the call's observations their steps, keeps them, and waits for their answers."""
        self._numbers += 1
        call.number = self._numbers
        self._calls[call.number] = call
        handles, counts = call.handles, call.counts
        first = self._next[handles]
        self._next[handles] += counts
        self._runs.add(call.number, handles, first, call.starts, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(call.starts, counts) + within
        numbered = Rows(np.repeat(handles, counts), np.repeat(first, counts) + within, call.inputs[rows])
        self._unsent -= len(rows)
        self._retention.add(numbered)
        call.inputs = call.inputs[:0]
        return numbered

    def _ask_frames(self, calls: list[Asking]) -> list[pb.StreamRequest]:
        frames = []
        by_kind: dict[Kind, list[Asking]] = {}
        for call in calls:
            if call.kind is Kind.REWIND and not self._can_rewind(call):
                continue
            if call.kind is Kind.GENERATE and not self._can_generate(call):
                continue
            by_kind.setdefault(call.kind, []).append(call)
            for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                self._questions.add(handle, call, position)
            if call.kind is not Kind.HEARTBEAT:
                self._gate[call.handles] |= _HELD
        for kind, alike in by_kind.items():
            if kind is Kind.REWIND:
                frames.append(rewind_frame([self._target(call) for call in alike]))
            elif kind is Kind.FORK:
                frames += [fork_frame(call) for call in alike if isinstance(call, Forking)]
            elif kind is Kind.REWARM:
                frames += [rewarm_frame(call) for call in alike if isinstance(call, Rewarming)]
            elif kind is Kind.GENERATE:
                frames += [generate_frame(call) for call in alike if isinstance(call, Generating)]
            else:
                frames += ask_frames(kind, np.concatenate([call.handles for call in alike]), self.max_frame_rows)
        return frames

    # receiving

    def receive(self, response: pb.StreamResponse, now: float) -> list[Call]:
        """Takes one frame from the server; returns the calls that it finished, or brought a piece of."""
        for opened in response.opened:
            self._on_opened(opened)
        for predictions in response.observed:
            self._on_observed(predictions)
        for kind, answers in ((Kind.PEEK, response.peeked), (Kind.REWIND, response.rewound)):
            for predictions in answers:
                handles, columns = Columns.parse(predictions)
                self._note_durable(handles, predictions.durable_steps)
                for row, handle in enumerate(handles.tolist()):
                    self._on_prediction(kind, handle, columns.take(slice(row, row + 1)))
        if response.HasField("leases"):
            handles = np.frombuffer(response.leases.handles, "<u4")
            self._note_durable(handles, response.leases.durable_steps)
            for handle in handles.tolist():
                self._answer(Kind.HEARTBEAT, handle)
        for piece in response.generated:
            self._on_generated(piece)
        for exported in response.exported:
            self._on_exported(exported)
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
        self._gate[:] = _UNOPENED
        self._stalled.clear()
        self._unsure |= self._rewinding
        self._rewinding.clear()
        self._replays.clear()
        self._cancelled.clear()
        again: dict[int, Asking] = {}
        for handle, call, position in self._questions.take_all():
            if id(call) not in again:
                again[id(call)] = call
                call.handles, call.positions = np.empty(0, np.int64), np.empty(0, np.int64)
            call.withdraw(handle, position)
        for call in self._generations.values():
            call.handles, call.positions = call.handles[:1], call.positions[:1]
            again[id(call)] = call
        self._generations.clear()
        self._outbox[:0] = again.values()
        for handle, session in self._sessions.items():
            if session.source is not None and not session.opened:
                continue  # copies are asked for by their fork
            if not session.opened:
                session.asked |= handle not in self._unopened
                session.resume = session.wish.resume
            self._unopened[handle] = 0.0

    def fail(self, error: HiddenstateError) -> list[Call]:
        """Fails everything that waits, for instance since the server refuses this client; sessions live on."""
        for handle in self._runs.busy():
            self._fail_runs(handle, error)
        for handle, asked, position in self._questions.take_all():
            self._fail_row(asked, handle, position, error)
        for generating in list(self._generations.values()):
            self._fail_row(generating, int(generating.handles[0]), 0, error)
        outbox, self._outbox = self._outbox, []
        for waiting in outbox:
            if isinstance(waiting, Asking):
                for handle, position in zip(waiting.handles.tolist(), waiting.positions.tolist(), strict=True):
                    self._fail_row(waiting, handle, position, error)
            else:
                self._unsent -= waiting.remaining
                waiting.errors |= dict.fromkeys(waiting.handles.tolist(), error)
                self._finish(waiting, waiting.remaining)
        for session in list(self._sessions.values()):
            if not session.opened:
                self._end(session, error)
        return self.take_finished()

    # opening and resuming

    def _on_opened(self, opened: pb.Opened) -> None:
        handles = np.frombuffer(opened.handles, "<u4").tolist()
        steps = np.frombuffer(opened.steps, "<u8").tolist()
        rewinds = np.frombuffer(opened.rewinds, "<u4").tolist() or [0] * len(handles)
        for handle, id, step, count in zip(handles, opened.session_ids, steps, rewinds, strict=True):
            session = self._sessions.get(handle)
            if session is None:
                continue
            session.id = id
            session.model = opened.model
            session.version = opened.version
            session.idle_timeout = _seconds(opened.idle_timeout)
            session.rewind_limit = opened.rewind_limit
            session.resume = True
            self._lasting[handle] = opened.durability in (pb.DURABILITY_BEHIND, pb.DURABILITY_EVERY_STEP)
            if not self._gate[handle] & _UNOPENED:
                self._answer(Kind.REWARM, handle)
                continue
            self._gate[handle] = 0
            if session.opened:
                self._go_on(session, step, count)
            elif session.asked and step and not (session.wish.resume or session.wish.snapshot):
                self._end(session, SessionExists(f"session {id!r} is somebody else's", reason="SESSION_EXISTS"))
            else:
                self._begin(session, step, count)
        self._note_durable(np.frombuffer(opened.handles, "<u4"), opened.durable_steps)

    def _begin(self, session: Session, step: int, rewinds: int) -> None:
        """The session is open for the first time."""
        handle = session.handle
        session.opened = True
        session.wish.snapshot = b""
        self._base[handle] = self._step[handle] = self._seen[handle] = step
        self._next[handle] = step + 1
        self._rewinds.begin(handle, rewinds)
        if session.opening and session.source is None:
            self._finish(session.opening, 1)
        elif isinstance(session.opening, Forking) and session.source is not None:
            self._answer(Kind.FORK, session.source, position=session.opening.copies.index(session))
        session.opening = None
        if session.abandoned:
            self.ask(Kind.CLOSE, [session])

    def _go_on(self, session: Session, step: int, rewinds: int) -> None:
        """The server holds the session at `step` after `rewinds`: sends it what it lacks."""
        handle = session.handle
        unsure = self._unsure.pop(handle, None)
        if unsure is not None and rewinds == unsure.number > self._rewinds.count[handle]:
            self._rewound(handle, unsure.step, unsure.number)
        runs = self._waiting(handle)
        sent = int(self._next[handle]) - 1
        target = self._targets.get(handle)
        known = Known(
            rewinds=int(self._rewinds.count[handle]),
            answered=runs[0].first - 1 if runs else sent,
            sent=sent,
            kept=int(self._kept(handle)),
            target=target,
            rewind_limit=session.rewind_limit,
        )
        way = way_on(known, step, rewinds, self._rewinds.lowest(handle, rewinds, step))
        if way is None:
            self._end(session, SessionLost(f"session {session.id} went back to step {step} on the server"))
            return
        if way.lost:
            self._lose(handle, runs, way.lost)
        if step > sent and target is None:
            self._base[handle] = self._step[handle] = step
            self._next[handle] = step + 1
        self._seen[handle] = way.step
        if way.rewind is not None:
            self._rewinding[handle] = _Rewind(way.step, way.rewind, found=step)
            self._gate[handle] |= _CATCHING_UP
        else:
            self._catch_up(handle, way.step)

    def _catch_up(self, handle: int, step: int) -> None:
        """The server has the session's observations up to `step`: sends it the later ones again."""
        last = self._targets.get(handle, int(self._next[handle]) - 1)
        if step < last:
            self._replays[handle] = (step, last)
            self._gate[handle] |= _CATCHING_UP
        else:
            self._gate[handle] &= ~np.uint8(_CATCHING_UP)

    def _replay(self) -> list[Rows]:
        """What is to be sent again now; pieces, so that they do not fill the server's queues."""
        first, final = np.full(len(self._next), _NEVER), np.zeros(len(self._next), np.int64)
        window = _REPLAY_WINDOW - sum(max(0, sent - int(self._seen[h])) for h, (sent, _) in self._replays.items())
        for handle, (sent, last) in list(self._replays.items()):
            if self._seen[handle] < sent:
                continue  # answers are on their way
            if sent == last:
                del self._replays[handle]
                continue
            if window <= 0:
                break
            end = min(last, sent + min(window, _REPLAY_ROWS))
            first[handle], final[handle] = sent + 1, end
            self._replays[handle] = (end, last)
            self.replayed += end - sent
            window -= end - sent
            if end == last:
                self._gate[handle] &= ~np.uint8(_CATCHING_UP)
        return self._retention.rows(first, final)

    # answers

    def _note_durable(self, handles: Array, packed: bytes) -> None:
        """For answers that may come out of order with rewinds."""
        if not packed:
            return
        known = handles < len(self._next)
        rows = handles[known]
        steps = np.minimum(np.frombuffer(packed, "<u8").astype(np.int64)[known], self._next[rows] - 1)
        self._durable[rows] = np.maximum(self._durable[rows], steps)

    def _on_observed(self, predictions: pb.Predictions) -> None:
        numbers, columns = Columns.parse(predictions)
        rows = np.flatnonzero(numbers < len(self._step))
        handles, steps = numbers[rows].astype(np.int64), columns.steps[rows].astype(np.int64)
        if predictions.durable_steps:
            self._durable[handles] = np.frombuffer(predictions.durable_steps, "<i8")[rows]
        if self._replays:
            self._seen[handles] = np.maximum(self._seen[handles], steps)
        while rows.size:
            mine, calls, positions, later = self._runs.match(handles, steps, self._step[handles])
            if not mine.any():
                return  # answers that nobody waits for, such as to an observation sent twice
            self._deliver(calls, positions, columns, rows[mine])
            self._step[handles[mine]] = steps[mine]
            rows, handles, steps = rows[later], handles[later], steps[later]

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

    def _on_prediction(self, kind: Kind, handle: int, columns: Columns) -> None:
        if kind is Kind.REWIND and handle in self._rewinding:
            rewind = self._rewinding.pop(handle)
            self._rewound(handle, rewind.step, rewind.number)
            self._catch_up(handle, rewind.step)
            return
        if kind is Kind.REWIND and handle in self._targets:
            step = self._targets.pop(handle)
            self._retention.rewrite(handle)
            self._step[handle] = step
            self._next[handle] = step + 1
            self._rewound(handle, step, int(self._rewinds.count[handle]) + 1)
        self._answer(kind, handle, columns)

    def _rewound(self, handle: int, step: int, number: int) -> None:
        """The server has taken the session back to `step`."""
        for marks in (self._durable, self._base):
            marks[handle] = min(marks[handle], step)
        self._seen[handle] = step
        self._rewinds.note(handle, number, step, safe=self._kept(handle))

    def _on_generated(self, message: pb.Generated) -> None:
        call = self._generations.get(message.call)
        if call is None:
            return  # given up
        if self._questions.first(Kind.GENERATE, message.handle) == (call, 0):
            self._release(Kind.GENERATE, message.handle)  # it has its own state from here on
        piece = Piece(
            np.frombuffer(message.tokens, "<i4"),
            np.frombuffer(message.probabilities, "<f4"),
            np.frombuffer(message.values, "<f8").reshape(-1, *call.shape),
        )
        known = min(call.skip, len(piece))
        call.skip -= known
        if fresh_steps := len(piece) - known:
            call.pieces.append(piece.after(known))
            call.received += fresh_steps
            self._finished.append(call)
        if message.done:
            del self._generations[call.number]
            self._finish(call, 1)

    def _on_exported(self, exported: pb.Exported) -> None:
        entry = self._questions.first(Kind.EXPORT, exported.handle)
        if entry is not None:
            entry[0].snapshots[exported.handle] = exported.snapshot
            self._answer(Kind.EXPORT, exported.handle)

    def _answer(self, kind: Kind, handle: int, columns: Columns | None = None, *, position: int | None = None) -> None:
        """The oldest question of this kind (or the one with this row) is answered."""
        entry = self._release(kind, handle, position)
        if entry is None:
            return
        call, row = entry
        if columns is not None:
            call.parts.append((np.array([row]), columns))
        self._finish(call, 1)

    def _release(self, kind: Kind, handle: int, position: int | None = None) -> tuple[Asking, int] | None:
        """Such a question is not asked any more, so that it no longer holds its session."""
        entry = self._questions.take(kind, handle, position)
        if entry is not None and not self._questions.holds(handle):
            self._gate[handle] &= ~np.uint8(_HELD)
        return entry

    # refusals

    def _on_fault(self, fault: pb.Fault, now: float) -> None:
        error = from_status(fault.status)
        if error.reason == "DRAINING":
            self.broken = error
            return
        if not fault.HasField("handle"):
            self._on_frame_refused(error)
            return
        handle = fault.handle
        session = self._sessions.get(handle)
        if session is None:
            return
        again = error.retry_after is not None and isinstance(error, ResourceExhausted | Unavailable)
        due = now + (error.retry_after or 0.0)
        if session.source is not None and not session.opened:
            self._on_fork_refused(session, error, due if again else None)
        elif self._gate[handle] & _UNOPENED:
            self._on_open_refused(session, error, due if again else None, now)
        elif isinstance(error, SessionError):
            self._end(session, error)
        elif error.reason == "STEP_GAP":
            if handle not in self._stalled:
                self._stall(session, int(error.metadata["expected"]), now)
        elif error.reason == "STEP_ALREADY_APPLIED":
            self._on_applied(session, fault.step, now)
        elif fault.step and again:
            self._refuse(handle, error)
            self._stall(session, fault.step, due)
        elif fault.step:
            self._reject(session, fault.step, error, now)
        elif handle in self._rewinding:
            self._on_rewind_refused(session, error, due if again else None)
        elif fault.HasField("call"):
            self._on_generation_refused(handle, fault.call, error, due if again else None)
        elif (entry := self._questions.oldest(handle)) is not None:
            self._on_question_refused(handle, *entry, error, due if again else None)

    def _on_open_refused(self, session: Session, error: HiddenstateError, due: float | None, now: float) -> None:
        handle = session.handle
        if due is not None:
            if session.opening:
                session.opening.refused = error
            self._refuse(handle, error)
            self._unopened[handle] = due
            if error.reason == "SESSION_ELSEWHERE":
                self.broken = error  # only another connection may reach the worker that holds it
        elif session.opened and type(error) is SessionNotFound and self._kept(handle) == 0:
            session.resume = False  # it was never stored; everything since its first step is sent again
            self._unopened[handle] = 0.0
        elif session.opened and not session.resume and isinstance(error, SessionExists):
            session.resume = True
            self._unopened[handle] = now + _SETTLING
        elif session.asked and not session.resume and isinstance(error, SessionExists):
            session.resume = True  # it was made, and the answer lost with the connection
            self._unopened[handle] = 0.0
        elif session.opened and type(error) is SessionNotFound:
            self._end(session, SessionLost(str(error), reason=error.reason, metadata=error.metadata))
        else:
            self._end(session, error)

    def _on_fork_refused(self, copy: Session, error: HiddenstateError, due: float | None) -> None:
        call = copy.opening
        if isinstance(call, Forking) and copy.source is not None:
            entry = call, call.copies.index(copy)
            self._on_question_refused(copy.source, *entry, error, due)

    def _on_question_refused(
        self, handle: int, call: Asking, position: int, error: HiddenstateError, due: float | None
    ) -> None:
        if self._release(call.kind, handle, position) is None:
            return
        if due is None:
            self._fail_row(call, handle, position, error)
            return
        call.refused = error
        if call not in self._outbox:
            call.handles, call.positions = np.empty(0, np.int64), np.empty(0, np.int64)
            self._outbox.insert(0, call)
        call.withdraw(handle, position)
        self._stalled[handle] = (_NEVER, due)
        self._gate[handle] |= _STALLED

    def _on_generation_refused(self, handle: int, number: int, error: HiddenstateError, due: float | None) -> None:
        call = self._generations.pop(number, None)
        if call is None:
            return
        if self._questions.first(Kind.GENERATE, handle) == (call, 0):
            self._on_question_refused(handle, call, 0, error, due)
        else:
            self._fail_row(call, handle, 0, error)

    def _on_rewind_refused(self, session: Session, error: HiddenstateError, due: float | None) -> None:
        """The server cannot be brought back to what is known of the session."""
        handle = session.handle
        rewind = self._rewinding[handle]
        if due is not None:
            rewind.due = due
            return
        del self._rewinding[handle]
        if rewind.number > self._rewinds.count[handle]:  # it was only for the sake of answers
            self._lose(handle, self._waiting(handle), rewind.found - 1)
            self._seen[handle] = rewind.found - 1
            self._catch_up(handle, rewind.found - 1)
        else:
            self._end(session, SessionLost(f"session {session.id} cannot go on: {error}", reason=error.reason))

    def _on_frame_refused(self, error: HiddenstateError) -> None:
        """A whole frame was refused, and nothing says which: only a new connection makes both sides agree."""
        for handle in self._runs.busy():
            if error.retry_after is None:
                self._fail_runs(handle, error)
            else:
                self._refuse(handle, error)
        self.broken = error

    def _on_applied(self, session: Session, step: int, now: float) -> None:
        """A step sent again was applied long ago; if its answer was still awaited, it is lost."""
        runs = self._waiting(session.handle)
        if runs and runs[0].first <= step < runs[0].first + runs[0].count:
            self._lose(session.handle, runs, step)
            self._stall(session, step + 1, now)  # answers to later steps may have come before this was known

    def _reject(self, session: Session, step: int, error: HiddenstateError, now: float) -> None:
        """The observation at `step` was refused for good: the rest of its call fails, later calls move up."""
        handle = session.handle
        if handle in self._replays and self._seen[handle] < step <= self._step[handle]:  # it was taken before
            self._end(session, SessionLost(f"session {session.id} cannot go on: {error}", reason=error.reason))
            return
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
        self._retention.remove(handle, step, dropped)
        self._next[handle] -= dropped
        call = self._calls[run.call]
        call.errors[handle] = error
        self._finish(call, dropped)
        if later:
            self._stall(session, step, now)

    def _lose(self, handle: int, runs: list[Run], last: int) -> None:
        """Steps up to `last` were applied and will never be answered."""
        for run in runs:
            lost = min(max(last + 1 - run.first, 0), run.count)
            if not lost:
                continue
            call = self._calls[run.call]
            final = run.first + lost - 1
            call.errors[handle] = AnswersLost(
                f"the connection broke before the answers to steps {run.first} to {final} came; "
                "the session has them in its state and can be used on",
                reason="ANSWERS_LOST",
                metadata={"first": str(run.first), "last": str(final)},
            )
            run.first, run.start, run.count = run.first + lost, run.start + lost, run.count - lost
            self._finish(call, lost)
        self._runs.set(handle, runs)
        self._step[handle] = max(int(self._step[handle]), last)

    def _stall(self, session: Session, step: int, due: float) -> None:
        """Sends the session's observations from `step` on again when `due`; nothing else of it before."""
        handle = session.handle
        answered = self._seen[handle] if handle in self._replays else self._step[handle]
        if not answered < step < self._next[handle]:
            return  # a late word about what was answered or given up since
        if handle in self._stalled:
            step = min(step, self._stalled[handle][0])
        self._stalled[handle] = (step, due)
        self._replays.pop(handle, None)
        self._gate[handle] |= _STALLED

    def _wake_stalled(self, now: float) -> None:
        for handle in [handle for handle, (_, due) in self._stalled.items() if due <= now]:
            step, _ = self._stalled.pop(handle)
            self._gate[handle] &= ~np.uint8(_STALLED)
            if step < _NEVER:
                self._seen[handle] = step - 1
                self._catch_up(handle, step - 1)

    def _refuse(self, handle: int, error: HiddenstateError) -> None:
        for run in self._waiting(handle):
            self._calls[run.call].refused = error

    # endings

    def _end(self, session: Session, error: HiddenstateError) -> None:
        """The session is over: everything that waits for it gets `error`."""
        handle = session.handle
        session.step, session.durable_step = int(self._step[handle]), int(self._durable[handle])
        session.rewinds = int(self._rewinds.count[handle])
        session.error = error
        if session.opening:
            session.opening.errors[handle] = error
            self._finish(session.opening, 1)
            session.opening = None
        self._fail_runs(handle, error)
        for _, asked, position in self._questions.take_all(handle):
            self._fail_row(asked, handle, position, error)
        for generating in self._generations_of(handle):
            self._fail_row(generating, handle, 0, error)
        self._drop_unsent(handle, error)
        del self._sessions[handle]
        for waiting in (self._unopened, self._stalled, self._rewinding, self._unsure, self._replays, self._targets):
            waiting.pop(handle, None)
        self._gate[handle] = _UNOPENED
        self._next[handle] = 0  # nothing of it is kept
        self._free.append(handle)
        if session.on_end:
            session.on_end(error)

    def _fail_runs(self, handle: int, error: HiddenstateError) -> None:
        """Unanswered observations fail, and are not sent again."""
        runs = self._waiting(handle)
        if not runs:
            return
        for run in runs:
            call = self._calls[run.call]
            call.errors[handle] = error
            self._finish(call, run.count)
        self._runs.set(handle, [])
        self._retention.rewrite(handle)
        self._next[handle] = runs[0].first

    def _fail_row(self, call: Asking, handle: int, position: int, error: HiddenstateError) -> None:
        """One row of a question fails; to close what has ended is no failure."""
        if call.kind is not Kind.CLOSE:
            call.errors[handle] = error
        if isinstance(call, Forking):
            copy = call.copies[position]
            copy.opening = None
            self._end(copy, error)
        elif isinstance(call, Rewinding):
            self._targets.pop(handle, None)
        elif isinstance(call, Generating):
            self._generations.pop(call.number, None)
        self._finish(call, 1)

    def _drop_unsent(self, handle: int, error: HiddenstateError) -> None:
        for call in [call for call in self._outbox if (call.handles == handle).any()]:
            keep = call.handles != handle
            call.handles = call.handles[keep]
            if not keep.any():
                self._outbox.remove(call)
            if isinstance(call, Observing):
                call.errors[handle] = error
                rows = int(call.counts[~keep].sum())
                call.starts, call.counts = call.starts[keep], call.counts[keep]
                self._unsent -= rows
                self._finish(call, rows)
            else:
                positions, call.positions = call.positions[~keep], call.positions[keep]
                for position in positions.tolist():
                    self._fail_row(call, handle, position, error)

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
        if not self.has_room(call.rows):
            raise ResourceExhausted(
                f"this client keeps {self._retention.limit} observations that the server has not stored yet, and "
                "takes no more: the server's store lags or fails (its log says which); try again later, or raise "
                "max_retained",
                reason="CLIENT_RETAINED",
            )
        self.unanswered += call.rows
        self._unsent += call.rows
        self._outbox.append(call)
        return call

    def _put(self, call: _A) -> _A:
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

    def _target(self, call: Asking) -> tuple[int, int, int]:
        """Handle, step and number of a rewind."""
        handle = int(call.handles[0])
        return handle, self._targets[handle], int(self._rewinds.count[handle]) + 1

    def _can_rewind(self, call: Asking) -> bool:
        assert isinstance(call, Rewinding)
        handle = int(call.handles[0])
        step = int(self._next[handle]) - 1
        if call.count > step:
            problem = f"the session holds {step} observations, so {call.count} cannot be taken back"
            self._fail_row(call, handle, 0, RewindLimit(problem, reason="REWIND_LIMIT", metadata={"oldest": "0"}))
            return False
        self._targets[handle] = step - call.count
        return True

    def _can_generate(self, call: Asking) -> bool:
        assert isinstance(call, Generating)
        handle = int(call.handles[0])
        place = (int(self._rewinds.count[handle]), int(self._next[handle]) - 1)
        if call.place not in (None, place):
            problem = "the connection broke while this was generated, and the session has moved on since"
            self._fail_row(call, handle, 0, AnswersLost(problem, reason="ANSWERS_LOST"))
            return False
        call.place = place
        call.skip = call.received
        self._generations[call.number] = call
        return True

    def _generations_of(self, handle: int) -> list[Generating]:
        return [call for call in self._generations.values() if call.handles[0] == handle]

    def _waiting(self, handle: int) -> list[Run]:
        return self._runs.of(handle, int(self._step[handle]))

    def _kept(self, handle: int) -> int:
        """Up to this step nothing of the session is kept."""
        answered = int(self._step[handle])
        safe = min(int(self._durable[handle]), answered) if self._lasting[handle] else answered
        return max(int(self._base[handle]), safe)

    def _marks(self) -> tuple[Array, Array]:
        """As `_kept`, and the next steps, by handle."""
        safe = np.where(self._lasting, np.minimum(self._durable, self._step), self._step)
        return np.maximum(self._base, safe), self._next

    def _require_live(self, session: Session) -> None:
        if session.error:
            raise fresh(session.error)

    def _require_handles(self, count: int) -> None:
        if len(self._sessions) + count > self.max_sessions:
            raise ResourceExhausted(
                f"a client holds at most {self.max_sessions} sessions at once; close some or use another client",
                reason="CLIENT_SESSIONS",
            )

    def _take_handle(self) -> int:
        if len(self._free) > _REUSE_AFTER or (self._free and self._handles >= self.max_sessions):
            handle = self._free.popleft()
            self._retention.rewrite(handle)
        else:
            handle = self._handles
            self._handles += 1
        if handle >= len(self._step):
            self._grow(max(64, 2 * len(self._step)))
        for marks in (self._step, self._seen, self._durable, self._base):
            marks[handle] = 0
        self._next[handle] = 1
        self._gate[handle] = _UNOPENED
        self._lasting[handle] = False
        self._rewinds.begin(handle, 0)
        return handle

    def _grow(self, size: int) -> None:
        names = ("_gate", "_phase", "_step", "_next", "_seen", "_durable", "_base", "_lasting", "_scratch")
        for name in names:
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        self._runs.grow(size)
        self._rewinds.grow(size)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
