"""How often the store is written to."""

from __future__ import annotations

import time

import pytest

from hiddenstate_server.sessions.pace import Pace


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the thread has worked so far, in seconds."""
    seconds = [7.0]
    monkeypatch.setattr(time, "thread_time", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize(
    ("cost", "pause"),
    [(0.0, 0.05), (0.001, 0.05), (0.004, 0.2), (0.015, 0.75), (0.02, 1.0), (3.0, 1.0)],
    ids=["free", "cheap", "takes its share", "in two parts", "just as far apart as allowed", "dear"],
)
def test_writes_take_their_share_of_a_core(worked: list[float], cost: float, pause: float) -> None:
    paced = Pace(0.05, 1.0, share=0.02)
    paced.begin(100.0)
    for _ in range(2):
        with paced.spending():
            worked[0] += cost / 2
        worked[0] += 5.0  # somebody else's
    paced.end()
    assert paced.due_in(100.25) == pytest.approx(pause - 0.25)


def test_what_one_sweep_took_says_nothing_of_the_next(worked: list[float]) -> None:
    paced = Pace(0.05, 1.0, share=0.02)
    paced.begin(0.0)
    with paced.spending():
        worked[0] += 0.01
    paced.end()
    assert paced.due_in(0.0) == pytest.approx(0.5)
    paced.begin(0.5)
    paced.end()
    assert paced.due_in(0.5) == pytest.approx(0.05)


def test_a_sweep_that_failed_is_soon_begun_again(worked: list[float]) -> None:
    paced = Pace(0.05, 1.0, share=0.02)
    paced.begin(0.0)
    with paced.spending():
        worked[0] += 10.0
    assert paced.due_in(0.0) == pytest.approx(0.05)


def test_the_longest_pause_is_never_below_the_shortest(worked: list[float]) -> None:
    paced = Pace(5.0, 1.0, share=0.02)
    paced.begin(0.0)
    with paced.spending():
        worked[0] += 10.0
    paced.end()
    assert paced.due_in(0.0) == pytest.approx(5.0)
