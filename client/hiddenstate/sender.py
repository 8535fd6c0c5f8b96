"""What is sent next, so that each session's order is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hiddenstate.calls import Asking, Forking, Gathered, Generating, Kind, Observing, Rewarming, Rewinding
from hiddenstate.errors import AnswersLost, RewindLimit
from hiddenstate.frames import (
    Rows,
    ask_frames,
    fork_frame,
    generate_frame,
    observe_frames,
    rewarm_frame,
    rewind_frame,
)
from hiddenstate.ledger import Ledger
from hiddenstate.marks import HELD
from hiddenstate.runs import IDLE
from hiddenstate_proto import hiddenstate_pb2 as pb

_BLOCKED = 255


class Sender:
    """Takes calls out of the outbox, gives observations their steps, and builds the frames."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._marks = ledger.marks

    def frames(self, most_rows: int) -> Iterator[pb.StreamRequest]:
        """Everything new that can be sent now, in order."""
        while taken := self._next_round():
            rows = [self._number(call) for call in taken if isinstance(call, Observing)]
            yield from observe_frames(rows, most_rows)
            yield from self._ask_frames([call for call in taken if isinstance(call, Asking)], most_rows)

    def _next_round(self) -> list[Observing | Asking]:
        """Takes the waiting calls whose sessions are ready, one kind per session, so that order is kept."""
        outbox, self._ledger.outbox = [part for call in self._ledger.outbox for part in self._parts(call)], []
        taken: list[Observing | Asking] = []
        for call in outbox:
            handles = call.handles
            phase = self._marks.phase[handles]
            alike = 0 if call.kind is Kind.REWIND else call.kind
            if self._ready(call) and ((phase == 0) | (phase == alike)).all():
                self._marks.phase[handles] = call.kind
                taken.append(call)
            else:
                self._marks.phase[handles] = _BLOCKED
                self._ledger.outbox.append(call)
        for call in outbox:
            self._marks.phase[call.handles] = 0
        return taken

    def _parts(self, call: Observing | Asking) -> Sequence[Observing | Asking]:
        """What has come together by chance waits for nobody else's sake."""
        if isinstance(call, Gathered):
            ready = self._marks.gate[call.handles] == 0
            if not ready.all():
                return call.parts_by(ready)
        return (call,)

    def _ready(self, call: Observing | Asking) -> bool:
        gate = self._marks.gate[call.handles]
        if call.kind is Kind.HEARTBEAT:
            return not (gate & ~np.uint8(HELD)).any()
        if isinstance(call, Asking) and (self._ledger.runs.call[call.handles] != IDLE).any():
            return False  # an observation that is refused must not be overtaken
        return not gate.any()

    def _number(self, call: Observing) -> Rows:
        """Gives the call's observations their steps, keeps them, and waits for their answers."""
        call.number = self._ledger.number()
        self._ledger.calls[call.number] = call
        handles, counts = call.handles, call.counts
        first = self._marks.next[handles]
        self._marks.next[handles] += counts
        self._ledger.runs.add(call.number, handles, first, call.starts, counts)
        if isinstance(call, Gathered):
            numbered = Rows(handles, first, call.inputs[call.starts])
        else:
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = np.repeat(call.starts, counts) + within
            numbered = Rows(np.repeat(handles, counts), np.repeat(first, counts) + within, call.inputs[rows])
        self._ledger.unsent -= len(numbered.steps)
        self._ledger.retention.add(numbered)
        call.inputs = call.inputs[:0]
        return numbered

    def _ask_frames(self, calls: list[Asking], most_rows: int) -> list[pb.StreamRequest]:
        frames = []
        by_kind: dict[Kind, list[Asking]] = {}
        for call in calls:
            if call.kind is Kind.REWIND and not self._can_rewind(call):
                continue
            if call.kind is Kind.GENERATE and not self._can_generate(call):
                continue
            by_kind.setdefault(call.kind, []).append(call)
            for handle, position in zip(call.handles.tolist(), call.positions.tolist(), strict=True):
                self._ledger.questions.add(handle, call, position)
            if call.kind is not Kind.HEARTBEAT:
                self._marks.gate[call.handles] |= HELD
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
                frames += ask_frames(kind, np.concatenate([call.handles for call in alike]), most_rows)
        return frames

    def _target(self, call: Asking) -> tuple[int, int, int]:
        """Handle, step and number of a rewind."""
        handle = int(call.handles[0])
        return handle, self._ledger.targets[handle], int(self._ledger.rewinds.count[handle]) + 1

    def _can_rewind(self, call: Asking) -> bool:
        assert isinstance(call, Rewinding)
        handle = int(call.handles[0])
        step = int(self._marks.next[handle]) - 1
        if call.count > step:
            problem = f"the session holds {step} observations, so {call.count} cannot be taken back"
            self._ledger.fail_row(
                call, handle, 0, RewindLimit(problem, reason="REWIND_LIMIT", metadata={"oldest": "0"})
            )
            return False
        self._ledger.targets[handle] = step - call.count
        return True

    def _can_generate(self, call: Asking) -> bool:
        assert isinstance(call, Generating)
        handle = int(call.handles[0])
        place = (int(self._ledger.rewinds.count[handle]), int(self._marks.next[handle]) - 1)
        if call.place not in (None, place):
            problem = "the connection broke while this was generated, and the session has moved on since"
            self._ledger.fail_row(call, handle, 0, AnswersLost(problem, reason="ANSWERS_LOST"))
            return False
        call.place = place
        call.skip = call.received
        self._ledger.generations[call.number] = call
        return True
