"""What is told of sessions, which of them a filter finds, and closing many at once."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from tests.server.conftest import Serve, Serving
from tests.server.doubles import WORDS, Clock, MixingWords, drained
from tests.server.test_service import reason_of
from tests.server.wire import opening, rewind, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import new_ledger


def seconds(value: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(value * 1e9))
    return message


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    """A server with sessions a, b and c of words, labelled, and v of values, not labelled; all of one stream.

    Without a store, which has a clock of its own.
    """
    serving = await serve(store="none")
    wire = serving.wire()
    await wire.open([0, 1], "next-word", ids=["a", "b"], labels={"app": "keyboard", "user": "7"})
    await wire.open([2], "next-word", ids=["c"], labels={"app": "keyboard", "user": "8"})
    await wire.open([3], "next-value", ids=["v"])
    return serving


async def listed(serving: Serving, **fields: Any) -> list[str]:
    page = await serving.stub.ListSessions(pb.ListSessionsRequest(**fields))
    assert page.total_size == len(page.sessions)
    return [session.id for session in page.sessions]


async def test_filters(serving: Serving) -> None:
    assert await listed(serving) == ["a", "b", "c", "v"]
    assert await listed(serving, labels={"app": "keyboard"}) == ["a", "b", "c"]
    assert await listed(serving, labels={"app": "keyboard", "user": "7"}) == ["a", "b"]
    assert await listed(serving, labels={"user": "9"}) == []
    assert await listed(serving, labels={"app": ""}) == []
    assert await listed(serving, model="next-value", labels={"app": "keyboard"}) == []
    clock = serving.host.clock
    serving.host.clock = lambda: clock() + 100
    await serving.wires[0].send(words([1], [3]))
    await serving.wires[0].answered(1)
    assert await listed(serving, idle_for=seconds(50)) == ["a", "c", "v"]
    assert await listed(serving, idle_for=seconds(50), labels={"user": "7"}) == ["a"]
    assert await listed(serving, idle_for=seconds(500)) == []


async def test_pages_of_a_filter(serving: Serving) -> None:
    request = pb.ListSessionsRequest(labels={"app": "keyboard"}, page_size=2)
    first = await serving.stub.ListSessions(request)
    request.page_token = first.next_page_token
    second = await serving.stub.ListSessions(request)
    assert [session.id for session in [*first.sessions, *second.sessions]] == ["a", "b", "c"]
    assert first.total_size == second.total_size == 3
    assert second.next_page_token == ""


async def test_what_is_told(serving: Serving) -> None:
    wire = serving.wires[0]
    await wire.send(words([0] * 3, [1, 2, 3]), rewind([0], [2]))
    await wire.until(lambda wire: wire.rewound)
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id="a"))).session
    assert dict(session.labels) == {"app": "keyboard", "user": "7"}
    assert (session.step, session.rewinds, session.attached) == (2, 1, True)
    state = (await serving.stub.GetModel(pb.GetModelRequest(name="next-word"))).model.state_bytes
    assert state < session.bytes < 10 * state + 2000


@pytest.mark.parametrize(
    "labels",
    [
        {f"key{i}": "" for i in range(17)},
        {"": "x"},
        {"k" * 65: "x"},
        {"k": "v" * 65},
    ],
)
async def test_too_many_or_too_long_labels(serve: Serve, labels: dict[str, str]) -> None:
    wire = (await serve()).wire()
    await wire.send(opening([0], "next-word", labels=labels))
    await wire.until(lambda wire: wire.faults)
    assert wire.reasons == ["INPUT_INVALID"]
    await wire.open([0], "next-word", labels={"k" * 64: "ä" * 64})


async def test_closing_by_id(serving: Serving) -> None:
    wire = serving.wires[0]
    await wire.send(words([0] * 2000, [3] * 2000))
    request = pb.CloseSessionsRequest(ids=["a", "a", "v", "nobody", "/a"])
    assert (await serving.stub.CloseSessions(request)).closed == 2
    await wire.until(lambda wire: len(wire.faults) >= 2)
    assert {fault.handle for fault in wire.faults} == {0, 3}
    assert set(wire.reasons) == {"SESSION_CLOSED"}
    assert await listed(serving) == ["b", "c"]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await serving.stub.GetSession(pb.GetSessionRequest(id="a"))
    assert reason_of(raised.value) == "SESSION_CLOSED"
    await wire.send(words([0, 1], [3, 3]))
    await wire.until(lambda wire: wire.of(1))
    assert wire.reasons[-1] == "SESSION_CLOSED"
    assert next(iter(serving.host.streams.values())).backlog == 0


async def test_closing_by_filter(serving: Serving) -> None:
    close = serving.stub.CloseSessions
    assert (await close(pb.CloseSessionsRequest(labels={"user": "7"}))).closed == 2
    assert await listed(serving) == ["c", "v"]
    assert (await close(pb.CloseSessionsRequest(model="next-value"))).closed == 1
    assert (await close(pb.CloseSessionsRequest(idle_for=seconds(0)))).closed == 1
    assert await listed(serving) == []


async def test_closing_very_many(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.open(range(1000), "next-value")
    assert (await serving.stub.CloseSessions(pb.CloseSessionsRequest(model="next-value"))).closed == 1000
    await wire.until(lambda wire: len(wire.faults) == 1000)
    assert len(serving.host.directory) == 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"ids": ["a"], "model": "next-word"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"ids": ["a"], "idle_for": seconds(0)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"idle_for": seconds(-1)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model": "nothing"}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_nothing_is_closed(serving: Serving, fields: dict[str, Any], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await serving.stub.CloseSessions(pb.CloseSessionsRequest(**fields))
    assert raised.value.code() is code
    assert len(await listed(serving)) == 4


async def test_a_negative_idle_time_finds_nothing(serving: Serving) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await listed(serving, idle_for=seconds(-1))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_answers_held_back_end_with_their_session() -> None:
    """Else they would be taken for those of the next session with the handle."""
    ledger = new_ledger(True, 100)
    host = Host(Limits(), Metrics("test"), Clock(), ledger=ledger)
    model = host.add_model(WORDS, MixingWords(), 8)
    stream = host.connect()
    host.receive(stream, opening([0, 1], "words"))
    host.receive(stream, words([0, 0, 1], [3, 4, 5]))
    while host.ready:
        host.tick()
    assert stream.backlog == 3
    host.close_now(model, np.array([0]))
    host.receive(stream, opening([0], "words"))
    assert ledger.held is not None
    ledger.held.release(ledger.held.mark)
    replies = drained(stream)
    assert [(answer.handle, answer.step) for answer in replies.observed] == [(1, 1)]
    assert replies.reasons == ["SESSION_CLOSED"]
    assert stream.backlog == 0
