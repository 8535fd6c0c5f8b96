"""The scheduler against a deque for every session."""

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hiddenstate_server.errors import ServerError
from hiddenstate_server.stepping.scheduler import HOLD, OBSERVE, SILENT, Scheduler, runs_of

ROWS = 7


@dataclass(eq=False)
class Note:
    """An argument to be recognised by."""

    item: int

    def abandon(self, error: ServerError) -> None:
        raise AssertionError("the scheduler tells nobody") from error


class AgainstDeques(RuleBasedStateMachine):
    """Whatever is queued comes out once, in order for each session, never two of one session together."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(ROWS, np.empty(0, np.int64), slots=2)
        self.silent: set[int] = set()
        self.notes: dict[int, Note] = {}
        self.queues: list[deque[int]] = [deque() for _ in range(ROWS)]
        self.serial = 0

    @rule(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12), noted=st.booleans())
    def add(self, rows: list[int], noted: bool) -> None:
        column = np.array(rows)
        items = np.arange(self.serial, self.serial + len(rows))
        self.serial += len(rows)
        distinct = self.scheduler.distinct(column)
        assert distinct == (len(set(rows)) == len(rows))
        runs = None if distinct else runs_of(column)
        flags = OBSERVE if runs is None else runs.flagged(OBSERVE, HOLD)
        notes = [Note(item) for item in items.tolist()] if noted else []
        self.notes.update(zip(items.tolist(), notes, strict=False))
        self.scheduler.add(column, items, flags, float(self.serial), runs, notes)
        for row, item in zip(rows, items.tolist(), strict=True):
            self.queues[row].append(item)

    @rule(row=st.integers(0, ROWS - 1), count=st.integers(1, 5), noted=st.booleans(), silent=st.booleans())
    def insert(self, row: int, count: int, noted: bool, silent: bool) -> None:
        items = np.arange(self.serial, self.serial + count)
        self.serial += count
        notes = [Note(item) for item in items.tolist()] if noted and not silent else []
        self.notes.update(zip(items.tolist(), notes, strict=False))
        self.silent.update(items.tolist() if silent else ())
        self.scheduler.insert(row, items, np.full(count, SILENT if silent else OBSERVE, np.uint8), 0.0, notes)
        self.queues[row].extendleft(items[::-1].tolist())

    @rule(limit=st.integers(1, 9))
    def take(self, limit: int) -> None:
        waiting = {row for row, queue in enumerate(self.queues) if queue}
        assert self.scheduler.ready == bool(waiting)
        if not waiting:
            return
        batch = self.scheduler.take(limit)
        assert len(batch.rows) == min(limit, len(waiting))
        assert len(set(batch.rows.tolist())) == len(batch.rows)
        for row, item in zip(batch.rows.tolist(), batch.inputs.tolist(), strict=True):
            assert self.queues[row].popleft() == item
            assert batch.arguments.get(row) is self.notes.pop(item, None)

    @rule(row=st.integers(0, ROWS - 1), shortest=st.integers(1, 4), longer=st.integers(0, 4))
    def take_run(self, row: int, shortest: int, longer: int) -> None:
        queue = self.queues[row]
        if not queue:
            return
        longest = shortest + longer
        alike = list(
            itertools.takewhile(
                lambda item: item not in self.notes and (item in self.silent) == (queue[0] in self.silent), queue
            )
        )
        batch = self.scheduler.take_run(row, shortest, longest)
        if len(alike) < shortest:
            assert batch is None
            return
        assert batch is not None
        assert batch.inputs.tolist() == alike[:longest]
        assert set(batch.rows.tolist()) == {row}
        for _ in batch.rows:
            queue.popleft()

    @rule(rows=st.sets(st.integers(0, ROWS - 1)))
    def drop(self, rows: set[int]) -> None:
        dropped = self.scheduler.drop(np.array(sorted(rows), np.int64))
        heard = [(row, item) for row in rows for item in self.queues[row] if item not in self.silent]
        assert sorted(dropped.rows.tolist()) == sorted(row for row, _ in heard)
        noted = {argument for argument in dropped.arguments if argument is not None}
        assert noted == {self.notes.get(item) for _, item in heard} - {None}
        for row in rows:
            self.queues[row].clear()

    @invariant()
    def agrees(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.pending.tolist() == [len(queue) for queue in self.queues]
        assert len(self.scheduler) == sum(map(len, self.queues))


AgainstDeques.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstDeques = AgainstDeques.TestCase


def add(scheduler: Scheduler, rows: list[int]) -> None:
    column = np.array(rows)
    runs = None if scheduler.distinct(column) else runs_of(column)
    scheduler.add(column, np.zeros(len(rows), np.int64), OBSERVE, 0.0, runs)


def test_a_long_run_holds_up_nobody() -> None:
    scheduler = Scheduler(10, np.empty(0, np.int64))
    add(scheduler, [0] * 5000 + [1])
    add(scheduler, [2])
    assert set(scheduler.take(8).rows.tolist()) == {0, 1, 2}
    add(scheduler, [3])
    assert set(scheduler.take(8).rows.tolist()) == {0, 3}


def test_rows_with_long_queues_take_turns() -> None:
    scheduler = Scheduler(10, np.empty(0, np.int64))
    add(scheduler, [0] * 50 + [1] * 50)
    turns = []
    for _ in range(4):
        first = scheduler.take(8).rows.tolist()[0]
        scheduler.take_run(first, 4, 8)
        turns.append(first)
    assert turns in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_a_long_frame_does_not_hold_up_a_short_one() -> None:
    scheduler = Scheduler(100, np.empty(0, np.int64))
    add(scheduler, list(range(90)))
    scheduler.take(16)
    add(scheduler, [95])
    scheduler.take(16)
    assert 95 in scheduler.take(16).rows


def test_integrity_check_finds_damage() -> None:
    scheduler = Scheduler(4, np.empty(0, np.int64))
    add(scheduler, [1, 1])
    scheduler.pending[1] = 1
    with pytest.raises(AssertionError, match="chain"):
        scheduler.check_integrity()
