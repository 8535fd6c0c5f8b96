"""The only place where arithmetic happens: gather the rows' states, one batched step, scatter."""

from __future__ import annotations

import time

import numpy as np

from hiddenstate_server.runtimes import (
    FloatArray,
    InputArray,
    Outputs,
    RowArray,
    Runtime,
    each_column,
    places_of,
    write_rows,
)
from hiddenstate_server.stepping.arena import Arena

TARGET_STEP_SECONDS = 0.004
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)


class Engine:
    """Steps rows of an arena with a runtime."""

    def __init__(self, runtime: Runtime, arena: Arena, max_batch: int) -> None:
        self.arena = arena
        self.max_batch = max_batch
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
        if min(_timed(runtime, batch, states) for _ in range(3)) > target:
            break
        best = size
    return best


def _timed(runtime: Runtime, inputs: InputArray, states: FloatArray) -> float:
    # CPU time, so that what else runs on the machine does not make the batches small.
    start = time.thread_time()
    runtime.step(inputs, states)
    return time.thread_time() - start
