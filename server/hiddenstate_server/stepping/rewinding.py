"""Taking observations back, in order with what is queued, all or nothing.

A rewind is accepted when its frame is read: from then on the session's next step is the one after the target. When its
turn comes the row's state is set back to a kept one, and what lies between is fed again in front of everything queued.
Steps and counts change only when that is done; if it cannot be finished, the row is put back as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hiddenstate_server import errors
from hiddenstate_server.runtimes import FloatArray, Outputs, RowArray, each_column, write_rows
from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.directory import SessionTable
from hiddenstate_server.stepping.history import History
from hiddenstate_server.stepping.scheduler import SILENT, Scheduler


class _Rewind(NamedTuple):
    target: int | None
    """The step to go back to; None to stay."""
    number: int


class _UnderWay(NamedTuple):
    rewind: _Rewind
    state: FloatArray
    """What the row held before, [1, ...]."""
    outputs: Outputs


@dataclass
class _Asked:
    """What a row has accepted and not done."""

    number: int
    furthest: int = 0
    """The highest step it will have been at."""
    queued: deque[_Rewind] = field(default_factory=deque)
    under_way: _UnderWay | None = None

    @property
    def target(self) -> int | None:
        """Where the last of them leads to; None if all stay."""
        targets = [rewind.target for rewind in self.queued if rewind.target is not None]
        if not targets and self.under_way is not None:
            return self.under_way.rewind.target
        return targets[-1] if targets else None


class Rewinding:
    """The rewinds of one model's rows."""

    def __init__(
        self,
        table: SessionTable,
        arena: Arena,
        scheduler: Scheduler,
        history: History,
        went_back: Callable[[int, int], None],
    ) -> None:
        """`went_back` is told of each row that is at an earlier step again, and of the step."""
        self._table = table
        self._arena = arena
        self._scheduler = scheduler
        self._history = history
        self._went_back = went_back
        self._asked: dict[int, _Asked] = {}

    def target(self, row: int) -> int | None:
        """The step a row will have gone back to when its last accepted rewind is done; None if none goes back."""
        asked = self._asked.get(row)
        return None if asked is None else asked.target

    def accept(self, row: int, step: int, number: int | None) -> None:
        """Takes a rewind on, to be queued; RewindLimit. Without a number it is one more than there were."""
        table = self._table
        accepted = int(table.accepted[row])
        asked = self._asked.get(row) or _Asked(int(table.rewinds[row]))
        if number is None:
            number = asked.number + 1
        rewind = _Rewind(None, max(number, asked.number))
        if number > asked.number and step < accepted:
            furthest = max(accepted, asked.furthest)
            oldest = min(accepted, self._history.oldest(row, furthest))
            if step < oldest:
                raise errors.RewindLimit(
                    f"step {step} is further back than is kept; go back to {oldest} at most", oldest=oldest
                )
            rewind = _Rewind(step, number)
            asked.furthest = furthest
            table.accepted[row] = step
        asked.number = rewind.number
        asked.queued.append(rewind)
        self._asked[row] = asked

    def begin(self, row: int, flags: int, received: float) -> bool:
        """Starts the rewind whose turn it is; True if it is done already, else it answers as REWOUND later."""
        asked = self._asked[row]
        rewind = asked.queued.popleft()
        if rewind.target is None:
            self._table.rewinds[row] = rewind.number
            self._table.unsaved[row] = True
            self._forget_if_done(row)
            return True
        rows = np.array([row])
        before = _UnderWay(
            rewind, self._arena.states[rows], each_column(self._arena.outputs, lambda column: column[rows])
        )
        asked.under_way = before
        self._table.replaying[row] = True
        if rewind.target == 0:
            self._arena.reset(rows)
            self.finish(row)
            return True
        state, inputs = self._history.replay(row, rewind.target)
        self._arena.states[row] = state
        self._scheduler.insert(row, None, np.array([flags], np.uint8), received)
        self._scheduler.insert(row, inputs, np.full(len(inputs), SILENT, np.uint8), received)
        return False

    def finish(self, row: int) -> None:
        """The row's state is where the rewind leads to."""
        table, asked = self._table, self._asked[row]
        assert asked.under_way is not None
        target, number = asked.under_way.rewind
        assert target is not None
        self._history.went_back(row, int(table.applied[row]), target)
        table.applied[row] = target
        table.rewinds[row] = number
        table.durable[row] = min(int(table.durable[row]), target)
        table.replaying[row] = False
        table.unsaved[row] = True
        asked.under_way = None
        self._forget_if_done(row)
        self._went_back(row, target)

    def move(self, row: int, target: Rewinding, new_row: int) -> None:
        """Hands over what a row has accepted, none of it being under way."""
        asked = self._asked.pop(row, None)
        if asked is not None:
            target._asked[new_row] = asked

    def _forget_if_done(self, row: int) -> None:
        asked = self._asked[row]
        if not asked.queued and asked.under_way is None:
            del self._asked[row]

    def abandon(self, rows: RowArray) -> None:
        """Forgets what these rows have accepted; what is under way is undone."""
        if not self._asked:
            return
        for row in rows.tolist():
            asked = self._asked.pop(row, None)
            if asked is not None and asked.under_way is not None:
                at = np.array([row])
                self._arena.states[at] = asked.under_way.state
                write_rows(self._arena.outputs, at, asked.under_way.outputs)
                self._table.replaying[row] = False

    def check_integrity(self) -> None:
        """Raises AssertionError unless exactly the rows with a rewind under way are being replayed."""
        under_way = {row for row, asked in self._asked.items() if asked.under_way is not None}
        if under_way != set(np.flatnonzero(self._table.replaying).tolist()):
            raise AssertionError("a row is replayed without a rewind, or the other way round")
        if not all(self._scheduler.pending[row] for row in self._asked):
            raise AssertionError("a rewind is waited for that is not queued")
