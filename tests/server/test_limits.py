"""At every limit: RESOURCE_EXHAUSTED with RetryInfo at once, and what was accepted is still answered."""

from __future__ import annotations

import asyncio

import grpc
from google.rpc import code_pb2
from tests.server.conftest import Serve
from tests.server.doubles import Clock, MixingWords, drained, make_host
from tests.server.wire import Replies, opening, peek, texts, values, words

from hiddenstate_proto import hiddenstate_pb2 as pb


def assert_exhausted(replies: Replies, reason: str, count: int) -> None:
    assert replies.reasons == [reason] * count
    assert all(fault.code == code_pb2.RESOURCE_EXHAUSTED and fault.retry for fault in replies.faults)


async def test_sessions(serve: Serve) -> None:
    wire = (await serve(max_sessions=3, store="none")).wire()
    await wire.send(opening(range(5), "next-value"))
    await wire.until(lambda wire: len(wire.faults) == 2)
    assert_exhausted(wire, "SESSION_LIMIT", 2)
    assert sorted(wire.opened) == [0, 1, 2]


async def test_sessions_make_room_when_detached_oldest_first(serve: Serve) -> None:
    serving = await serve(max_sessions=3, store="none")
    first, second = serving.wire(), serving.wire()
    await first.open([0, 1], "next-value", ids=["old", "older"])
    await first.send(values([0], [1.0]))
    await first.until(lambda wire: wire.observed)
    await first.cancel()
    await serving.settled(lambda host: len(host.streams) == 1)
    await second.open([0, 1], "next-value")
    await second.send(opening([2, 3], "", ids=["old", "older"], mode=pb.OPEN_MODE_RESUME))
    await second.until(lambda wire: wire.faults and 2 in wire.opened)
    assert second.opened[2] == ("old", 1)
    assert second.reasons == ["SESSION_EVICTED"]


async def test_waiting_in_a_session(serve: Serve) -> None:
    wire = (await serve(max_session_backlog=10)).wire()
    await wire.send(opening([0, 1], "next-word"), words([0] * 15 + [1], [3] * 16))
    await wire.until(lambda wire: len(wire.observed) == 11 and len(wire.faults) == 5)
    assert_exhausted(wire, "SESSION_BACKLOG", 5)
    assert [fault.step for fault in wire.faults] == [11] * 5


async def test_waiting_on_a_stream(serve: Serve) -> None:
    wire = (await serve(max_stream_backlog=10)).wire()
    await wire.send(opening(range(15), "next-word"), words(range(15), [3] * 15))
    await wire.until(lambda wire: len(wire.observed) == 10 and len(wire.faults) == 5)
    assert_exhausted(wire, "STREAM_BACKLOG", 5)


def test_peeks_count_too() -> None:
    host, *_ = make_host(Clock(), max_stream_backlog=4)
    stream, replies = host.connect(), Replies()
    host.receive(stream, opening([0], "words"))
    host.receive(stream, peek([0] * 6))
    replies.add(pb.StreamResponse.FromString(stream.take()[0]))
    assert_exhausted(replies, "STREAM_BACKLOG", 2)


async def test_sessions_per_stream(serve: Serve) -> None:
    wire = (await serve(max_sessions_per_stream=2)).wire()
    await wire.send(opening([0, 1, 2], "next-word"))
    await wire.until(lambda wire: wire.faults)
    assert wire.reasons == ["HANDLE_IN_USE"]


async def test_rows_in_a_frame(serve: Serve) -> None:
    wire = (await serve(max_frame_rows=4)).wire()
    await wire.send(opening([0], "next-word"), words([0] * 5, [3] * 5))
    await wire.until(lambda wire: wire.faults)
    assert wire.reasons == ["FRAME_INVALID"]
    assert wire.faults[0].metadata == {"limit": "4"}


async def test_a_client_that_does_not_read_is_not_read_from(serve: Serve) -> None:
    """Its replies stay bounded, and flow control holds it back; others are served."""
    serving = await serve(max_frame_rows=100, max_stream_backlog=300)
    call = serving.stub.Stream()
    await call.write(opening([0], "next-word"))
    written = 0

    async def flood() -> None:
        nonlocal written
        for _ in range(100_000):
            await call.write(texts([0] * 100, ["nobodyknowsthis"] * 100))
            written += 1

    flooding = asyncio.create_task(flood())
    before = -1
    while written != before:
        before = written
        await asyncio.sleep(1.0)
    stream = next(iter(serving.host.streams.values()))
    assert stream.unsent <= 500
    assert not flooding.done()
    other = serving.wire()
    await other.open([0], "next-word")
    await other.send(words([0], [3]))
    await other.until(lambda wire: wire.observed)
    flooding.cancel()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


def test_a_failing_step_is_answered_and_the_session_goes_on() -> None:
    host, model, _ = make_host(Clock())
    runtime = model.runtime
    assert isinstance(runtime, MixingWords)
    stream, replies = host.connect(), Replies()
    host.receive(stream, opening([0, 1], "words"))
    host.receive(stream, words([0, 0, 1], [3, 4, 5]))
    runtime.fail = True
    host.tick()
    runtime.fail = False
    host.check_integrity()
    host.receive(stream, words([0], [6], [1]))
    host.tick()
    drained(stream, replies)
    assert replies.reasons == ["INTERNAL"] * 3
    assert [(answer.handle, answer.step) for answer in replies.observed] == [(0, 1)]
    assert stream.backlog == 0
