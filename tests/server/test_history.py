"""Kept observations against a plain list of them, and of every state there was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hiddenstate_server.stepping.history import History
from hiddenstate_server.stepping.recent import SPACING

ROWS, SIZE = 4, 3


class AgainstLists(RuleBasedStateMachine):
    """States are sums of what was observed, so that a replay can be checked by adding."""

    limit = 10

    def __init__(self) -> None:
        super().__init__()
        self.states = np.zeros((ROWS, SIZE), np.float32)
        self.applied = np.zeros(ROWS, np.int64)
        self.history = History(self.limit, np.empty((0, SIZE)), self.states, self.applied, np.zeros(SIZE, np.float32))
        self.told: list[list[np.ndarray]] = [[] for _ in range(ROWS)]
        self.furthest = [0] * ROWS
        self.began = [0] * ROWS
        self.serial = 0.0

    @rule(rows=st.sets(st.integers(0, ROWS - 1), min_size=1), ticks=st.integers(1, 40))
    def observe(self, rows: set[int], ticks: int) -> None:
        at = np.array(sorted(rows))
        for _ in range(ticks):
            inputs = np.arange(len(at) * SIZE, dtype=np.float64).reshape(-1, SIZE) + self.serial
            self.serial = (self.serial + 7.0) % 101
            self.states[at] += inputs
            steps = self.applied[at] + 1
            self.applied[at] = steps
            self.history.record(at, steps, inputs)
            for row, value in zip(at.tolist(), inputs, strict=True):
                self.told[row].append(value)
                self.furthest[row] = max(self.furthest[row], len(self.told[row]))

    @rule(row=st.integers(0, ROWS - 1), back=st.integers(1, 12))
    def go_back(self, row: int, back: int) -> None:
        now = len(self.told[row])
        target = now - back
        first = max(self.began[row] + 1 if self.began[row] else 0, self.furthest[row] - self.limit)
        assert self.history.oldest(row, now) == first
        if target < first or target < 0:
            return
        if target > 0:
            state, inputs = self.history.replay(row, target)
            assert 1 <= len(inputs) <= target
            np.testing.assert_array_equal(inputs, self.told[row][target - len(inputs) : target])
            np.testing.assert_allclose(state + inputs.sum(axis=0), self.sum_of(row, target), rtol=1e-5)
            for step in range(target - len(inputs) + 1, target + 1):
                self.states[row] = self.sum_of(row, step)
                self.history.replayed(np.array([row]))
        self.states[row] = self.sum_of(row, target)
        self.applied[row] = target
        self.history.went_back(row, now, target)
        del self.told[row][target:]

    @rule(row=st.integers(0, ROWS - 1), other=st.integers(0, ROWS - 1))
    def copy(self, row: int, other: int) -> None:
        if row == other:
            return
        self.forget(other)
        self.history.copy(row, np.array([other]))
        self.states[other], self.applied[other] = self.states[row], self.applied[row]
        self.told[other], self.furthest[other] = list(self.told[row]), self.furthest[row]
        self.began[other] = self.began[row]

    @rule(row=st.integers(0, ROWS - 1))
    def forget(self, row: int) -> None:
        self.history.clear(np.array([row]))
        self.history.check_integrity(np.array([row]))
        self.states[row] = self.applied[row] = 0
        self.told[row], self.furthest[row], self.began[row] = [], 0, 0

    @rule(row=st.integers(0, ROWS - 1), step=st.integers(1, 100))
    def begin_in_the_middle(self, row: int, step: int) -> None:
        """As when only the state of a session has come from elsewhere."""
        self.forget(row)
        self.told[row] = [np.full(SIZE, 0.5)] * step
        self.states[row], self.applied[row] = self.sum_of(row, step), step
        self.furthest[row] = self.began[row] = step
        self.history.start(row, step)

    def sum_of(self, row: int, step: int) -> np.ndarray:
        total: np.ndarray = np.sum([np.zeros(SIZE), *self.told[row][:step]], axis=0)
        return total

    @invariant()
    def recent_ones_are_there(self) -> None:
        for row in range(ROWS):
            recent = self.history.recent(row)
            here = len(self.told[row])
            assert len(recent) >= min(here - self.began[row], self.limit - (self.furthest[row] - here))
            np.testing.assert_array_equal(
                recent.reshape(-1, SIZE), np.reshape(self.told[row][here - len(recent) :], (-1, SIZE))
            )


AgainstLists.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstLists = AgainstLists.TestCase


def make(limit: int, tokens: bool = True) -> tuple[History, np.ndarray, np.ndarray]:
    states, applied = np.zeros((2, SIZE), np.float32), np.zeros(2, np.int64)
    empty = np.empty(0, np.int64) if tokens else np.empty((0, 2))
    return History(limit, empty, states, applied, states[0]), states, applied


def test_nothing_is_kept_where_nothing_is_to_be_taken_back() -> None:
    history, _, applied = make(0)
    history.record(np.array([0]), np.array([1]), np.array([5]))
    applied[0] = 1
    assert history.oldest(0, 1) == 1
    assert len(history.recent(0)) == 0
    assert history.row_bytes < 100
    history.clear(np.array([0]))
    history.check_integrity(np.array([0, 1]))


def test_tokens_come_back_as_they_came() -> None:
    history, _, applied = make(4)
    for step in range(1, 30):
        applied[0] = step
        history.record(np.array([0]), np.array([step]), np.array([100 + step]))
    recent = history.recent(0)
    assert recent.dtype == np.int64
    assert recent.tolist() == list(range(130 - len(recent), 130))


def test_who_goes_back_again_replays_little() -> None:
    history, states, applied = make(64)

    def observe(count: int) -> None:
        for _ in range(count):
            applied[:] += 1
            states[:] = applied[:, None]
            history.record(np.array([0, 1]), applied.copy(), applied.copy())

    def rewind(row: int, count: int) -> int:
        now = int(applied[row])
        target = now - count
        state, inputs = history.replay(row, target)
        assert state[0] == target - len(inputs)
        for step in range(target - len(inputs) + 1, target + 1):
            states[row] = step
            history.replayed(np.array([row]))
        applied[row] = target
        history.went_back(row, now, target)
        return len(inputs)

    observe(190)
    assert rewind(0, 1) > 20
    assert sum(rewind(0, 1) for _ in range(10)) <= 10 * SPACING
    for _ in range(8):
        observe(5)
        assert rewind(0, 2) <= 2 * SPACING
    # There is one place for the two of them: the other row takes it, and both come where they should.
    rewind(1, 1)
    assert rewind(1, 1) <= 2 * SPACING
    rewind(0, 1)
    history.clear(np.array([0, 1]))
    history.check_integrity(np.array([0, 1]))


def test_integrity_check_finds_what_is_left() -> None:
    history, _, applied = make(4)
    applied[0] = 1
    history.record(np.array([0]), np.array([1]), np.array([5]))
    with pytest.raises(AssertionError, match="history"):
        history.check_integrity(np.array([0]))
