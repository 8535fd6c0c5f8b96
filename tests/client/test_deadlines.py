"""Waits share timers, and each ends in its own time."""

import asyncio

import pytest

from hiddenstate.calls import Waited
from hiddenstate.deadlines import Deadlines


def waited() -> Waited:
    wait = Waited()
    wait.waiter = asyncio.get_running_loop().create_future()
    return wait


async def test_those_that_begin_together_share_a_timer_and_run_out() -> None:
    deadlines = Deadlines()
    first, second, answered = waited(), waited(), waited()
    groups = {id(deadlines.join(wait, 0.03)) for wait in (first, second, answered)}
    assert len(groups) == 1
    answered.waiter.set_result(None)
    for wait in (first, second):
        with pytest.raises(TimeoutError):
            await wait.waiter
    await answered.waiter


async def test_other_lengths_and_later_waits_have_timers_of_their_own() -> None:
    deadlines = Deadlines()
    first = deadlines.join(waited(), 5)
    assert deadlines.join(waited(), 6) is not first
    latest = deadlines.join(waited(), 5)
    assert latest is not first
    await asyncio.sleep(0.02)
    assert deadlines.join(waited(), 5) is not latest


async def test_one_that_was_answered_as_the_time_ran_out_keeps_nobody_else_waiting() -> None:
    deadlines = Deadlines()
    answered, others = waited(), [waited() for _ in range(8)]
    for wait in (answered, *others):
        deadlines.join(wait, 0.02)
    answered.waiter = None
    for wait in others:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait.waiter, 5)


async def test_a_wait_that_is_over_is_let_go() -> None:
    deadlines = Deadlines()
    wait = waited()
    group = deadlines.join(wait, 0.02)
    group.leave(wait)
    await asyncio.sleep(0.05)
    assert not wait.waiter.done()
