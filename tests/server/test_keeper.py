"""What the store is for: sessions outlive servers, and there may be more of them than rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tests.server.conftest import Serve, Serving
from tests.server.doubles import WORDS, MixingWords
from tests.server.wire import Answer, Wire, close, heartbeat, opening, peek, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.process.worker import STORE_SERVICE
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import new_ledger
from hiddenstate_server.versions.repository import LoadedModel

RESUME = pb.OPEN_MODE_RESUME


class Alone:
    """What a lone session of a model predicts after each of its observations."""

    def __init__(self, loaded: Sequence[LoadedModel], name: str = "next-word", version: str = "2") -> None:
        found = [model for model in loaded if (model.info.name, model.info.version) == (name, version)]
        self._runtime = found[0].runtime

    def after(self, inputs: Sequence[int]) -> dict[str, NDArray[Any]]:
        outputs, state = self._runtime.initial()
        for value in inputs:
            outputs, state = self._runtime.step(np.array([value]), state)
        return outputs._asdict()

    def check(self, answer: Answer, inputs: Sequence[int]) -> None:
        assert answer.step == len(inputs)
        for name, column in self.after(inputs).items():
            np.testing.assert_allclose(answer.columns[name], np.ravel(column), rtol=1e-5, atol=1e-5)


@pytest.fixture
def alone(loaded: list[LoadedModel]) -> Alone:
    return Alone(loaded)


def store_in(folder: Path) -> str:
    (folder / "store").mkdir(exist_ok=True)
    return f"sqlite:///{folder / 'store' / 'sessions.db'}"


async def saved(serving: Serving) -> None:
    """Waits until the store has everything."""
    tables = [model.table for model in serving.host.models]
    ledger = serving.host.ledger
    assert ledger is not None
    await serving.settled(
        lambda _: not ledger.unsaved and not any(len(table.unsaved_rows()) or table.writing.any() for table in tables)
    )


async def test_a_session_outlives_its_server(serve: Serve, tmp_path: Path, alone: Alone) -> None:
    first = await serve(store=store_in(tmp_path))
    wire = first.wire()
    await wire.open([0], "next-word", ids=["kept"])
    await wire.send(words([0, 0, 0], [3, 4, 5]))
    await wire.answered(3)
    await first.stop()
    second = (await serve(store=store_in(tmp_path))).wire()
    await second.open([7], "", ids=["kept"], mode=RESUME)
    assert second.opened[7] == ("kept", 3)
    await second.send(words([7], [6], [4]))
    await second.answered(1)
    alone.check(second.observed[-1], [3, 4, 5, 6])


async def test_fifty_sessions_in_two_rows(serve: Serve, alone: Alone) -> None:
    serving = await serve(max_sessions=2)
    wire = serving.wire()
    await wire.open(range(50), "next-word")
    fed: dict[int, list[int]] = {handle: [] for handle in range(50)}
    rng = np.random.default_rng(0)
    for _ in range(30):
        before = len(wire.observed)
        handles = rng.integers(0, 50, 12).tolist()
        tokens = rng.integers(0, 20, 12).tolist()
        for handle, token in zip(handles, tokens, strict=True):
            fed[handle].append(token)
        await wire.send(words(handles, tokens))
        await wire.answered(before + 12)
        for answer in wire.observed[before:]:
            alone.check(answer, fed[answer.handle][: answer.step])
    await serving.settled(lambda host: host.model("next-word").arena.used <= 2)
    assert not wire.faults
    await wire.send(heartbeat())
    await wire.until(lambda wire: len(wire.leases) == 50)


async def test_stored_sessions_are_listed_described_copied_and_closed(
    serve: Serve, tmp_path: Path, alone: Alone
) -> None:
    first = await serve(store=store_in(tmp_path))
    wire = first.wire()
    await wire.open(range(5), "next-word", ids=[f"s{i}" for i in range(5)], labels={"kind": "kept"})
    await wire.send(words(range(5), [3, 4, 5, 6, 7]))
    await wire.answered(5)
    await first.stop()
    serving = await serve(store=store_in(tmp_path))
    stub, wire = serving.stub, serving.wire()
    await wire.open([0], "next-word", ids=["fresh"])
    await wire.open([1], "", ids=["s1"], mode=RESUME)
    seen: list[pb.Session] = []
    request = pb.ListSessionsRequest(page_size=2)
    while not seen or request.page_token:
        page = await stub.ListSessions(request)
        seen += page.sessions
        request.page_token = page.next_page_token
        assert page.total_size == 6
    assert [session.id for session in seen] == [*(f"s{i}" for i in range(5)), "fresh"]
    assert [session.step for session in seen] == [1] * 5 + [0]
    assert {session.place for session in seen[2:5]} == {pb.PLACE_STORE}
    assert [session.attached for session in seen] == [False, True, False, False, False, True]
    labelled = await stub.ListSessions(pb.ListSessionsRequest(labels={"kind": "kept"}))
    assert labelled.total_size == len(labelled.sessions) == 5
    described = (await stub.GetSession(pb.GetSessionRequest(id="s2"))).session
    assert (described.step, described.durable_step, described.place) == (1, 1, pb.PLACE_STORE)
    copy = (await stub.ForkSession(pb.ForkSessionRequest(id="s2"))).sessions[0]
    snapshot = (await stub.ExportSession(pb.ExportSessionRequest(id="s3"))).snapshot
    restored = (await stub.RestoreSession(pb.RestoreSessionRequest(snapshot=snapshot))).session
    await wire.open([2, 3], "", ids=[copy.id, restored.id], mode=RESUME)
    await wire.send(words([2, 3], [8, 9], [2, 2]))
    await wire.answered(2)
    alone.check(wire.of(2)[0], [5, 8])
    alone.check(wire.of(3)[0], [6, 9])
    assert (await stub.CloseSessions(pb.CloseSessionsRequest(ids=["s0", "never"]))).closed == 1
    assert (await stub.CloseSessions(pb.CloseSessionsRequest(labels={"kind": "kept"}))).closed == 6
    assert (await stub.ListSessions(pb.ListSessionsRequest())).total_size == 1
    await wire.send(opening([4], "", ids=["s0"], mode=RESUME))
    await wire.until(lambda wire: any(fault.handle == 4 for fault in wire.faults))
    assert wire.faults[-1].reason == "SESSION_CLOSED"


@contextmanager
def out_of_reach(folder: Path) -> Iterator[None]:
    """The folder of the store's file has another name meanwhile."""
    path, hidden = folder / "store", folder / "hidden"
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


async def works(serving: Serving, *, expected: bool) -> None:
    """Waits until the health service says whether the store works."""
    health: Any = health_pb2_grpc.HealthStub(serving.channel)
    status = health_pb2.HealthCheckResponse.SERVING if expected else health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(30):
        while (await health.Check(health_pb2.HealthCheckRequest(service=STORE_SERVICE))).status != status:
            await asyncio.sleep(0.02)


def durable_steps(wire: Wire) -> list[int]:
    return [
        int(step)
        for frame in wire.frames
        for part in frame.observed
        for step in np.frombuffer(part.durable_steps, "<u8")
    ]


async def test_answers_wait_for_every_step(serve: Serve, tmp_path: Path, alone: Alone) -> None:
    serving = await serve(store=store_in(tmp_path), durability="every-step")
    wire = serving.wire()
    await wire.open([0, 1], "next-word")
    await wire.send(words([0, 1], [3, 4]))
    await wire.answered(2)
    with out_of_reach(tmp_path):
        await wire.send(words([0, 0, 1], [5, 6, 7]), peek([0]))
        await works(serving, expected=False)
        await serving.settled(lambda host: not host.ready)
        await asyncio.sleep(0.3)
        assert len(wire.observed) == 2
        assert not wire.peeked
    await wire.answered(5)
    await wire.until(lambda wire: wire.peeked)
    assert durable_steps(wire) == [answer.step for answer in wire.observed]
    alone.check(wire.of(0)[-1], [3, 5, 6])
    await works(serving, expected=True)


async def test_behind_goes_on_while_the_store_fails(serve: Serve, tmp_path: Path, alone: Alone) -> None:
    serving = await serve(store=store_in(tmp_path), max_sessions=4)
    wire, other = serving.wire(), serving.wire()
    await wire.open(range(4), "next-word", ids=list("abcd"))
    await saved(serving)
    with out_of_reach(tmp_path):
        await wire.send(words([0, 1, 2, 3] * 3, [3] * 12))
        await wire.answered(12)
        await works(serving, expected=False)
        await other.send(opening([0], "", ids=["unknown"], mode=RESUME))
        await other.until(lambda wire: wire.faults)
        assert (other.faults[0].reason, other.faults[0].retry) == ("STORE_UNAVAILABLE", True)
        assert set(durable_steps(wire)) == {0}
    await works(serving, expected=True)
    await saved(serving)
    await wire.send(words([0], [4]))
    await wire.answered(13)
    assert durable_steps(wire)[-1] == 3
    alone.check(wire.observed[-1], [3, 3, 3, 4])


async def test_a_full_memory_refuses_new_sessions_until_the_store_is_back(serve: Serve, tmp_path: Path) -> None:
    serving = await serve(store=store_in(tmp_path), max_sessions=4, max_frame_rows=8)
    wire = serving.wire()
    with out_of_reach(tmp_path):
        for handle in range(40):
            await wire.send(opening([handle], "next-word"))
        await wire.until(lambda wire: len(wire.opened) + len(wire.faults) == 40)
        assert set(wire.reasons) == {"SESSION_LIMIT"}
        assert serving.host.ledger is not None
        assert len(serving.host.ledger.unsaved) <= 4 + 1
    await works(serving, expected=True)
    await wire.open([50], "next-word")


async def test_a_full_arena_keeps_nobody_waiting_while_the_store_fails(serve: Serve, tmp_path: Path) -> None:
    serving = await serve(store=store_in(tmp_path), max_sessions=4, max_frame_rows=8)
    wire = serving.wire()
    await wire.open(range(6), "next-word")
    await saved(serving)
    with out_of_reach(tmp_path):
        for handle in range(6, 40):
            await wire.send(opening([handle], "next-word"))
        await wire.until(lambda wire: len(wire.opened) + len(wire.faults) == 40)
        await works(serving, expected=False)
        before, live = len(wire.faults), sorted(wire.opened)
        await wire.send(*(words([handle], [3]) for handle in live), peek([live[-1]]))
        await wire.until(lambda wire: len(wire.observed) + len(wire.faults) - before >= len(live) and wire.peeked)
        assert {fault.reason for fault in wire.faults[before:]} == {"STORE_UNAVAILABLE"}
        assert all(fault.retry for fault in wire.faults[before:])
        assert wire.observed, "what is in the arena goes on"
    await works(serving, expected=True)
    refused = [fault.handle for fault in wire.faults[before:] if fault.handle is not None]
    answered = len(wire.observed)
    await wire.send(*(words([handle], [3]) for handle in refused))
    await wire.answered(answered + len(refused))
    assert {answer.step for answer in wire.observed} == {1}


async def test_only_so_many_are_stored(serve: Serve) -> None:
    serving = await serve(max_sessions=2, max_stored_sessions=5)
    wire = serving.wire()
    await wire.send(*(opening([handle], "next-word") for handle in range(7)))
    await wire.until(lambda wire: len(wire.faults) == 2)
    assert wire.reasons == ["SESSION_LIMIT"] * 2
    assert len(wire.opened) == 5


async def test_who_lost_a_session_is_told(serve: Serve, tmp_path: Path, alone: Alone) -> None:
    """Two servers, one store: whoever resumed a session last has it, and the other cannot overwrite it."""
    first, second = await serve(store=store_in(tmp_path)), await serve(store=store_in(tmp_path))
    old, new = first.wire(), second.wire()
    await old.open([0, 1], "next-word", ids=["moved", "closed"])
    await old.send(words([0, 1], [3, 3]))
    await old.answered(2)
    await saved(first)
    await new.open([5, 6], "", ids=["moved", "closed"], mode=RESUME)
    await new.send(words([5], [4], [2]), close([6]))
    await new.until(lambda wire: wire.observed and wire.closed)
    await saved(second)
    await old.send(words([0, 1], [9, 9]))
    await old.until(lambda wire: len(wire.faults) == 2)
    assert {fault.handle: fault.reason for fault in old.faults} == {0: "SESSION_TAKEN_OVER", 1: "SESSION_CLOSED"}
    await new.send(words([5], [5], [3]))
    await new.answered(2)
    alone.check(new.observed[-1], [3, 4, 5])
    await saved(second)
    await old.open([7], "", ids=["moved"], mode=RESUME)
    assert old.opened[7] == ("moved", 3)


async def test_ids_are_taken_wherever_their_session_is(serve: Serve, tmp_path: Path) -> None:
    first, second = await serve(store=store_in(tmp_path)), await serve(store=store_in(tmp_path))
    wire, other = first.wire(), second.wire()
    await wire.open([0, 1], "next-word", ids=["live", "ended"])
    await wire.send(close([1]))
    await wire.until(lambda wire: wire.closed)
    await saved(first)
    await other.send(opening([0], "next-word", ids=["live"]))
    await other.until(lambda wire: wire.faults)
    assert other.reasons == ["SESSION_EXISTS"]
    await first.stop()
    await other.open([1], "next-word", ids=["ended"])
    await other.send(words([1], [3]))
    await other.answered(1)
    await second.stop()
    third = (await serve(store=store_in(tmp_path))).wire()
    await third.open([0], "", ids=["ended"], mode=RESUME)
    assert third.opened[0] == ("ended", 1)


async def test_the_ways_a_session_is_not_there_survive_a_restart(serve: Serve, tmp_path: Path) -> None:
    first = await serve(store=store_in(tmp_path))
    wire = first.wire()
    await wire.open([0], "next-word", ids=["closed"])
    await wire.open([1], "next-word", ids=["expired"], lease=0.05)
    await wire.send(close([0]))
    await wire.until(lambda wire: wire.closed and "SESSION_EXPIRED" in wire.reasons)
    await first.stop()
    second = (await serve(store=store_in(tmp_path))).wire()
    await second.send(opening([0, 1, 2], "", ids=["closed", "expired", "never"], mode=RESUME))
    await second.until(lambda wire: len(wire.faults) == 3)
    assert second.reasons == ["SESSION_CLOSED", "SESSION_EXPIRED", "SESSION_NOT_FOUND"]


async def test_sessions_without_rows_expire_and_are_kept_by_heartbeats(serve: Serve) -> None:
    serving = await serve(max_sessions=1)
    wire = serving.wire()
    await wire.open([0, 1], "next-word", lease=1.5)
    await wire.open([2], "next-word")
    await serving.settled(lambda host: host.model("next-word").arena.used == 1)
    for _ in range(4):
        await asyncio.sleep(0.5)
        await wire.send(heartbeat([0]))
    await wire.until(lambda wire: wire.faults)
    assert [(fault.handle, fault.reason) for fault in wire.faults] == [(1, "SESSION_EXPIRED")]
    await wire.send(words([0], [3]))
    await wire.answered(1)


def test_places_for_a_million_cost_nothing_before_they_are_used() -> None:
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    host = Host(Limits(max_sessions=1_000_000), Metrics("test"), ledger=new_ledger(False, 1_000_000))
    model = host.add_model(WORDS, MixingWords(), 64)
    assert time.perf_counter() - start < 1.0
    assert psutil.Process().memory_info().rss - before < 16 * 2**20
    assert model.capacity > 1_000_000
