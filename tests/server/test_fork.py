"""Copies of sessions, over a stream and by a call of their own."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tests.server.conftest import Serve, Serving
from tests.server.doubles import Clock, MixingWords, drained, make_host
from tests.server.test_service import alone, assert_same, reason_of
from tests.server.wire import Wire, close, fork, opening, peek, rewind, u4, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.versions.repository import LoadedModel

LABELS = {"app": "keyboard", "user": "7"}


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    return await serve()


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    """A stream with a labelled session of words, 0."""
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["s"], labels=LABELS, lease=300)
    return wire


async def test_copies_go_their_own_ways(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0] * 3, [4, 5, 6]), fork([0, 0], [1, 2]), words([0], [7]))
    await wire.until(lambda wire: {1, 2} <= set(wire.opened))
    assert [wire.opened[handle][1] for handle in (1, 2)] == [3, 3]
    names = {wire.opened[handle][0] for handle in (0, 1, 2)}
    assert len(names) == 3
    assert all(len(name) == 32 for name in names - {"s"})
    await wire.send(peek([1, 2]), words([1, 2, 0], [8, 9, 8], [4, 4, 5]))
    await wire.until(lambda wire: len(wire.observed) == 7 and len(wire.peeked) == 2)
    for answer in wire.peeked:
        assert_same(answer.columns, alone(loaded, "next-word", [4, 5, 6])[3])
    for handle, tokens in ((0, [4, 5, 6, 7, 8]), (1, [4, 5, 6, 8]), (2, [4, 5, 6, 9])):
        assert_same(wire.of(handle)[-1].columns, alone(loaded, "next-word", tokens)[-1])


async def test_a_copy_has_history_labels_and_lease(serving: Serving, wire: Wire, loaded: list[LoadedModel]) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 100).tolist()
    await wire.send(words([0] * 100, tokens), fork([0], [1]), words([0] * 50, [3] * 50))
    await wire.until(lambda wire: 1 in wire.opened)
    await wire.send(rewind([1], [60]), words([1], [9], [61]))
    await wire.until(lambda wire: wire.of(1))
    assert_same(wire.rewound[0].columns, alone(loaded, "next-word", tokens[:60])[-1])
    assert_same(wire.of(1)[0].columns, alone(loaded, "next-word", [*tokens[:60], 9])[-1])
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id=wire.opened[1][0]))).session
    assert dict(session.labels) == LABELS
    assert (session.idle_timeout.ToSeconds(), session.attached, session.rewinds) == (300, True, 1)


async def test_forks_keep_their_place(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0], [4]), fork([0], [1]), words([0], [5]), rewind([0], [0]), fork([0], [2]), close([0]))
    await wire.until(lambda wire: wire.closed and {1, 2} <= set(wire.opened))
    assert [wire.opened[handle][1] for handle in (1, 2)] == [1, 0]
    await wire.send(fork([1], [0]))
    await wire.until(lambda wire: wire.opened[0][1] == 1)
    await wire.send(peek([0]))
    await wire.until(lambda wire: wire.peeked)
    assert_same(wire.peeked[0].columns, alone(loaded, "next-word", [4])[1])


async def test_half_closing_lets_forks_finish(wire: Wire) -> None:
    await wire.send(words([0] * 500, [3] * 500), fork([0], [1]))
    assert await wire.finish() is grpc.StatusCode.OK
    assert wire.opened[1][1] == 500


@pytest.mark.parametrize(
    ("frame", "handle", "reason"),
    [
        pytest.param(fork([9], [1]), 1, "HANDLE_UNKNOWN", id="unknown handle"),
        pytest.param(fork([0], [0]), 0, "HANDLE_IN_USE", id="onto itself"),
        pytest.param(fork([0], [65_536]), 65_536, "HANDLE_IN_USE", id="handle out of range"),
        pytest.param(fork([0, 0], [1]), None, "FRAME_INVALID", id="too few new handles"),
        pytest.param(fork([], []), None, "FRAME_INVALID", id="of nothing"),
        pytest.param(pb.StreamRequest(fork=pb.Fork(handles=u4([0]))), None, "FRAME_INVALID", id="no new handles"),
    ],
)
async def test_refused(wire: Wire, frame: pb.StreamRequest, handle: int | None, reason: str) -> None:
    await wire.send(frame, words([0], [3], [1]))
    await wire.until(lambda wire: wire.faults and wire.observed)
    assert [(fault.handle, fault.reason) for fault in wire.faults] == [(handle, reason)]


async def test_handles_on_their_way(wire: Wire) -> None:
    """Until the copy is there its handle can neither be used nor given away."""
    await wire.send(words([0] * 2000, [3] * 2000), fork([0, 0], [1, 1]), words([1], [3]), opening([1], "next-word"))
    await wire.until(lambda wire: 1 in wire.opened)
    assert wire.reasons == ["HANDLE_IN_USE", "HANDLE_UNKNOWN", "HANDLE_IN_USE"]
    assert wire.opened[1][1] == 2000


async def test_closing_session(wire: Wire) -> None:
    await wire.send(words([0] * 500, [1] * 500), close([0]), fork([0], [1]), opening([1], "next-word"))
    await wire.until(lambda wire: wire.closed and wire.faults and 1 in wire.opened)
    assert wire.reasons == ["SESSION_CLOSED"]


async def test_no_more_room_than_there_is(serve: Serve) -> None:
    serving = await serve(max_sessions=3, store="none")
    wire = serving.wire()
    await wire.open([0], "next-word", ids=["s"])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await serving.stub.ForkSession(pb.ForkSessionRequest(id="s", count=3))
    assert reason_of(raised.value) == "SESSION_LIMIT"
    assert len(serving.host.directory) == 1
    await wire.send(fork([0] * 4, [1, 2, 3, 4]))
    await wire.until(lambda wire: len(wire.faults) == 2 and {1, 2} <= set(wire.opened))
    assert [(fault.handle, fault.reason, fault.retry) for fault in wire.faults] == [
        (3, "SESSION_LIMIT", True),
        (4, "SESSION_LIMIT", True),
    ]
    await wire.send(close([1]))
    await wire.until(lambda wire: wire.closed)
    await wire.send(fork([0], [3]))
    await wire.until(lambda wire: 3 in wire.opened)


def test_draining_and_dropped_forks() -> None:
    host, model, _ = make_host(Clock(), max_stream_backlog=6)
    stream = host.connect()
    host.receive(stream, opening([0], "words", ids=["s"]))
    host.draining = True
    host.receive(stream, fork([0], [1]))
    host.draining = False
    runtime = model.runtime
    assert isinstance(runtime, MixingWords)
    runtime.fail = True
    for frame in (words([0] * 4, [1] * 4), fork([0], [1]), fork([0], [2]), fork([0], [3])):
        host.receive(stream, frame)
    host.tick()
    runtime.fail = False
    host.receive(stream, fork([0], [1]))
    other = host.connect()
    host.receive(other, opening([0], "", ids=["s"], mode=pb.OPEN_MODE_RESUME))
    replies = drained(stream)
    assert [(fault.handle, fault.reason) for fault in replies.faults if fault.handle] == [
        (1, "DRAINING"),
        (3, "STREAM_BACKLOG"),
        (1, "INTERNAL"),
        (2, "INTERNAL"),
        (1, "SESSION_TAKEN_OVER"),
    ]
    assert stream.backlog == 0
    assert not any(map(stream.is_bound, range(4)))
    host.check_integrity()


# The unary call.


async def test_detached_copies(serving: Serving, wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0] * 3, [4, 5, 6]))
    await wire.answered(3)
    copies = (await serving.stub.ForkSession(pb.ForkSessionRequest(id="s", count=2))).sessions
    assert len({copy.id for copy in copies} | {"s"}) == 3
    for copy in copies:
        assert (copy.step, copy.attached, dict(copy.labels)) == (3, False, LABELS)
    other = serving.wire()
    await other.open([5], "", ids=[copies[0].id], mode=pb.OPEN_MODE_RESUME)
    await other.send(words([5], [7], [4]))
    await other.answered(1)
    assert_same(other.observed[0].columns, alone(loaded, "next-word", [4, 5, 6, 7])[-1])
    one = (await serving.stub.ForkSession(pb.ForkSessionRequest(id=copies[1].id))).sessions
    assert len(one) == 1


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"id": "nobody"}, grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        ({"id": "s", "count": 20_000}, grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID"),
    ],
)
@pytest.mark.usefixtures("wire")
async def test_call_refused(serving: Serving, fields: dict[str, Any], code: grpc.StatusCode, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await serving.stub.ForkSession(pb.ForkSessionRequest(**fields))
    assert (raised.value.code(), reason_of(raised.value)) == (code, reason)
    assert len(serving.host.directory) == 1
