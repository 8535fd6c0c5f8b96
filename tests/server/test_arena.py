"""Rows are given out once, in the initial state, and nothing of a session outlives it."""

from typing import Any

import numpy as np
import pytest
from tests.server.doubles import MixingWords

from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.engine import Engine


def test_rows_come_back_clean() -> None:
    runtime = MixingWords()
    outputs, state = runtime.initial()
    arena = Arena(8, outputs, state)
    engine = Engine(runtime, arena, max_batch=8, max_run=0)
    rows = arena.allocate(8)
    assert sorted(rows) == list(range(8))
    np.testing.assert_array_equal(arena.states, np.repeat(state, 8, axis=0))
    engine.step(rows, np.arange(8))
    arena.release(rows[:5])
    arena.check_integrity()
    arena.check_empty(rows[:5])
    assert (arena.used, arena.free) == (3, 5)
    again = arena.allocate(5)
    assert set(again.tolist()) == set(rows[:5].tolist())
    np.testing.assert_array_equal(arena.states[again], np.repeat(state, 5, axis=0))
    columns: Any = zip(engine.last(again), outputs, strict=True)
    for column, initial in columns:
        np.testing.assert_array_equal(column, np.repeat(initial, 5, axis=0))


def test_more_rows_than_there_are() -> None:
    runtime = MixingWords()
    arena = Arena(2, *runtime.initial())
    with pytest.raises(ValueError, match="3 rows asked for, 2 free"):
        arena.allocate(3)


def test_integrity_check_finds_a_dirty_free_row() -> None:
    runtime = MixingWords()
    arena = Arena(2, *runtime.initial())
    row = arena.allocate(1)
    arena.release(row)
    arena.states[row, 0] = 1.0
    with pytest.raises(AssertionError, match="free row"):
        arena.check_empty(row)
