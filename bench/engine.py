"""The engine in a loop of its own, without any transport: what the arithmetic alone costs.

`python -m bench.engine SECONDS [FLAGS OF hiddenstate-server]` prints, for every model, its vocabulary (0 for values)
and the microseconds a row costs by batch size, of CPU and of the clock, as JSON; and of CPU alone in batches of one,
each after a pause, as a lone stream has them: by then caches have gone cold, whatever does the stepping.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from hiddenstate_server.runtimes import InputArray
from hiddenstate_server.settings import load
from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.engine import Engine
from hiddenstate_server.versions.repository import LoadedModel, load_models

SESSIONS = 4096
BATCH_SIZES = tuple(2**power for power in range(9))
PAUSE_SECONDS = 150e-6
"""About the round trip of a bare echo server."""


def random_inputs(model: LoadedModel, count: int) -> InputArray:
    """Tokens [count], or values [count, columns]: the same every time."""
    rng = np.random.default_rng(0)
    if model.info.text:
        return rng.integers(0, len(model.info.text.vocabulary), count)
    return rng.normal(20.0, 5.0, (count, len(model.info.columns)))


def cost(model: LoadedModel, batch: int, seconds: float, pause: float = 0.0) -> tuple[float, float]:
    """Microseconds a row of CPU and of the clock, stepping ever other sessions of an arena in batches of `batch`.

    `pause` is slept before each step; what sleeping itself costs is in the figures.
    """
    engine = Engine(model.runtime, Arena(SESSIONS, *model.runtime.initial()), batch, model.max_run)
    rows = engine.arena.allocate(SESSIONS)
    inputs = random_inputs(model, SESSIONS)
    engine.step(rows[:batch], inputs[:batch])
    done, at, cpu, clock = 0, 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - clock) < seconds:
        if pause:
            time.sleep(pause)
        engine.step(rows[at : at + batch], inputs[at : at + batch])
        done += batch
        at = (at + batch) % (SESSIONS - batch + 1)
    return (time.process_time() - cpu) / done * 1e6, elapsed / done * 1e6


def cost_of_pauses(seconds: float) -> float:
    """Microseconds of CPU that a pause takes."""
    done, cpu, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(PAUSE_SECONDS)
        done += 1
    return (time.process_time() - cpu) / done * 1e6


def costs(models: list[LoadedModel], seconds: float) -> dict[str, Any]:
    """Of every model, taking `seconds` for each."""
    found = {}
    for model in models:
        share = seconds / (len(BATCH_SIZES) + 2)
        measured = {size: cost(model, size, share) for size in BATCH_SIZES}
        found[model.info.name] = {
            "vocabulary": len(model.info.text.vocabulary) if model.info.text else 0,
            "state_bytes": 4 * model.info.state_size,
            "cpu": {size: cpu for size, (cpu, _) in measured.items()},
            "clock": {size: clock for size, (_, clock) in measured.items()},
            "paused_cpu": cost(model, 1, share, PAUSE_SECONDS)[0] - cost_of_pauses(share),
        }
    return found


if __name__ == "__main__":
    # Any largest batch will do here, and naming one saves the search for a good one.
    served = load_models(load(["--max-batch", "1", *sys.argv[2:]]))
    print(json.dumps(costs(served, float(sys.argv[1]))))
