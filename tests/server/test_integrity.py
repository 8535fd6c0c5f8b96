"""What does not agree in the server's memory is found while it has nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from tests.server.conftest import Serve
from tests.server.doubles import Clock, make_host
from tests.server.wire import close, opening, words

from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.integrity import Inspection, checks
from hiddenstate_server.stepping.directory import Ended
from hiddenstate_server.stepping.model import ServedModel


def failures(host: Host) -> float:
    found = host.metrics.registry.get_sample_value("hiddenstate_integrity_failures_total")
    assert found is not None
    return found


def leave_a_state(_host: Host, model: ServedModel) -> None:
    model.arena.states[model.arena.returned[0]] = 1.0


def leave_an_input(_host: Host, model: ServedModel) -> None:
    model.history.clear(model.arena.returned)
    model.history.record(model.arena.returned[:1], np.array([1]), np.array([3]))


def free_a_row_twice(_host: Host, model: ServedModel) -> None:
    model.arena.returned[0] = model.arena.returned[1]


def swap_keys(_host: Host, model: ServedModel) -> None:
    first, second = model.table.live()[:2].tolist()
    keys = model.table.keys
    keys[first], keys[second] = keys[second], keys[first]


def forget_a_key(host: Host, _model: ServedModel) -> None:
    host.directory.remove("/s1", Ended.CLOSED)


def give_a_session_away(_host: Host, model: ServedModel) -> None:
    model.table.handle[model.table.live()[0]] = 77


def lose_count(_host: Host, model: ServedModel) -> None:
    model.scheduler.pending[model.table.live()[0]] = 1


def busy_host() -> tuple[Host, ServedModel]:
    """A host of some sessions, some rows given back, nothing queued."""
    host, model, _ = make_host(Clock())
    stream = host.connect()
    host.receive(stream, opening(range(10), "words", ids=[f"s{i}" for i in range(10)]))
    host.receive(stream, words(range(10), range(10)))
    host.receive(stream, close([4, 5, 6]))
    while host.ready:
        host.tick()
    return host, model


def test_nothing_is_wrong() -> None:
    host, _ = busy_host()
    inspection = Inspection(host)
    for _ in range(50):
        inspection.go_on()
    assert failures(host) == 0


@pytest.mark.parametrize("parts", range(4))
def test_a_model_may_be_unloaded_between_two_parts(parts: int) -> None:
    host, _, values = make_host(Clock())
    going_on = checks(host)
    for _ in range(parts):
        next(going_on)
    for model in list(host.models):
        model.retired = True
    host.unload_retired()
    assert host.models == []
    assert not hasattr(values, "rewinding")
    for _ in going_on:
        pass


@pytest.mark.parametrize(
    "damage",
    [leave_a_state, leave_an_input, free_a_row_twice, swap_keys, forget_a_key, give_a_session_away, lose_count],
)
def test_damage_is_found(damage: Callable[[Host, ServedModel], None], capsys: pytest.CaptureFixture[str]) -> None:
    host, model = busy_host()
    damage(host, model)
    inspection = Inspection(host)
    for _ in range(50):
        inspection.go_on()
    assert failures(host) == 1
    assert "critical" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        host.check_integrity()


def test_a_hundred_thousand_sessions_are_checked_a_little_at_a_time() -> None:
    host, model, _ = make_host(Clock(), max_batch=65_536, max_sessions=100_000, max_frame_rows=65_536)
    for count in (65_000, 35_000):
        host.receive(host.connect(), opening(range(count), "words"))
    inspection = Inspection(host)
    longest, rounds = 0.0, 0
    while not inspection._resting_until:
        start = time.thread_time()
        inspection.go_on()
        longest, rounds = max(longest, time.thread_time() - start), rounds + 1
    assert longest < 0.03
    assert rounds > 5
    assert failures(host) == 0
    assert model.arena.used == 100_000


async def test_a_server_looks_when_it_is_idle(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.open([0, 1], "next-word", version="1")
    await wire.send(words([0, 1], [3, 4]), close([1]))
    await wire.until(lambda wire: wire.closed)
    arena = serving.host.models[1].arena
    arena.states[arena.returned[0]] = 1.0
    try:
        await serving.settled(failures)
        await wire.send(words([0], [5]))
        await wire.answered(3)
    finally:
        arena.states[arena.returned[0]] = 0.0
