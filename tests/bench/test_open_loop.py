"""The open loop: when observations are due, and what is counted of them."""

import asyncio
import random
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
from bench.open_loop import Schedule, Traffic, arrivals, intervals, only_interval, quantiles
from bench.processes import BenchError, served

from hiddenstate_models.export import random_bundle


def test_arrivals_are_a_poisson_process() -> None:
    times, again = (list(arrivals(500.0, 10.0, 50.0, random.Random(1))) for _ in range(2))  # noqa: S311
    gaps = [b - a for a, b in zip([10.0, *times], times, strict=False)]
    assert times[0] > 10.0
    assert times[-1] < 50.0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 500, rel=0.03)
    # Of exponential gaps the standard deviation is the mean.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
    assert times == again


async def test_what_a_busy_loop_missed_keeps_its_time() -> None:
    loop, happened = asyncio.get_running_loop(), list[tuple[float, float]]()
    begin = loop.time()
    due = [begin + 0.01 * number for number in range(1, 6)]
    Schedule(iter(due), lambda at: happened.append((at, loop.time())))
    time.sleep(0.06)  # noqa: ASYNC251 (a loop that is held up is what this is about)
    while len(happened) < len(due):
        await asyncio.sleep(0.01)
    assert [at for at, _ in happened] == due
    assert all(was >= begin + 0.06 for _, was in happened)


def test_quantiles_are_in_milliseconds() -> None:
    seconds = array("d", [number / 1000 for number in range(101)])
    assert quantiles(seconds, (0.5, 0.99, 1.0)) == pytest.approx((50.0, 99.0, 100.0))
    assert quantiles(array("d"), (0.5, 0.99)) == (0.0, 0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of words and one of values."""
    folder = tmp_path_factory.mktemp("models")
    random_bundle(folder, "next-word")
    random_bundle(folder, "next-value")
    return folder


@pytest.mark.parametrize(("model", "vocabulary"), [("next-word", 20), ("next-value", 0)])
def test_a_server_is_asked_as_often_as_was_said(tmp_path: Path, models: Path, model: str, vocabulary: int) -> None:
    with served(tmp_path, "--models", models) as server:
        traffic = Traffic(
            server.port,
            server.pid,
            model,
            vocabulary,
            rate=200,
            seconds=1.5,
            streams=3,
            sessions=4,
            churn=40,
            every=0.5,
        )
        with intervals(traffic) as found:
            seen = list(found)
    assert len(seen) == 3
    assert sum(one.answered for one in seen) == pytest.approx(300, abs=100)
    assert seen[-1].waiting == 0
    assert sum(one.faults for one in seen) == 0, seen
    assert sum(one.changes for one in seen) > 10
    assert all(0 < one.p50_ms <= one.p99_ms <= one.worst_ms for one in seen)


def test_with_a_timer_answers_wait(tmp_path: Path, models: Path) -> None:
    waiting = [sys.executable, "-m", "bench.waiting_server", "50"]
    with served(tmp_path, "--models", models, program=waiting) as server:
        traffic = Traffic(server.port, server.pid, "next-value", 0, rate=20, seconds=1.0, streams=2)
        seen = only_interval(traffic)
    # The first of each batch waits its whole time.
    assert seen.worst_ms >= 49
    assert seen.faults == 0


def test_a_server_that_goes_away_is_told(tmp_path: Path, models: Path) -> None:
    with served(tmp_path, "--models", models) as server:
        traffic = Traffic(server.port, server.pid, "next-value", 0, rate=50, seconds=60, streams=1, every=0.2)
        with intervals(traffic) as found:
            next(found)
            subprocess.run(["kill", "-9", str(server.pid)], check=True)
            with pytest.raises(BenchError, match="the connection was lost"):
                list(found)
