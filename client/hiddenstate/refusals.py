"""What the server refuses: what fails, what is tried again, and what only a new connection mends."""

from __future__ import annotations

import numpy as np

from hiddenstate.calls import Asking, Forking, Kind, Session
from hiddenstate.errors import (
    HiddenstateError,
    ResourceExhausted,
    SessionError,
    SessionExists,
    SessionLost,
    SessionNotFound,
    Unavailable,
    from_status,
)
from hiddenstate.ledger import Ledger
from hiddenstate.marks import UNOPENED
from hiddenstate.recovery import Recovery
from hiddenstate_proto import hiddenstate_pb2 as pb

_SETTLING = 0.1  # seconds: the server says two things about one session


class Refusals:
    """Decides what becomes of what was refused."""

    def __init__(self, ledger: Ledger, recovery: Recovery) -> None:
        self.broken: HiddenstateError | None = None
        """Set where only a new connection helps: the two sides disagree, or the server sends its clients away."""
        self._ledger = ledger
        self._marks = ledger.marks
        self._recovery = recovery

    def on_fault(self, fault: pb.Fault, now: float) -> None:
        """Takes one."""
        error = from_status(fault.status)
        if error.reason == "DRAINING":
            self.broken = error
            return
        if not fault.HasField("handle"):
            self._on_frame_refused(error)
            return
        handle = fault.handle
        session = self._ledger.sessions.get(handle)
        if session is None:
            return
        again = error.retry_after is not None and isinstance(error, ResourceExhausted | Unavailable)
        due = now + (error.retry_after or 0.0)
        if session.source is not None and not session.opened:
            self._on_fork_refused(session, error, due if again else None)
        elif self._marks.gate[handle] & UNOPENED:
            self._on_open_refused(session, error, due if again else None, now)
        elif isinstance(error, SessionError):
            self._ledger.end(session, error)
        elif error.reason == "STEP_GAP":
            if not self._recovery.stalls(handle):
                self._recovery.stall(session, int(error.metadata["expected"]), now)
        elif error.reason == "STEP_ALREADY_APPLIED":
            self._on_applied(session, fault.step, now)
        elif fault.step and again:
            self._ledger.refuse(handle, error)
            self._recovery.stall(session, fault.step, due)
        elif fault.step:
            self._reject(session, fault.step, error, now)
        elif self._recovery.rewinding(handle):
            self._recovery.on_refused(session, error, due if again else None)
        elif fault.HasField("call"):
            self._on_generation_refused(handle, fault.call, error, due if again else None)
        elif (entry := self._ledger.questions.oldest(handle)) is not None:
            self._on_question_refused(handle, *entry, error, due if again else None)

    def _on_open_refused(self, session: Session, error: HiddenstateError, due: float | None, now: float) -> None:
        handle = session.handle
        if due is not None:
            if session.opening:
                session.opening.refused = error
            self._ledger.refuse(handle, error)
            self._ledger.unopened[handle] = due
            if error.reason == "SESSION_ELSEWHERE":
                self.broken = error  # only another connection may reach the worker that holds it
        elif session.opened and type(error) is SessionNotFound and self._marks.kept(handle) == 0:
            session.resume = False  # it was never stored; everything since its first step is sent again
            self._ledger.unopened[handle] = 0.0
        elif session.opened and not session.resume and isinstance(error, SessionExists):
            session.resume = True
            self._ledger.unopened[handle] = now + _SETTLING
        elif session.asked and not session.resume and isinstance(error, SessionExists):
            session.resume = True  # it was made, and the answer lost with the connection
            self._ledger.unopened[handle] = 0.0
        elif session.opened and type(error) is SessionNotFound:
            self._ledger.end(session, SessionLost(str(error), reason=error.reason, metadata=error.metadata))
        else:
            self._ledger.end(session, error)

    def _on_fork_refused(self, copy: Session, error: HiddenstateError, due: float | None) -> None:
        call = copy.opening
        if isinstance(call, Forking) and copy.source is not None:
            entry = call, call.copies.index(copy)
            self._on_question_refused(copy.source, *entry, error, due)

    def _on_question_refused(
        self, handle: int, call: Asking, position: int, error: HiddenstateError, due: float | None
    ) -> None:
        if self._ledger.release(call.kind, handle, position) is None:
            return
        if due is None:
            self._ledger.fail_row(call, handle, position, error)
            return
        call.refused = error
        if call not in self._ledger.outbox:
            call.handles, call.positions = np.empty(0, np.int64), np.empty(0, np.int64)
            self._ledger.outbox.insert(0, call)
        call.withdraw(handle, position)
        self._recovery.put_off(handle, due)

    def _on_generation_refused(self, handle: int, number: int, error: HiddenstateError, due: float | None) -> None:
        call = self._ledger.generations.pop(number, None)
        if call is None:
            return
        if self._ledger.questions.first(Kind.GENERATE, handle) == (call, 0):
            self._on_question_refused(handle, call, 0, error, due)
        else:
            self._ledger.fail_row(call, handle, 0, error)

    def _on_frame_refused(self, error: HiddenstateError) -> None:
        """A whole frame was refused, and nothing says which: only a new connection makes both sides agree."""
        if error.retry_after is None:
            self._ledger.fail_sent(error)  # sent again, it would be refused again
        else:
            for handle in self._ledger.runs.busy():
                self._ledger.refuse(handle, error)
        self.broken = error

    def _on_applied(self, session: Session, step: int, now: float) -> None:
        """A step sent again was applied long ago; if its answer was still awaited, it is lost."""
        runs = self._ledger.waiting(session.handle)
        if runs and runs[0].first <= step < runs[0].first + runs[0].count:
            self._ledger.lose(session.handle, runs, step)
            self._recovery.stall(session, step + 1, now)  # answers to later steps may have come before this was known

    def _reject(self, session: Session, step: int, error: HiddenstateError, now: float) -> None:
        """The observation at `step` was refused for good: the rest of its call fails, later calls move up."""
        handle = session.handle
        if self._recovery.taken_before(handle, step):
            self._ledger.end(session, SessionLost(f"session {session.id} cannot go on: {error}", reason=error.reason))
            return
        runs = self._ledger.waiting(handle)
        index = next((i for i, run in enumerate(runs) if run.first <= step < run.first + run.count), None)
        if index is None:
            return
        run, later = runs[index], runs[index + 1 :]
        dropped = run.first + run.count - step
        run.count -= dropped
        for moved in later:
            moved.first -= dropped
        self._ledger.runs.set(handle, runs)
        self._ledger.retention.remove(handle, step, dropped)
        self._marks.next[handle] -= dropped
        call = self._ledger.calls[run.call]
        call.fail(handle, error)
        self._ledger.finish(call, dropped)
        if later:
            self._recovery.stall(session, step, now)
