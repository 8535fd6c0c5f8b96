"""Much of one session is run through at once, and nobody else waits for more than one run of it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.server.doubles import Clock, drained, make_host
from tests.server.wire import opening, words

from hiddenstate_server.sessions.host import Host
from hiddenstate_server.stepping.streams import Stream

RUN = 16


@pytest.fixture
def host() -> Host:
    return make_host(Clock(), max_run=RUN)[0]


def warming(host: Host, count: int) -> Stream:
    """A stream whose session has so many observations waiting."""
    stream = host.connect()
    host.receive(stream, opening([0], "words"))
    host.tick()
    drained(stream, now=host.clock())
    host.receive(stream, words([0] * count, np.arange(count) % 5))
    return stream


def test_batches_and_runs_take_turns(host: Host) -> None:
    stream = warming(host, 100)
    answered, running = [], []
    while host.ready:
        host.tick()
        answered.append(len(drained(stream, now=host.clock()).observed))
        running.append(host.running)
    assert sum(answered) == 100
    batches, runs = answered[::2], answered[1::2]
    assert set(batches) == {1}
    assert max(runs) == RUN
    assert all(8 <= count <= RUN for count in runs[:-1])
    assert running == [True] * (len(running) - 1) + [False]
    host.check_integrity()


def test_others_wait_for_one_run_at_most(host: Host) -> None:
    stream, other = warming(host, 1000), host.connect()
    host.receive(other, opening([0], "words"))
    while not drained(other, now=host.clock()).opened:
        host.tick()
    for step in range(1, 20):
        host.receive(other, words([0], [3]))
        waited = 0
        while not (found := drained(other, now=host.clock()).observed):
            host.tick()
            waited += 1
        assert [answer.step for answer in found] == [step]
        assert waited <= 2
        host.tick()
    assert host.running
    while host.ready:
        host.tick()
    assert not host.running
    assert [answer.step for answer in drained(stream, now=host.clock()).observed] == list(range(1, 1001))


def test_what_left_before_its_run_is_not_run(host: Host) -> None:
    stream = warming(host, 100)
    host.tick()
    assert host.running
    host.disconnect(stream)
    host.close_now(host.models[0], host.models[0].table.live())
    assert not host.running
    again = warming(host, 3)
    while host.ready:
        host.tick()
    assert [answer.step for answer in drained(again, now=host.clock()).observed] == [1, 2, 3]
    host.check_integrity()
