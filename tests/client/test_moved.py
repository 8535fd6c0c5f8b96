"""Sessions that turn out to be in another version: no token is read in a vocabulary it was not written in."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from google.rpc import code_pb2
from tests.client.fake import OTHER_WORDS, WORDS, Fake, Serving, status
from tests.client.test_sdk import until

from hiddenstate import AsyncClient, InvalidInput, SessionMoved, WordPrediction
from hiddenstate_proto import hiddenstate_pb2 as pb


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """A fake server that stores what it is told to."""
    serving = Serving(Fake(pb.DURABILITY_BEHIND, rewind_limit=64))
    await serving.start()
    yield serving
    serving.fake.answering.set()
    await serving.stop()


async def cut_and_move(serving: Serving, id: str, version: str) -> None:
    """While nobody is connected, somebody else moves the session."""
    await serving.stop()
    serving.fake.sessions[id].version = version
    await serving.start()


async def test_with_the_same_words_it_goes_on(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    await session.observe("the")
    await cut_and_move(serving, "s", "2")
    assert (await session.observe("cat")).step == 2
    assert serving.fake.sessions["s"].applied == [WORDS.index("the"), WORDS.index("cat")]
    assert session.model.version == "2"


async def test_with_other_words_it_is_not_fed_what_they_are_not(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    await session.observe("the")
    await serving.stop()
    waiting = asyncio.create_task(session.observe("cat"))
    await asyncio.sleep(0.05)
    serving.fake.sessions["s"].version = "9"
    await serving.start()
    with pytest.raises(SessionMoved, match="version 9 of words") as caught:
        await waiting
    assert caught.value.reason == "SESSION_MOVED"
    with pytest.raises(SessionMoved):
        await session.observe("cat")
    assert serving.fake.sessions["s"].applied == [WORDS.index("the")]
    again = await client.session("words", id="s", resume=True)
    prediction = await again.observe("cat")
    assert (again.model.version, again.step) == ("9", 2)
    assert serving.fake.sessions["s"].applied[-1] == OTHER_WORDS.index("cat")
    assert isinstance(prediction, WordPrediction)
    assert prediction.top[0][0] == OTHER_WORDS[(2 + 2) % len(WORDS)]


async def test_of_a_fleet_only_those_that_moved_are_refused(client: AsyncClient, serving: Serving) -> None:
    fleet = client.fleet("words", version="1")
    await fleet.observe([0, 1], np.array([2, 3]))
    moved, stayed = sorted(serving.fake.sessions.values(), key=lambda held: held.total)
    await cut_and_move(serving, moved.id, "9")
    answers = await fleet.observe([0, 1], np.array([4, 5]))
    assert {id: type(error) for id, error in answers.errors.items()} == {0: SessionMoved}
    assert (moved.applied, stayed.applied) == ([2], [3, 5])


async def test_a_move_that_is_cut_off_is_asked_for_again(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    await session.observe("the")
    serving.fake.answering.clear()
    moving = asyncio.create_task(session.rewarm("9"))
    await until(lambda: "rewarm" in serving.fake.frames)
    assert serving.fake.sessions["s"].version == "9"
    serving.fake.drop_streams()
    serving.fake.answering.set()
    await moving
    await session.observe("cat")
    assert serving.fake.sessions["s"].applied[-1] == OTHER_WORDS.index("cat")


async def test_what_is_asked_during_a_move_means_the_new_version(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    await session.observe("the")
    serving.fake.answering.clear()
    moving = asyncio.create_task(session.rewarm("9"))
    await until(lambda: "rewarm" in serving.fake.frames)
    asked = [asyncio.create_task(work) for work in (session.observe("cat"), session.observe_many("cat cat"))]
    copying = asyncio.create_task(session.fork())
    peeking = asyncio.create_task(session.peek())
    with pytest.raises(InvalidInput, match="await the rewarm"):
        session.generate(3)
    serving.fake.answering.set()
    await asyncio.gather(moving, *asked)
    cat = OTHER_WORDS.index("cat")
    assert serving.fake.sessions["s"].applied == [WORDS.index("the"), cat, cat, cat]
    assert (await copying).model.version == "9"
    assert await peeking == await session.peek()


async def test_a_move_that_fails_leaves_it_where_it_was(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    serving.fake.question_refusals = [status("NO_SUCH_VERSION", code_pb2.NOT_FOUND)]
    with pytest.raises(Exception, match="NO_SUCH_VERSION"):
        await session.rewarm("9")
    await session.observe("cat")
    assert serving.fake.sessions["s"].applied == [WORDS.index("cat")]


async def test_who_follows_it_reads_each_prediction_in_its_version(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="s", version="1")
    async with AsyncClient(serving.address) as other, await other.watch("s") as watch:
        seen = [await anext(watch)]
        await session.observe("the")
        await session.rewarm("9")
        await session.observe("cat")
        seen += [await anext(watch) for _ in range(2)]
    tops = [prediction.top[0][0] for prediction in seen if isinstance(prediction, WordPrediction)]
    assert tops == [WORDS[2], WORDS[3], OTHER_WORDS[4]]
