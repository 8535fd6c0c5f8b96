"""Runs what is still missing of an experiment, in one process or several."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import Queue
from threading import Thread
from typing import Any

import torch

from hiddenstate_models.experiments.experiment import Arm, Experiment, Listener, Result
from hiddenstate_models.experiments.results import Results
from hiddenstate_models.training.allocator import keep_freed_memory

Run = tuple[Arm, int]
"""An arm and a seed."""
Watch = Callable[[Run, float, str], None]
"""Hears how much of a run is done, 0 to 1, and its latest figures."""


def missing(results: Results, arms: Sequence[Arm], seeds: int) -> list[Run]:
    """Runs without a result, in order: all seeds of the first arm, then of the next."""
    return [(arm, seed) for arm in arms for seed in range(seeds) if results.load(arm, seed) is None]


def run_all(
    experiment: Experiment, results: Results, runs: Sequence[Run], *, jobs: int, watch: Watch
) -> Iterator[Result]:
    """Runs them with one intra-op thread each and yields every result once it is saved.

    One job runs in this process. More are processes of their own, spawned: each computes what it would alone.
    """
    if jobs == 1:
        with _one_thread():
            for arm, seed in runs:
                yield _save(results, _run(experiment, arm, seed, lambda done, text: watch((arm, seed), done, text)))  # noqa: B023
        return
    context = get_context("spawn")
    heard = context.Queue()
    Thread(target=_pass_on, args=(heard, watch), daemon=True).start()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(heard,))
    try:
        for future in as_completed([pool.submit(_run_there, experiment, arm, seed) for arm, seed in runs]):
            yield _save(results, future.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        raise
    finally:
        heard.put(None)
    pool.shutdown()


def _save(results: Results, result: Result) -> Result:
    results.save(result)
    return result


def _run(experiment: Experiment, arm: Arm, seed: int, listener: Listener) -> Result:
    started = time.process_time()
    outcome = experiment.train(arm.settings, seed, listener)
    seconds = time.process_time() - started
    return Result(arm=arm.name, seed=seed, settings=dict(arm.settings), outcome=outcome, seconds=seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_heard: "Queue[Any]"
"""In a process of the pool: the way back to whoever watches."""


def _start(heard: "Queue[Any]") -> None:
    global _heard
    _heard = heard
    keep_freed_memory()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_there(experiment: Experiment, arm: Arm, seed: int) -> Result:
    return _run(experiment, arm, seed, lambda done, text: _heard.put(((arm, seed), done, text)))


def _pass_on(heard: "Queue[Any]", watch: Watch) -> None:
    while (item := heard.get()) is not None:
        watch(*item)
