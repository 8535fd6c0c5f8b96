"""Following a session without holding it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.server.conftest import Serve, Serving
from tests.server.doubles import Clock, make_host
from tests.server.test_service import alone, assert_same, reason_of
from tests.server.wire import Answer, Wire, answers, close, fork, opening, peek, rewind, values, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.stepping import watching
from hiddenstate_server.versions.repository import LoadedModel


class Follower:
    """A call of WatchSession."""

    def __init__(self, serving: Serving, session_id: str, **options: Any) -> None:
        self.call = serving.stub.WatchSession(pb.WatchSessionRequest(id=session_id, **options))
        self.seen: list[Answer] = []
        self.skipped = 0

    async def see(self, count: int) -> None:
        """Waits until `count` predictions were seen in all."""
        async with asyncio.timeout(60):
            while len(self.seen) < count:
                response: Any = await self.call.read()
                self.seen += answers(response.predictions)
                self.skipped += response.skipped
        assert len(self.seen) == count

    async def ends(self) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(60):
                await self.call.read()
        return raised.value.code(), reason_of(raised.value)


@pytest.fixture
async def serving(serve: Serve) -> AsyncIterator[Serving]:
    """A server that, in the end, has no watchers left."""
    serving = await serve()
    yield serving
    await serving.settled(lambda host: not host.watching)


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    wire = serving.wire()
    await wire.open([5], "next-word", version="1", ids=["s"])
    return wire


async def test_the_current_prediction_and_every_later_one(
    serving: Serving, wire: Wire, loaded: list[LoadedModel]
) -> None:
    await wire.send(words([5] * 2, [4, 6]))
    await wire.answered(2)
    follower = Follower(serving, "s")
    await follower.see(1)
    await wire.send(words([5], [7]), peek([5]), words([5], [7], [3]), rewind([5], [1]), words([5], [8]))
    await wire.answered(5)
    await follower.see(4)
    assert [seen.step for seen in follower.seen] == [2, 3, 1, 2]
    first, second = alone(loaded, "next-word", [4, 6, 7]), alone(loaded, "next-word", [4, 8])
    for seen, outputs in zip(follower.seen, [first[2], first[3], second[1], second[2]], strict=True):
        assert seen.handle == 0
        assert_same(seen.columns, outputs)
        assert seen.words == []
    follower.call.cancel()


async def test_with_words(serving: Serving, wire: Wire) -> None:
    follower = Follower(serving, "s", with_words=True)
    await follower.see(1)
    await wire.send(words([5], [4]))
    await follower.see(2)
    assert all(len(seen.words) == 5 for seen in follower.seen)
    follower.call.cancel()


async def test_values_and_several_followers(serving: Serving, loaded: list[LoadedModel]) -> None:
    wire = serving.wire()
    await wire.open(range(20), "next-value", ids=[f"v{i}" for i in range(20)])
    followers = [Follower(serving, name) for name in ("v3", "v3", "v7")]
    for follower in followers:
        await follower.see(1)
    serving.host.check_integrity()
    for step in range(5):
        await wire.send(values(range(20), [float(handle + step) for handle in range(20)]))
    for follower, handle in zip(followers, (3, 3, 7), strict=True):
        await follower.see(6)
        expected = alone(loaded, "next-value", [[float(handle + step)] for step in range(5)])
        for seen, outputs in zip(follower.seen[1:], expected[1:], strict=True):
            assert_same(seen.columns, outputs)
        follower.call.cancel()


@pytest.mark.usefixtures("wire")
async def test_a_session_taken_over_is_followed_on(serving: Serving) -> None:
    follower = Follower(serving, "s")
    await follower.see(1)
    other = serving.wire()
    await other.open([0], "", ids=["s"], mode=pb.OPEN_MODE_RESUME)
    await other.send(words([0], [4]), fork([0], [1]), words([1], [3]))
    await follower.see(2)
    follower.call.cancel()


async def test_the_end(serving: Serving, wire: Wire) -> None:
    follower = Follower(serving, "s")
    await follower.see(1)
    await wire.send(words([5], [4]), close([5]))
    await follower.see(2)
    assert await follower.ends() == (grpc.StatusCode.NOT_FOUND, "SESSION_CLOSED")
    await wire.open([0], "next-word", ids=["short"], lease=0.05)
    follower = Follower(serving, "short")
    await follower.see(1)
    assert await follower.ends() == (grpc.StatusCode.NOT_FOUND, "SESSION_EXPIRED")


async def test_nobody_there(serving: Serving) -> None:
    assert await Follower(serving, "nobody").ends() == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_draining(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.open([0], "next-word", ids=["s"])
    follower = Follower(serving, "s")
    await follower.see(1)
    draining = asyncio.create_task(serving.worker.drain())
    assert await follower.ends() == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await draining


async def test_what_is_left_out_is_counted() -> None:
    host, model, _ = make_host(Clock(), rewind_steps=0)
    stream = host.connect()
    host.receive(stream, opening([0], "words", ids=["s"]))
    with model.watched(0, with_words=False) as watcher:
        host.receive(stream, words([0] * 1000, [3] * 1000))
        while host.ready:
            host.tick()
        response = await watcher.next()
        assert response.skipped == 1001 - watching.QUEUE
        seen = answers(response.predictions)
        assert [answer.step for answer in seen] == list(range(1001 - watching.QUEUE, 1001))
        host.receive(stream, words([0], [3]))
        host.tick()
        assert (await watcher.next()).skipped == 0
    assert not host.watching
