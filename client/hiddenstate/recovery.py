"""Bringing a server back to what the client knows of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import Session
from hiddenstate.errors import HiddenstateError, SessionLost
from hiddenstate.frames import Rows, observe_frames, rewind_frame
from hiddenstate.ledger import Ledger
from hiddenstate.marks import CATCHING_UP, STALLED
from hiddenstate.resuming import Known, way_on
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

_REPLAY_ROWS = 4096  # of a session at once: servers limit what waits in one
_REPLAY_WINDOW = 16_384  # of all sessions at once
_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True)
class _Rewind:
    """A rewind that brings a session back to what the client knows, and is not asked for by anybody."""

    step: int
    number: int
    found: int
    """Where the server is before it."""
    due: float = 0.0


class Recovery:
    """Rewinds and replays where a server is behind or ahead, and sends again what was refused for now."""

    def __init__(self, ledger: Ledger) -> None:
        self.replayed = 0
        """Observations that were sent again."""
        self._ledger = ledger
        self._marks = ledger.marks
        self._rewinding: dict[int, _Rewind] = {}  # by handle
        self._unsure: dict[int, _Rewind] = {}  # those whose answer a broken connection may have lost
        self._stalled: dict[int, tuple[int, float]] = {}  # handle -> first step to send again, and when
        self._replays: dict[int, tuple[int, int]] = {}  # handle -> last step sent again, and last step to send again
        ledger.on_end = self._forget

    @property
    def busy(self) -> bool:
        """Whether something is to be brought back."""
        return bool(self._rewinding or self._replays)

    def dues(self) -> list[float]:
        """When things that were put off are to be tried again."""
        dues = [due for _, due in self._stalled.values()]
        return dues + [rewind.due for rewind in self._rewinding.values() if rewind.due < _NEVER]

    def connection_lost(self) -> None:
        """Everything begins anew with the next connection."""
        self._stalled.clear()
        self._unsure |= self._rewinding
        self._rewinding.clear()
        self._replays.clear()

    def frames(self, now: float, most_rows: int) -> list[pb.StreamRequest]:
        """What is to be sent now, before anything new."""
        frames = self._rewind_frames(now)
        self._wake_stalled(now)
        if self._replays:
            frames += observe_frames(self._replay(), most_rows)
        return frames

    def saw(self, handles: Array, steps: Array) -> None:
        """These were answered."""
        if self._replays:
            self._marks.seen[handles] = np.maximum(self._marks.seen[handles], steps)

    def taken_before(self, handle: int, step: int) -> bool:
        """Whether a server took this step once, and is given it again."""
        return handle in self._replays and bool(self._marks.seen[handle] < step <= self._marks.step[handle])

    def rewinding(self, handle: int) -> bool:
        """Whether a rewind of its own is under way."""
        return handle in self._rewinding

    def stalls(self, handle: int) -> bool:
        """Whether the session's observations are to be sent again later."""
        return handle in self._stalled

    def on_rewound(self, handle: int) -> None:
        """That one is done."""
        rewind = self._rewinding.pop(handle)
        self.rewound(handle, rewind.step, rewind.number)
        self._catch_up(handle, rewind.step)

    def put_off(self, handle: int, due: float) -> None:
        """Nothing is asked of the session before `due`."""
        self._stalled[handle] = (_NEVER, due)
        self._marks.close(handle, STALLED)

    def go_on(self, session: Session, step: int, rewinds: int) -> None:
        """The server holds the session at `step` after `rewinds`: sends it what it lacks."""
        handle = session.handle
        unsure = self._unsure.pop(handle, None)
        if unsure is not None and rewinds == unsure.number > self._ledger.rewinds.count[handle]:
            self.rewound(handle, unsure.step, unsure.number)
        runs = self._ledger.waiting(handle)
        sent = int(self._marks.next[handle]) - 1
        target = self._ledger.targets.get(handle)
        known = Known(
            rewinds=int(self._ledger.rewinds.count[handle]),
            answered=runs[0].first - 1 if runs else sent,
            sent=sent,
            kept=self._marks.kept(handle),
            target=target,
            rewind_limit=session.rewind_limit,
        )
        way = way_on(known, step, rewinds, self._ledger.rewinds.lowest(handle, rewinds, step))
        if way is None:
            self._ledger.end(session, SessionLost(f"session {session.id} went back to step {step} on the server"))
            return
        if way.lost:
            self._ledger.lose(handle, runs, way.lost)
        if step > sent and target is None and way.rewind is None:
            self._marks.base[handle] = self._marks.step[handle] = step
            self._marks.next[handle] = step + 1
        self._marks.seen[handle] = way.step
        if way.rewind is not None:
            self._rewinding[handle] = _Rewind(way.step, way.rewind, found=step)
            self._marks.close(handle, CATCHING_UP)
        else:
            self._catch_up(handle, way.step)

    def rewound(self, handle: int, step: int, number: int) -> None:
        """The server has taken the session back to `step`."""
        for marks in (self._marks.durable, self._marks.base):
            marks[handle] = min(marks[handle], step)
        self._marks.seen[handle] = step
        self._ledger.rewinds.note(handle, number, step, safe=self._marks.kept(handle))

    def on_refused(self, session: Session, error: HiddenstateError, due: float | None) -> None:
        """The server cannot be brought back to what is known of the session."""
        handle = session.handle
        rewind = self._rewinding[handle]
        if due is not None:
            rewind.due = due
            return
        del self._rewinding[handle]
        if rewind.number > self._ledger.rewinds.count[handle]:  # it was only for the sake of answers
            self._ledger.lose(handle, self._ledger.waiting(handle), rewind.found - 1)
            self._marks.seen[handle] = rewind.found - 1
            self._catch_up(handle, rewind.found - 1)
        else:
            self._ledger.end(session, SessionLost(f"session {session.id} cannot go on: {error}", reason=error.reason))

    def stall(self, session: Session, step: int, due: float) -> None:
        """Sends the session's observations from `step` on again when `due`; nothing else of it before."""
        handle = session.handle
        answered = self._marks.seen[handle] if handle in self._replays else self._marks.step[handle]
        if not answered < step < self._marks.next[handle]:
            return  # a late word about what was answered or given up since
        if handle in self._stalled:
            step = min(step, self._stalled[handle][0])
        self._stalled[handle] = (step, due)
        self._replays.pop(handle, None)
        self._marks.close(handle, STALLED)

    def _catch_up(self, handle: int, step: int) -> None:
        """The server has the session's observations up to `step`: sends it the later ones again."""
        last = self._ledger.targets.get(handle, int(self._marks.next[handle]) - 1)
        if step < last:
            self._replays[handle] = (step, last)
            self._marks.close(handle, CATCHING_UP)
        else:
            self._marks.open(handle, CATCHING_UP)

    def _replay(self) -> list[Rows]:
        """What is to be sent again now; pieces, so that they do not fill the server's queues."""
        first, final = np.full(len(self._marks), _NEVER), np.zeros(len(self._marks), np.int64)
        window = _REPLAY_WINDOW - sum(max(0, sent - int(self._marks.seen[h])) for h, (sent, _) in self._replays.items())
        for handle, (sent, last) in list(self._replays.items()):
            if self._marks.seen[handle] < sent:
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
                self._marks.open(handle, CATCHING_UP)
        return self._ledger.retention.rows(first, final)

    def _rewind_frames(self, now: float) -> list[pb.StreamRequest]:
        """Rewinds that bring sessions back to what is known of them; each is sent once on a connection."""
        due = [(handle, rewind) for handle, rewind in self._rewinding.items() if rewind.due <= now]
        for _, rewind in due:
            rewind.due = _NEVER
        return [rewind_frame([(handle, rewind.step, rewind.number) for handle, rewind in due])] if due else []

    def _wake_stalled(self, now: float) -> None:
        for handle in [handle for handle, (_, due) in self._stalled.items() if due <= now]:
            step, _ = self._stalled.pop(handle)
            self._marks.open(handle, STALLED)
            if step < _NEVER:
                self._marks.seen[handle] = step - 1
                self._catch_up(handle, step - 1)

    def _forget(self, handle: int) -> None:
        for waiting in (self._stalled, self._rewinding, self._unsure, self._replays):
            waiting.pop(handle, None)
