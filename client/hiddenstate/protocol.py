"""The client's side of the wire contract, without input or output.

`Protocol` numbers observations, keeps what waits for an answer, builds the frames to send and takes the frames
that came. A shell moves the frames, wakes whoever waits for a finished `Call`, and says when a connection
begins or breaks; then every session is resumed, and exactly what the server lacks is sent again, so that nothing is
lost and nothing applied twice. For that, observations are kept until the server reports them durable.

State per session lies in arrays indexed by handle, so that a frame of thousands of rows costs a few array
operations. A call's rows for one session are a *run* of consecutive steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
    One,
    Piece,
    Rewarming,
    Rewinding,
    Session,
    Waited,
    Wish,
)
from hiddenstate.columns import Columns
from hiddenstate.errors import (
    HiddenstateError,
    InvalidInput,
    ResourceExhausted,
    SessionClosed,
    SessionExists,
    fresh,
)
from hiddenstate.frames import MAX_FRAME_ROWS, cancel_frame, open_frames
from hiddenstate.ledger import Ledger
from hiddenstate.marks import MOVED, UNOPENED
from hiddenstate.recovery import Recovery
from hiddenstate.refusals import Refusals
from hiddenstate.sender import Sender
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

MAX_SESSIONS = 65_536


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
        self._ledger = Ledger(max_sessions, max_retained)
        self._marks = self._ledger.marks
        self._sender = Sender(self._ledger)
        self._recovery = Recovery(self._ledger)
        self._refusals = Refusals(self._ledger, self._recovery)
        self.on_moved: Callable[[Session], None] = self.follow
        """Told of sessions that turn out to be in another version; answers with `follow`."""
        self._found: dict[int, tuple[int, int]] = {}
        """Step and rewinds of sessions that were resumed in another version, by handle."""

    # asking

    def open(self, wish: Wish, ids: Sequence[str]) -> tuple[Call, list[Session]]:
        """Opens one session per id (empty: the server makes one)."""
        self._ledger.require_place(len(ids))
        sessions = [self._ledger.add(wish, id) for id in ids]
        call = Call(Kind.OPEN, np.array([session.handle for session in sessions], np.int64), len(sessions))
        for session in sessions:
            session.opening = call
            self._ledger.unopened[session.handle] = 0.0
        return call, sessions

    def observe(self, session: Session, inputs: Array) -> Observing:
        """Feeds `inputs` (int32 [n] tokens or float64 [n, columns] values) to one session, in order."""
        self._require_live(session)
        count = len(inputs)
        return self._submit(Observing(np.array([session.handle]), np.array([0]), np.array([count]), inputs))

    def observe_one(self, session: Session, value: float) -> One:
        """Feeds one token (int) or one value (float) to a session, in a frame with those of other sessions."""
        self._require_live(session)
        self._require_room(1)
        return self._ledger.gather(session.handle, value)

    def observe_rows(self, handles: Array, inputs: Array) -> tuple[Observing, Array | None]:
        """Feeds row i of `inputs` to the session with handle `handles[i]`; a session may stand in several rows.

        Returns the call and the order of its rows: row j of the answer is for input `order[j]` (None: unchanged).
        """
        n = len(handles)
        rows = np.arange(n)
        self._marks.scratch[handles] = rows  # the last writer of each handle wins
        if (self._marks.scratch[handles] == rows).all():
            return self._submit(Observing(handles, rows, np.ones(n, np.int64), inputs)), None
        order = np.argsort(handles, kind="stable")
        distinct, starts, counts = np.unique(handles[order], return_index=True, return_counts=True)
        return self._submit(Observing(distinct, starts, counts, inputs[order])), order

    def ask(self, kind: Kind, sessions: Iterable[Session]) -> Asking:
        """Peeks at, renews the leases of, exports or closes sessions."""
        live = list(sessions)
        for session in live:
            self._require_live(session)
        return self._ledger.put(Asking(kind, [session.handle for session in live]))

    def rewind(self, session: Session, count: int) -> Rewinding:
        """Takes the last `count` observations of a session back."""
        self._require_live(session)
        return self._ledger.put(Rewinding(session.handle, count))

    def fork(self, session: Session, count: int) -> Forking:
        """Makes copies of a session."""
        self._require_live(session)
        self._ledger.require_place(count)
        wish = Wish(session.model, session.version, idle_timeout=session.idle_timeout, labels=session.wish.labels)
        copies = [self._ledger.add(wish, source=session.handle) for _ in range(count)]
        call = self._ledger.put(Forking(session.handle, copies))
        for copy in copies:
            copy.opening = call
        return call

    def rewarm(self, session: Session, version: str) -> Rewarming:
        """Moves a session to another version of its model (empty: the newest)."""
        self._require_live(session)
        return self._ledger.put(Rewarming(session.handle, version))

    def generate(self, call: Generating) -> None:
        """Starts a continuation."""
        self._require_live(self._ledger.sessions[int(call.handles[0])])
        call.number = self._ledger.number()
        self._ledger.put(call)

    def follow(self, session: Session, error: HiddenstateError | None = None) -> None:
        """Goes on with a session in the version it was found in, or ends it where its observations would be misread."""
        if session.error:
            return
        if error is not None:
            self._ledger.end(session, error)
            return
        session.coded = session.version
        self._marks.open(session.handle, MOVED)
        if session.handle in self._found:
            self._recovery.go_on(session, *self._found.pop(session.handle))

    def abandon(self, call: Call | One) -> None:
        """Nobody waits for `call` any more: what was not sent will not be, what was is answered to nobody."""
        if isinstance(call, One):
            self._ledger.withdraw(call)
        elif call.kind is Kind.OPEN:
            self._abandon_opening(call)
        elif isinstance(call, Generating) and call.number in self._ledger.generations:
            del self._ledger.generations[call.number]
            self._ledger.cancelled.append(call.number)
            self._ledger.release(Kind.GENERATE, int(call.handles[0]), 0)
        elif isinstance(call, Rewinding) and int(call.handles[0]) in self._ledger.targets:
            return  # it was sent, and may have been applied
        elif call in self._ledger.outbox:
            self._ledger.outbox.remove(call)
            if isinstance(call, Observing):
                self._ledger.unanswered -= call.remaining
                self._ledger.unsent -= call.remaining
            elif isinstance(call, Forking):
                for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                    self._ledger.fail_row(call, handle, position, SessionClosed("the copy was given up"))
        elif isinstance(call, Forking):
            for copy in call.copies:
                copy.abandoned = True

    def step(self, session: Session) -> int:
        """Observations in the session's state, as far as answered."""
        return session.step if session.error else int(self._marks.step[session.handle])

    def durable_step(self, session: Session) -> int:
        """Up to which step the session is known to be safe in the server's store; 0 where nothing is."""
        return session.durable_step if session.error else int(self._marks.durable[session.handle])

    def rewinds(self, session: Session) -> int:
        """How many times the session was rewound."""
        return session.rewinds if session.error else int(self._ledger.rewinds.count[session.handle])

    def session(self, handle: int) -> Session:
        """The live session with this handle."""
        return self._ledger.sessions[handle]

    @property
    def unanswered(self) -> int:
        """Observations without an answer."""
        return self._ledger.unanswered

    @property
    def replayed(self) -> int:
        """Observations that were sent again."""
        return self._recovery.replayed

    @property
    def broken(self) -> HiddenstateError | None:
        """Set where only a new connection helps: the two sides disagree, or the server sends its clients away."""
        return self._refusals.broken

    @property
    def sessions(self) -> int:
        """Live sessions."""
        return len(self._ledger.sessions)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be sent or awaited."""
        return not (self._ledger.busy or self._recovery.busy)

    def has_room(self, count: int) -> bool:
        """Whether `count` more observations can be kept until they are durable."""
        return self._ledger.retention.has_room(self._ledger.unsent + count)

    def unsafe(self) -> list[Session]:
        """Open sessions with observations that the server has, but was not heard to have stored."""
        lagging = np.flatnonzero(self._marks.lasting & (self._marks.durable < self._marks.step))
        return [
            session for handle in lagging.tolist() if (session := self._ledger.sessions.get(handle)) and session.opened
        ]

    # sending

    def frames(self, now: float) -> list[pb.StreamRequest]:
        """Everything that can be sent at time `now` (seconds of any clock), in order."""
        frames = [*open_frames(self._due_opens(now))]
        frames += map(cancel_frame, self._ledger.cancelled)
        self._ledger.cancelled.clear()
        frames += self._recovery.frames(now, self.max_frame_rows)
        frames += self._sender.frames(self.max_frame_rows)
        return frames

    @property
    def next_due(self) -> float | None:
        """When `frames` will have something to try again; None if nothing is put off."""
        return min([*self._ledger.unopened.values(), *self._recovery.dues()], default=None)

    def _due_opens(self, now: float) -> list[Session]:
        due = [self._ledger.sessions[handle] for handle, due in self._ledger.unopened.items() if due <= now]
        for session in due:
            del self._ledger.unopened[session.handle]
        return due

    # receiving

    def receive(self, response: pb.StreamResponse, now: float) -> list[Waited]:
        """Takes one frame from the server; returns what it finished, or brought a piece of."""
        for opened in response.opened:
            self._on_opened(opened)
        for predictions in response.observed:
            self._on_observed(predictions)
        for kind, answers in ((Kind.PEEK, response.peeked), (Kind.REWIND, response.rewound)):
            for predictions in answers:
                handles, columns = Columns.parse(predictions)
                self._marks.note_durable(handles, predictions.durable_steps)
                for row, handle in enumerate(handles.tolist()):
                    self._on_prediction(kind, handle, columns.take(slice(row, row + 1)))
        if response.HasField("leases"):
            handles = np.frombuffer(response.leases.handles, "<u4")
            self._marks.note_durable(handles, response.leases.durable_steps)
            for handle in handles.tolist():
                self._ledger.answer(Kind.HEARTBEAT, handle)
        for piece in response.generated:
            self._on_generated(piece)
        for exported in response.exported:
            self._on_exported(exported)
        for handle in np.frombuffer(response.closed, "<u4").tolist():
            if session := self._ledger.sessions.get(handle):
                self._ledger.end(session, SessionClosed(f"session {session.id} is closed", reason="SESSION_CLOSED"))
        for fault in response.faults:
            self._refusals.on_fault(fault, now)
        return self.take_finished()

    def take_finished(self) -> list[Waited]:
        """What finished since this was last asked."""
        finished, self._ledger.finished = self._ledger.finished, []
        return finished

    def connection_lost(self) -> None:
        """The connection broke: every session is to be resumed on the next one."""
        self._refusals.broken = None
        self._found.clear()
        self._marks.gate[:] = UNOPENED
        self._recovery.connection_lost()
        self._ledger.cancelled.clear()
        again: dict[int, Asking] = {}
        for handle, call, position in self._ledger.questions.take_all():
            if id(call) not in again:
                again[id(call)] = call
                call.handles, call.positions = np.empty(0, np.int64), np.empty(0, np.int64)
            call.withdraw(handle, position)
        for call in self._ledger.generations.values():
            call.handles, call.positions = call.handles[:1], call.positions[:1]
            again[id(call)] = call
        self._ledger.generations.clear()
        self._ledger.outbox[:0] = again.values()
        for handle, session in self._ledger.sessions.items():
            if session.source is not None and not session.opened:
                continue  # copies are asked for by their fork
            if not session.opened:
                session.asked |= handle not in self._ledger.unopened
                session.resume = session.wish.resume
            self._ledger.unopened[handle] = 0.0

    def fail(self, error: HiddenstateError) -> list[Waited]:
        """Fails everything that waits, for instance since the server refuses this client; sessions live on."""
        self._ledger.fail_sent(error)
        outbox, self._ledger.outbox = self._ledger.outbox, []
        for waiting in outbox:
            if isinstance(waiting, Asking):
                for handle, position in zip(waiting.handles.tolist(), waiting.positions.tolist(), strict=True):
                    self._ledger.fail_row(waiting, handle, position, error)
            else:
                self._ledger.unsent -= waiting.remaining
                for handle in waiting.handles.tolist():
                    waiting.fail(handle, error)
                self._ledger.finish(waiting, waiting.remaining)
        for session in list(self._ledger.sessions.values()):
            if not session.opened:
                self._ledger.end(session, error)
        return self.take_finished()

    # answers

    def _on_opened(self, opened: pb.Opened) -> None:
        handles = np.frombuffer(opened.handles, "<u4").tolist()
        steps = np.frombuffer(opened.steps, "<u8").tolist()
        rewinds = np.frombuffer(opened.rewinds, "<u4").tolist() or [0] * len(handles)
        for handle, id, step, count in zip(handles, opened.session_ids, steps, rewinds, strict=True):
            session = self._ledger.sessions.get(handle)
            if session is None:
                continue
            session.id = id
            session.model = opened.model
            session.version = opened.version
            session.idle_timeout = _seconds(opened.idle_timeout)
            session.rewind_limit = opened.rewind_limit
            session.resume = True
            self._marks.lasting[handle] = opened.durability in (pb.DURABILITY_BEHIND, pb.DURABILITY_EVERY_STEP)
            if not self._marks.gate[handle] & UNOPENED:
                self._on_moved(session)
                continue
            self._marks.gate[handle] = 0
            if session.opened and session.coded != session.version and not self._rewarming(handle):
                # What waits may be written in another vocabulary than the one it would be read in.
                self._marks.close(handle, MOVED)
                self._found[handle] = (step, count)
                self.on_moved(session)
            elif session.opened:
                self._recovery.go_on(session, step, count)
            elif session.asked and step and not (session.wish.resume or session.wish.snapshot):
                self._ledger.end(session, SessionExists(f"session {id!r} is somebody else's", reason="SESSION_EXISTS"))
            else:
                self._begin(session, step, count)
        self._marks.note_durable(np.frombuffer(opened.handles, "<u4"), opened.durable_steps)
        for handle in filter(self._recovery.rewinding, handles):
            # What else the store has was taken back: those steps are to be replayed with other observations.
            self._marks.durable[handle] = min(self._marks.durable[handle], self._marks.seen[handle])

    def _begin(self, session: Session, step: int, rewinds: int) -> None:
        """The session is open for the first time."""
        handle = session.handle
        session.opened = True
        session.coded = session.version
        session.wish.snapshot = b""
        self._marks.base[handle] = self._marks.step[handle] = self._marks.seen[handle] = step
        self._marks.next[handle] = step + 1
        self._ledger.rewinds.begin(handle, rewinds)
        if session.opening and session.source is None:
            self._ledger.finish(session.opening, 1)
        elif isinstance(session.opening, Forking) and session.source is not None:
            self._ledger.answer(Kind.FORK, session.source, position=session.opening.copies.index(session))
        session.opening = None
        if session.abandoned:
            self.ask(Kind.CLOSE, [session])

    def _on_moved(self, session: Session) -> None:
        """An open session is in another version: a rewarm is done, or the server moved it by itself."""
        question = self._ledger.questions.first(Kind.REWARM, session.handle)
        if question is None:
            self.on_moved(session)
            return
        call, _ = question
        if isinstance(call, Rewarming) and call.version in ("", session.version):
            session.coded = session.version
            self._ledger.answer(Kind.REWARM, session.handle)

    def _rewarming(self, handle: int) -> bool:
        """Whether a move is asked for, which is answered once more."""
        return any(call.kind is Kind.REWARM and handle in call.handles for call in self._ledger.outbox)

    def _on_observed(self, predictions: pb.Predictions) -> None:
        numbers, columns = Columns.parse(predictions)
        rows = np.flatnonzero(numbers < len(self._marks))
        handles, steps = numbers[rows].astype(np.int64), columns.steps[rows].astype(np.int64)
        if predictions.durable_steps:
            self._marks.durable[handles] = np.frombuffer(predictions.durable_steps, "<i8")[rows]
        self._recovery.saw(handles, steps)
        while rows.size:
            mine, calls, positions, later = self._ledger.runs.match(handles, steps, self._marks.step[handles])
            if not mine.any():
                return  # answers that nobody waits for, such as to an observation sent twice
            self._ledger.deliver(calls, positions, columns, rows[mine])
            self._marks.step[handles[mine]] = steps[mine]
            rows, handles, steps = rows[later], handles[later], steps[later]

    def _on_prediction(self, kind: Kind, handle: int, columns: Columns) -> None:
        if kind is Kind.REWIND and self._recovery.rewinding(handle):
            self._recovery.on_rewound(handle)
            return
        if kind is Kind.REWIND and handle in self._ledger.targets:
            step = self._ledger.targets.pop(handle)
            self._ledger.retention.rewrite(handle)
            self._marks.step[handle] = step
            self._marks.next[handle] = step + 1
            self._recovery.rewound(handle, step, int(self._ledger.rewinds.count[handle]) + 1)
        self._ledger.answer(kind, handle, columns)

    def _on_generated(self, message: pb.Generated) -> None:
        call = self._ledger.generations.get(message.call)
        if call is None:
            return  # given up
        if self._ledger.questions.first(Kind.GENERATE, message.handle) == (call, 0):
            self._ledger.release(Kind.GENERATE, message.handle)  # it has its own state from here on
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
            self._ledger.finished.append(call)
        if message.done:
            del self._ledger.generations[call.number]
            self._ledger.finish(call, 1)

    def _on_exported(self, exported: pb.Exported) -> None:
        entry = self._ledger.questions.first(Kind.EXPORT, exported.handle)
        if entry is not None:
            entry[0].snapshots[exported.handle] = exported.snapshot
            self._ledger.answer(Kind.EXPORT, exported.handle)

    # small parts

    def _abandon_opening(self, call: Call) -> None:
        for handle in call.handles.tolist():
            session = self._ledger.sessions.get(handle)
            if session is None:
                continue
            if session.opened:
                self.ask(Kind.CLOSE, [session])
            elif handle in self._ledger.unopened:
                self._ledger.end(session, SessionClosed("the session was given up before it was opened"))
            else:
                session.abandoned = True

    def _submit(self, call: Observing) -> Observing:
        if call.rows == 0:
            raise InvalidInput("there is nothing to observe")
        self._require_room(call.rows)
        self._ledger.unanswered += call.rows
        self._ledger.unsent += call.rows
        self._ledger.outbox.append(call)
        return call

    def _require_room(self, count: int) -> None:
        if self._ledger.unanswered + count > self.max_unanswered:
            raise ResourceExhausted(
                f"{self._ledger.unanswered} observations of this client wait for their answers, and it allows "
                f"{self.max_unanswered}; await some before sending {count} more, or raise max_unanswered",
                reason="CLIENT_BACKLOG",
            )
        if not self.has_room(count):
            raise ResourceExhausted(
                f"this client keeps {self._ledger.retention.limit} observations that the server has not stored yet, "
                "and takes no more: the server's store lags or fails (its log says which); try again later, or "
                "raise max_retained",
                reason="CLIENT_RETAINED",
            )

    def _require_live(self, session: Session) -> None:
        if session.error:
            raise fresh(session.error)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
