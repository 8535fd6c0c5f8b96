"""What a session can do besides observing, and what is done to sessions of other clients."""

import asyncio
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest
from google.rpc import code_pb2
from tests.client.fake import WORDS, Fake, Serving, status
from tests.client.test_sdk import until

from hiddenstate import (
    AccessDenied,
    AnswersLost,
    AsyncClient,
    GeneratedWord,
    InvalidInput,
    ResourceExhausted,
    RewindLimit,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    SnapshotInvalid,
    Unavailable,
    ValuePrediction,
)
from hiddenstate_proto import hiddenstate_pb2 as pb

AWAY = status("STORE_UNAVAILABLE", code_pb2.UNAVAILABLE, retry_after=0.01)
BUSY = status("GENERATION_LIMIT", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.01)


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """A fake server that stores what it is told to."""
    serving = Serving(Fake(pb.DURABILITY_BEHIND, rewind_limit=64))
    await serving.start()
    yield serving
    await serving.stop()


# rewinding and forking


async def test_rewind(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe_many([1.0, 2.0, 3.0])
    prediction = await session.rewind(2)
    assert isinstance(prediction, ValuePrediction)
    assert (prediction.mean, prediction.step, session.step, session.rewinds) == (1.0, 1, 1, 1)
    assert (await session.observe(10.0)).mean == 11.0
    assert serving.fake.sessions["s"].applied == [1.0, 10.0]
    with pytest.raises(RewindLimit, match="holds 2 observations"):
        await session.rewind(3)
    serving.fake.sessions["s"].oldest = 2
    with pytest.raises(RewindLimit) as caught:
        await session.rewind()
    assert caught.value.metadata["oldest"] == "2"
    with pytest.raises(InvalidInput):
        await session.rewind(0)


async def test_fork(client: AsyncClient, serving: Serving) -> None:
    async with client.session("values", labels={"user": "me"}) as session:
        observing = asyncio.create_task(session.observe(1.0))
        copying = asyncio.create_task(session.fork())
        later = asyncio.create_task(session.observe(2.0))
        copy = await copying
        assert copy.id != session.id
        assert (copy.step, copy.labels) == (1, {"user": "me"})
        assert (await copy.observe(10.0)).mean == 11.0
        assert (await observing).mean, (await later).mean == (1.0, 3.0)
        several = await session.fork(3)
        assert len({fork.id for fork in several} | {session.id, copy.id}) == 5
        assert [(await fork.observe(5.0)).mean for fork in several] == [8.0] * 3
        with pytest.raises(InvalidInput):
            await session.fork(0)
        full = status("SESSION_LIMIT", code_pb2.RESOURCE_EXHAUSTED)
        serving.fake.question_refusals = [full, full]
        with pytest.raises(ResourceExhausted):
            await session.fork(2)
        assert client._connection.protocol.sessions == 5
    await copy.close()


async def test_a_fork_that_is_cut_off_is_asked_for_again(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values")
    await session.observe(1.0)
    serving.fake.answering.clear()
    copying = asyncio.create_task(session.fork())
    await until(lambda: "fork" in serving.fake.frames)
    serving.fake.crash()
    serving.fake.answering.set()
    copy = await copying
    assert (await copy.observe(2.0)).mean == 3.0
    assert (await session.observe(3.0)).mean == 4.0


async def test_a_fork_given_up_leaves_no_session(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.answering.clear()
    copying = asyncio.create_task(session.fork())
    await until(lambda: len(serving.fake.sessions) == 2)
    copying.cancel()
    serving.fake.answering.set()
    await until(lambda: list(serving.fake.sessions) == ["s"])


# snapshots


async def test_export_and_restore(client: AsyncClient) -> None:
    session = await client.session("values", id="s", labels={"a": "b"})
    await session.observe_many([1.0, 2.0])
    snapshot = await session.export()
    assert snapshot == await client.export("s")
    async with client.restore(snapshot) as copy:
        assert (copy.step, copy.model.name, copy.labels) == (2, "values", {"a": "b"})
        assert (await copy.observe(3.0)).mean == 6.0
    named = await client.restore(snapshot, "mine")
    assert named.id == "mine"
    with pytest.raises(SessionExists):
        await client.restore(snapshot, "mine")
    for bad in (b"forged", snapshot[1:]):
        with pytest.raises(SnapshotInvalid):
            await client.restore(bad)
    with pytest.raises(InvalidInput):
        client.restore(b"")


# continuations


async def test_generated_words(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s")
    await session.observe("the")
    words = [item async for item in session.generate(5, seed=1, temperature=0.5, top_k=3, top_p=0.9)]
    assert words == [GeneratedWord(WORDS[i % 8], 0.5) for i in range(3, 8)]
    assert session.step == 1
    asked = serving.fake.generating[-1]
    assert (asked.count, asked.temperature, asked.top_k, asked.seed) == (5, 0.5, 3, 1)
    assert asked.top_p == pytest.approx(0.9)
    until_mat = [word async for word, _ in session.generate(20, seed=0, stop=["mat", "."])]
    assert until_mat == ["the", "cat", "sat", "on", "mat"]
    with pytest.raises(InvalidInput, match="'zebra'"):
        session.generate(5, stop="zebra")
    with pytest.raises(InvalidInput, match="quantiles are for models of values"):
        session.generate(5, quantiles=[0.5])
    for bad in (0, -1):
        with pytest.raises(InvalidInput):
            session.generate(bad)
    with pytest.raises(InvalidInput):
        session.generate(1, seed=-1)


async def test_generated_values(client: AsyncClient) -> None:
    session = await client.session("values")
    assert [value async for value in session.generate(4, seed=0)] == [0.0, 1.0, 2.0, 3.0]
    paths = np.array([path async for path in session.generate(4, seed=0, paths=3)])
    assert paths.shape == (4, 3)
    assert paths[1].tolist() == [1.0, 1.1, 1.2]
    quantiles = np.array([row async for row in session.generate(2, seed=0, quantiles=[0.1, 0.9])])
    assert quantiles.shape == (2, 2)
    pairs = await client.session("pairs")
    assert np.array([row async for row in pairs.generate(4, seed=0)]).shape == (4, 2)
    assert np.array([row async for row in pairs.generate(4, seed=0, paths=3)]).shape == (4, 3, 2)
    with pytest.raises(InvalidInput, match="single path"):
        session.generate(3, paths=2, commit=True)  # type: ignore[call-overload]
    with pytest.raises(InvalidInput, match="models of words"):
        session.generate(3, top_k=5)


async def test_what_is_taken_is_committed(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s")
    await session.observe("the")
    taken = [word async for word, _ in session.generate(4, seed=1, commit=True)]
    assert (len(taken), session.step) == (4, 5)
    assert serving.fake.sessions["s"].applied == [2, 3, 4, 5, 6]
    async for word, _ in session.generate(9, seed=3, commit=True):
        if word == WORDS[1]:
            break
    assert (await session.peek()).step == 8
    assert serving.fake.sessions["s"].applied[5:] == [7, 0, 1]
    pairs = await client.session("pairs", id="p")
    async with pairs.generate(3, seed=0, commit=True) as generation:
        await anext(generation)
        await anext(generation)
    assert serving.fake.sessions["p"].applied == [0.0, 1.0]
    assert pairs.step == 2


async def test_a_continuation_goes_on_after_a_cut(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words")
    await session.observe("the")
    serving.fake.pieces = 1
    generation = session.generate(7, seed=1)
    first = [await anext(generation) for _ in range(3)]
    serving.fake.pieces = 1000
    serving.fake.crash()
    words = [*first, *[word async for word in generation]]
    assert words == [GeneratedWord(WORDS[i % 8], 0.5) for i in range(3, 10)]


async def test_a_continuation_is_lost_where_the_session_moved_on(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words")
    serving.fake.pieces = 1
    generation = session.generate(7, seed=1)
    await anext(generation)
    await session.observe("the")
    serving.fake.crash()
    with pytest.raises(AnswersLost, match="has moved on"):
        [word async for word in generation]


async def test_a_continuation_ends_early(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words")
    serving.fake.pieces = 1
    generation = session.generate(7)
    await anext(generation)
    await generation.close()
    await until(lambda: bool(serving.fake.cancelled))
    assert serving.fake.cancelled == [serving.fake.generating[0].call]
    generation = session.generate(7)
    await anext(generation)
    await session.close()
    with pytest.raises(SessionClosed):
        [item async for item in generation]


# refusals


async def test_what_the_server_cannot_do_now_is_tried_again(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words")
    await session.observe("the")
    for work in (session.rewind, session.fork, session.export, session.rewarm, session.peek):
        serving.fake.question_refusals = [AWAY] * 3
        await work()
    serving.fake.question_refusals = [BUSY] * 3
    assert len([word async for word in session.generate(4)]) == 4
    serving.fake.question_refusals = [AWAY] * 1_000_000
    with pytest.raises(Unavailable, match="STORE_UNAVAILABLE"):
        await session.export(timeout=0.1)
    serving.fake.question_refusals = []
    assert await session.export()
    serving.fake.question_refusals = [status("INTERNAL", code_pb2.INTERNAL)]
    refused = session.generate(4)
    observing = asyncio.create_task(session.observe("cat"))
    with pytest.raises(Exception, match="INTERNAL"):
        await anext(refused)
    assert (await observing).step == 1


async def test_versions(client: AsyncClient) -> None:
    session = await client.session("words", version="1")
    await session.observe("the")
    await session.rewarm()
    assert (session.model.version, session.step) == ("2", 1)
    await session.rewarm("1")
    assert session.model.version == "1"
    assert (await session.observe("cat")).step == 2
    reloaded = await client.reload_models()
    assert (reloaded.loaded, reloaded.retired) == (("words/2",), ("words/1",))
    assert reloaded.refused == {"values/9": "it is broken"}


# sessions of other clients


async def test_lists_are_filtered(client: AsyncClient, serving: Serving) -> None:
    for number in range(5):
        await client.session("values", id=f"v{number}", labels={"odd": str(number % 2), "all": "yes"})
    await client.session("words", id="w")
    assert [s.id for s in await client.sessions(labels={"odd": "1", "all": "yes"})] == ["v1", "v3"]
    assert [s.id for s in await client.sessions("words")] == ["w"]
    serving.fake.sessions["v2"].used -= 100
    assert [s.id for s in await client.sessions(idle=50)] == ["v2"]
    info = await client.get_session("v3")
    assert (info.labels, info.place, info.durable_step, info.rewinds) == ({"odd": "1", "all": "yes"}, "arena", 0, 0)
    resumed = await client.session("values", id="v3", resume=True)
    assert resumed.labels == info.labels
    with pytest.raises(InvalidInput):
        client.session("values", id="v3", resume=True, labels={"a": "b"})


async def test_closing_many(client: AsyncClient, serving: Serving) -> None:
    for number in range(5):
        await client.session("values", id=f"v{number}", labels={"odd": str(number % 2)})
    assert await client.close_sessions(["v0", "unknown"]) == 1
    assert await client.close_sessions(labels={"odd": "1"}) == 2
    assert await client.close_sessions(model="values", idle=0) == 2
    assert serving.fake.sessions == {}
    for nothing in ({}, {"ids": ["a"], "model": "values"}):
        with pytest.raises(InvalidInput, match="which sessions"):
            await client.close_sessions(**nothing)  # type: ignore[arg-type]


async def test_forking_what_another_client_holds(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    async with AsyncClient(serving.address) as other:
        copies = await other.fork("s", 2)
        assert [copy.step for copy in copies] == [1, 1]
        resumed = await other.session("values", id=copies[0].id, resume=True)
        assert (await resumed.observe(2.0)).mean == 3.0
        with pytest.raises(SessionNotFound):
            await other.fork("never")
    assert (await session.observe(5.0)).mean == 6.0


async def test_watching(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    async with AsyncClient(serving.address) as other, await other.watch("s") as watch:
        first = await anext(watch)
        assert isinstance(first, ValuePrediction)
        assert (first.mean, first.step) == (1.0, 1)
        await session.observe_many([2.0, 3.0])
        assert [(await anext(watch)).step for _ in range(2)] == [2, 3]
        # the connection breaks, and two predictions are missed
        states = serving.fake.watchers.pop("s")
        await session.observe_many([4.0, 5.0, 6.0])
        states[0].put_nowait(None)
        assert (await anext(watch)).step == 6
        assert watch.skipped == 2
        await session.observe(7.0)
        assert (await anext(watch)).step == 7
        await session.close()
        serving.fake.watchers["s"][0].put_nowait(None)
        with pytest.raises(SessionClosed):
            await anext(watch)
    with pytest.raises(SessionNotFound):
        await client.watch("never")


# who it is


async def test_tokens_and_tenants(serving: Serving) -> None:
    serving.fake.token = "right"
    async with AsyncClient(serving.address, token="right", tenant="us", metadata={"more": "yes"}) as client:
        await client.models()
        await client.session("values")
    assert serving.fake.metadata["hiddenstate-tenant"] == "us"
    assert serving.fake.metadata["more"] == "yes"
    for token in (None, "wrong"):
        async with AsyncClient(serving.address, token=token) as client:
            with pytest.raises(AccessDenied) as caught:
                await client.models()
            assert caught.value.reason == "UNAUTHENTICATED"
            with pytest.raises(AccessDenied):
                await client.fleet("values").observe(["a"], [1.0])


# what lasts


async def test_nothing_is_lost_when_the_server_restarts(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    fleet = client.fleet("values")
    ids = np.arange(300)
    for number in range(1, 21):
        if number % 4 == 0:
            serving.fake.crash()
        if number % 3 == 0:
            serving.fake.store()
        assert (await session.observe(float(number))).mean == number * (number + 1) / 2
        assert ((await fleet.observe(ids, np.full(300, number))).mean == number * (number + 1) / 2).all()
    assert serving.fake.sessions["s"].applied == list(range(1, 21))
    await serving.stop()
    serving.fake.crash()
    waiting = asyncio.create_task(session.observe(21.0))
    await asyncio.sleep(0.1)
    await serving.start()
    assert (await waiting).mean == 231.0
    serving.fake.store()
    await session.heartbeat()
    assert session.durable_step == 21


async def test_quiet_sessions_make_room(serving: Serving) -> None:
    async with AsyncClient(serving.address, max_retained=100) as client:
        sessions = [await client.session("values") for _ in range(3)]
        for session in sessions[:2]:
            await session.observe_many(np.zeros(45))
        serving.fake.store()
        tasks = [asyncio.create_task(sessions[2].observe(float(x))) for x in range(20)]
        assert [(await task).step for task in tasks] == list(range(1, 21))
        assert serving.fake.frames.count("heartbeat") == 1
        assert (await client.fleet("values").observe(range(30), np.zeros(30))).errors == {}
        with pytest.raises(ResourceExhausted, match="max_retained") as caught:
            await sessions[0].observe_many(np.zeros(90))
        assert caught.value.reason == "CLIENT_RETAINED"
        serving.fake.store()
        assert len(await sessions[0].observe_many(np.zeros(90))) == 90


async def test_a_draining_server_is_left_at_once(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    draining = status("DRAINING", code_pb2.UNAVAILABLE, retry_after=5.0)
    async with asyncio.timeout(3):
        serving.fake.drop_streams(draining)
        assert (await session.observe(2.0)).mean == 3.0
        serving.fake.refusals = [draining]
        assert (await session.observe(3.0)).mean == 6.0
    assert not math.isnan(session.step)
