"""The only place where arithmetic happens: gather the rows' states, one batched step, scatter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np

from hiddenstate_server.runtimes import (
    FloatArray,
    InputArray,
    Outputs,
    RowArray,
    RunRuntime,
    Runtime,
    each_column,
    places_of,
    write_rows,
)
from hiddenstate_server.stepping.arena import Arena

TARGET_STEP_SECONDS = 0.004
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
RUN_LENGTHS = (8, 16, 32, 64)


class Engine:
    """Steps rows of an arena with a runtime."""

    def __init__(self, runtime: Runtime, arena: Arena, max_batch: int, max_run: int) -> None:
        self.arena = arena
        self.max_batch = max_batch
        self.max_run = max_run
        """Observations of one row that are run through at once; 0 if the runtime cannot."""
        self._runtime = runtime
        self._gathered = np.empty((max_batch, runtime.state_size), np.float32)

    def step(self, rows: RowArray, inputs: InputArray) -> Outputs:
        """Steps n <= max_batch distinct rows with one input each and keeps states and outputs."""
        places = places_of(rows)
        if isinstance(places, slice):
            states = self.arena.states[places]
        else:
            states = self._gathered[: len(rows)]
            np.take(self.arena.states, rows, axis=0, out=states, mode="clip")
        outputs, next_states = self._runtime.step(inputs, states)
        self.arena.states[places] = next_states
        write_rows(self.arena.outputs, places, outputs)
        return outputs

    def run(self, row: int, inputs: InputArray) -> Outputs:
        """Steps one row with n <= max_run inputs after each other and keeps its last state and outputs."""
        place = slice(row, row + 1)
        outputs, state = cast(RunRuntime, self._runtime).run(inputs, self.arena.states[place])
        self.arena.states[place] = state
        write_rows(self.arena.outputs, place, each_column(outputs, lambda column: column[-1:]))
        return outputs

    def last(self, rows: RowArray) -> Outputs:
        """Outputs of each row's last step, or the initial ones."""
        return each_column(self.arena.outputs, lambda column: column[rows])


def calibrated_batch(runtime: Runtime, inputs: InputArray, target: float = TARGET_STEP_SECONDS) -> int:
    """Largest power of two whose step stays below `target` seconds, so that the event loop breathes.

    `inputs` is one row of a valid input.
    """
    _, state = runtime.initial()
    best = BATCH_SIZES[0]
    for size in BATCH_SIZES:
        batch, states = np.repeat(inputs, size, axis=0), np.repeat(state, size, axis=0)
        if min(_timed(runtime.step, batch, states) for _ in range(3)) > target:
            break
        best = size
    return best


def calibrated_run(runtime: Runtime, inputs: InputArray, target: float = TARGET_STEP_SECONDS) -> int:
    """The same of a run; 0 if the runtime makes none."""
    if not runtime.makes_runs:
        return 0
    _, state = runtime.initial()
    best = RUN_LENGTHS[0]
    for length in RUN_LENGTHS:
        run = np.repeat(inputs, length, axis=0)
        if min(_timed(cast(RunRuntime, runtime).run, run, state) for _ in range(3)) > target:
            break
        best = length
    return best


def _timed(compute: Callable[[InputArray, FloatArray], object], inputs: InputArray, states: FloatArray) -> float:
    # CPU time, so that what else runs on the machine does not make the batches small.
    start = time.thread_time()
    compute(inputs, states)
    return time.thread_time() - start
