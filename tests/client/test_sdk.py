"""The asyncio client against a server that fails on demand."""

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest
from google.rpc import code_pb2
from tests.client.fake import WORDS, Serving, status

from hiddenstate import (
    AnswersLost,
    AsyncClient,
    ClientClosed,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ResourceExhausted,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionTakenOver,
    Unavailable,
    ValuePrediction,
    WordPrediction,
)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something the server does in its own time."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


BUSY = status("SESSION_BACKLOG", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.01)


async def test_words(client: AsyncClient, serving: Serving) -> None:
    async with client.session("words") as session:
        before = await session.peek()
        assert before.step == 0
        prediction = await session.observe("The")
        assert isinstance(prediction, WordPrediction)
        assert prediction.top == [("cat", 0.75), ("<unk>", 0.25)]
        assert (prediction.surprise, prediction.step, session.step) == (1.0, 1, 1)
        assert await session.peek() == prediction
        assert session.model.name == "words"
        assert session.idle_timeout == 600
    assert serving.fake.sessions == {}


async def test_a_text_is_split_and_its_surprises_summed(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("words", id="mine")
    prediction = await session.observe("The cat, unheard of, sat.")
    assert serving.fake.sessions["mine"].applied == [2, 3, 0, 0, 4, 7]
    assert prediction.surprise == sum(range(1, 7))
    assert prediction.step == 6


async def test_many_words(client: AsyncClient) -> None:
    session = await client.session("words")
    predictions = await session.observe_many("the cat sat")
    assert [p.step for p in predictions] == [1, 2, 3]
    assert predictions.top_words[:, 0].tolist() == ["cat", "sat", "on"]
    assert predictions[-1].top[0] == ("on", 0.75)
    assert [p.step for p in predictions[1:]] == [2, 3]
    assert len(await session.observe_many([])) == 0
    assert (await session.observe_many(["<eos>", "dog"])).steps.tolist() == [4, 5]


async def test_values(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="sensor")
    prediction = await session.observe(20)
    assert isinstance(prediction, ValuePrediction)
    assert prediction.mean == 20.0
    low, high = prediction.interval(0.9)
    assert low == pytest.approx(20 - 1.6448536)
    assert high == pytest.approx(20 + 1.6448536)
    assert prediction.quantile(0.5) == 20.0
    await session.observe(None)
    await session.observe(math.nan)
    assert np.isnan(serving.fake.sessions["sensor"].applied[1:]).all()
    column = await session.observe_many([1.0, None, 2.0])
    assert column.mean.tolist() == [21.0, 21.0, 23.0]
    assert column.lower[0] == pytest.approx(21 - 1.6448536)
    assert column.upper.shape == (3,)


async def test_several_columns(client: AsyncClient) -> None:
    session = await client.session("pairs")
    prediction = await session.observe([1.0, 2.0])
    assert isinstance(prediction.mean, np.ndarray)
    assert prediction.mean.tolist() == [1.0, 1.0]
    assert np.asarray(prediction.interval(0.5)).shape == (2, 2)
    prediction = await session.observe({"a": 3.0})
    assert np.asarray(prediction.mean).tolist() == [4.0, 4.0]
    assert (await session.observe_many(np.ones((5, 2)))).mean.shape == (5, 2)
    with pytest.raises(InvalidInput, match="no column c; the model's columns are a, b"):
        await session.observe({"c": 1.0})
    with pytest.raises(InvalidInput, match=r"2 value\(s\) per observation \(a, b\), not 1 values"):
        await session.observe(1.0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, "text", [1.0, 2.0], object()])
async def test_bad_values_are_refused_before_they_are_sent(client: AsyncClient, serving: Serving, bad: float) -> None:
    session = await client.session("values")
    with pytest.raises(InvalidInput):
        await session.observe(bad)
    assert "observe" not in serving.fake.frames
    await session.observe(1.0)


@pytest.mark.parametrize("bad", ["", " ,", 3.0, None])
async def test_bad_words(client: AsyncClient, bad: str) -> None:
    session = await client.session("words")
    with pytest.raises(InvalidInput):
        await session.observe(bad)


async def test_bad_tokens(client: AsyncClient) -> None:
    fleet = client.fleet("words")
    with pytest.raises(InvalidInput, match="from 0 to 7"):
        await fleet.observe(["a"], np.array([len(WORDS)]))


async def test_what_waits_together_leaves_together(client: AsyncClient, serving: Serving) -> None:
    sessions = await asyncio.gather(*(client.session("values") for _ in range(50)))
    await asyncio.gather(*(session.observe(1.0) for session in sessions), sessions[0].observe(2.0))
    assert serving.fake.rows == [51]
    assert serving.fake.frames.count("open") == 1


async def test_calls_of_one_session_keep_their_order(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="one")
    calls = [
        asyncio.create_task(work)
        for work in (session.observe(1.0), session.peek(), session.observe(2.0), session.peek(), session.close())
    ]
    done = await asyncio.gather(*calls)
    assert [p.mean for p in done if isinstance(p, ValuePrediction)] == [1.0, 1.0, 3.0, 3.0]
    with pytest.raises(SessionClosed):
        await session.observe(3.0)
    assert serving.fake.frames == ["open", "observe", "peek", "observe", "peek", "close"]


async def test_the_vocabulary_is_fetched_once(client: AsyncClient, serving: Serving) -> None:
    for _ in range(3):
        await client.session("words")
    assert serving.fake.gets == 1


async def test_models_and_sessions(client: AsyncClient) -> None:
    assert [model.name for model in await client.models()] == ["words", "values", "pairs"]
    model = await client.model("words")
    assert model.vocabulary is not None
    assert model.vocabulary.word(3) == "cat"
    assert "CAT" in model.vocabulary
    for id in "abcde":
        await client.session("values", id=id)
    assert [session.id for session in await client.sessions()] == list("abcde")
    with pytest.raises(ModelNotFound) as caught:
        await client.session("other")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.metadata["available"] == "words, values, pairs"


async def test_metadata_goes_along(serving: Serving) -> None:
    async with AsyncClient(serving.address, metadata={"tenant": "me"}) as client:
        await client.session("values")
    assert serving.fake.metadata["tenant"] == "me"


# connections that break


async def test_nothing_is_lost_or_applied_twice_when_the_stream_breaks(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    for number in range(1, 31):
        if number % 5 == 0:
            serving.fake.drop_streams()
        prediction = await session.observe(number)
        assert prediction.mean == number * (number + 1) / 2
        assert prediction.step == number
    assert serving.fake.sessions["s"].applied == list(range(1, 31))


async def test_an_applied_but_unanswered_observation_is_not_applied_again(
    client: AsyncClient, serving: Serving
) -> None:
    session = await client.session("values", id="s")
    serving.fake.answering.clear()
    waiting = asyncio.create_task(session.observe(5.0))
    await until(lambda: bool(serving.fake.sessions["s"].applied))
    serving.fake.drop_streams()
    serving.fake.answering.set()
    assert (await waiting).mean == 5.0
    assert serving.fake.sessions["s"].applied == [5.0]
    assert (await session.observe(6.0)).mean == 11.0


async def test_answers_that_are_lost_are_named(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.answering.clear()
    first = asyncio.create_task(session.observe(1.0))
    many = asyncio.create_task(session.observe_many([2.0, 3.0]))
    await until(lambda: len(serving.fake.sessions["s"].applied) == 3)
    serving.fake.drop_streams()
    serving.fake.answering.set()
    with pytest.raises(AnswersLost) as caught:
        await first
    assert caught.value.metadata == {"first": "1", "last": "1"}
    with pytest.raises(AnswersLost) as caught:
        await many
    assert caught.value.metadata == {"first": "2", "last": "2"}
    assert (await session.observe(4.0)).mean == 10.0
    assert session.step == 4


async def test_sessions_go_on_after_the_server_was_away(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    await serving.stop()
    waiting = asyncio.create_task(session.observe(2.0))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await serving.start()
    assert (await waiting).mean == 3.0


async def test_a_session_the_server_lost(client: AsyncClient, serving: Serving) -> None:
    lost = await client.session("values", id="lost")
    kept = await client.session("values", id="kept")
    await lost.observe(1.0)
    await kept.observe(1.0)
    del serving.fake.sessions["lost"]
    serving.fake.drop_streams()
    with pytest.raises(SessionLost) as caught:
        await lost.observe(2.0)
    assert isinstance(caught.value, SessionNotFound)
    assert caught.value.reason == "SESSION_NOT_FOUND"
    assert (await kept.observe(2.0)).mean == 3.0
    with pytest.raises(SessionLost):
        await lost.peek()
    await lost.close()
    assert lost.step == 1


async def test_an_expired_session_says_so(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    serving.fake.ended["s"] = "SESSION_EXPIRED"
    del serving.fake.sessions["s"]
    with pytest.raises(SessionExpired) as caught:
        await session.observe(2.0)
    assert caught.value.reason == "SESSION_EXPIRED"
    with pytest.raises(SessionExpired):
        await client.session("values", id="s", resume=True)


async def test_no_server(unused_port: int) -> None:
    async with AsyncClient(f"localhost:{unused_port}") as client:
        with pytest.raises(Unavailable, match=f"no server can be reached at localhost:{unused_port}"):
            await client.models()
        with pytest.raises(Unavailable):
            await client.fleet("values").observe(["a"], [1.0])


async def test_unavailable_once_the_time_is_over(serving: Serving) -> None:
    async with AsyncClient(serving.address) as client:
        session = await client.session("values")
        await serving.stop()
        with pytest.raises(Unavailable):
            await session.observe(1.0, timeout=0.3)
        with pytest.raises(Unavailable):
            await client.models(timeout=0.3)


async def test_resume(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await session.observe(1.0)
    async with AsyncClient(serving.address) as other:
        resumed = await other.session("values", id="s", resume=True)
        assert resumed.step == 1
        assert (await resumed.observe(2.0)).mean == 3.0
        with pytest.raises(SessionExists):
            await other.session("values", id="s")
    with pytest.raises(SessionNotFound):
        await client.session("values", id="never", resume=True)
    with pytest.raises(InvalidInput):
        client.session("values", resume=True)


async def test_a_session_taken_over(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values")
    serving.fake.refusals = [status("SESSION_TAKEN_OVER", code_pb2.ABORTED)]
    with pytest.raises(SessionTakenOver):
        await session.observe(1.0)


# limits and time


async def test_a_refused_observation_is_tried_again(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.refusals = [BUSY] * 5
    calls = [asyncio.create_task(session.observe(float(x))) for x in range(10)]
    assert [(await call).step for call in calls] == list(range(1, 11))
    assert serving.fake.sessions["s"].applied == list(range(10))


async def test_the_server_keeps_refusing(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.refusals = [BUSY] * 1_000_000
    with pytest.raises(ResourceExhausted) as caught:
        await session.observe(1.0, timeout=0.1)
    assert caught.value.reason == "SESSION_BACKLOG"
    assert caught.value.retry_after == pytest.approx(0.01)
    serving.fake.refusals = []
    assert (await session.observe(2.0)).step == 2  # what was sent once is not taken back
    assert serving.fake.sessions["s"].applied == [1.0, 2.0]


async def test_an_open_is_tried_again(client: AsyncClient, serving: Serving) -> None:
    full = status("SESSION_LIMIT", code_pb2.RESOURCE_EXHAUSTED, retry_after=0.01)
    serving.fake.open_refusals = [full] * 3
    assert (await client.session("values")).step == 0
    serving.fake.open_refusals = [full] * 1_000_000
    with pytest.raises(ResourceExhausted, match="SESSION_LIMIT"):
        await client.session("values", timeout=0.1)


async def test_a_bad_observation_moves_the_later_ones_up(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.refusals = [status("INPUT_INVALID", code_pb2.INVALID_ARGUMENT)]
    calls = [asyncio.create_task(session.observe(float(x))) for x in (1, 2, 3)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[0], InvalidInput)
    assert [p.step for p in done[1:] if isinstance(p, ValuePrediction)] == [1, 2]
    assert serving.fake.sessions["s"].applied == [2.0, 3.0]


async def test_too_much_at_once(serving: Serving) -> None:
    async with AsyncClient(serving.address, max_unanswered=10) as client:
        session = await client.session("values")
        serving.fake.answering.clear()
        waiting = [asyncio.create_task(session.observe(1.0)) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="max_unanswered") as caught:
            await session.observe(1.0)
        assert caught.value.reason == "CLIENT_BACKLOG"
        serving.fake.answering.set()
        await asyncio.gather(*waiting)
        assert (await session.observe(1.0)).step == 11


async def test_a_deadline(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    serving.fake.answering.clear()
    with pytest.raises(DeadlineExceeded, match="within"):
        await session.observe(1.0, timeout=0.05)
    serving.fake.answering.set()
    assert (await session.observe(2.0)).mean == 3.0


async def test_cancelling_one_harms_no_other(client: AsyncClient, serving: Serving) -> None:
    sessions = await asyncio.gather(*(client.session("values", id=f"s{i}") for i in range(20)))
    serving.fake.answering.clear()
    tasks = [asyncio.create_task(session.observe(1.0)) for session in sessions]
    await asyncio.sleep(0.02)
    for task in tasks[::2]:
        task.cancel()
    again = [asyncio.create_task(session.observe(2.0)) for session in sessions]
    serving.fake.answering.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in done] == [True, False] * 10
    assert [(await task).mean for task in again] == [3.0] * 20


async def test_what_was_given_up_before_it_left_is_not_sent(client: AsyncClient, serving: Serving) -> None:
    session = await client.session("values", id="s")
    await serving.stop()
    await until(lambda: client._connection.trouble is not None)
    with pytest.raises(Unavailable):
        await session.observe(1.0, timeout=0.1)
    await serving.start()
    assert (await session.observe(2.0)).step == 1
    assert serving.fake.sessions["s"].applied == [2.0]


async def test_an_open_given_up_leaves_no_session(client: AsyncClient, serving: Serving) -> None:
    await client.session("values", id="first")
    serving.fake.answering.clear()
    opening = asyncio.ensure_future(client.session("values", id="second"))
    await until(lambda: "second" in serving.fake.sessions)
    opening.cancel()
    serving.fake.answering.set()
    await until(lambda: "second" not in serving.fake.sessions)
    assert "first" in serving.fake.sessions


async def test_a_closed_client(serving: Serving) -> None:
    client = AsyncClient(serving.address)
    session = await client.session("values")
    fleet = client.fleet("values")
    serving.fake.answering.clear()
    waiting = asyncio.create_task(session.observe(1.0))
    await asyncio.sleep(0.02)
    await client.close()
    await client.close()
    with pytest.raises(ClientClosed):
        await waiting
    for work in (session.observe(1.0), session.peek(), client.models(), fleet.observe(["a"], [1.0])):
        with pytest.raises(ClientClosed):
            await work
    with pytest.raises(ClientClosed):
        await client.session("values")
    await session.close()


async def test_heartbeat(client: AsyncClient, serving: Serving) -> None:
    async with client.session("values", idle_timeout=5) as session:
        await session.heartbeat()
        assert session.idle_timeout == 5
    assert "heartbeat" in serving.fake.frames


# fleets


async def test_a_fleet_opens_its_sessions_itself(client: AsyncClient, serving: Serving) -> None:
    async with client.fleet("values") as fleet:
        ids = np.array(["a", "b", "c"])
        predictions = await fleet.observe(ids, [1.0, 2.0, math.nan])
        assert predictions.mean.tolist() == [1.0, 2.0, 0.0]
        predictions = await fleet.observe(["c", "a", "c", "d"], [10.0, 20.0, 30.0, 40.0])
        assert predictions.mean.tolist() == [10.0, 21.0, 40.0, 40.0]
        assert predictions.steps.tolist() == [2, 2, 3, 1]
        assert predictions.surprise.tolist() == [2.0, 2.0, 3.0, 1.0]
        assert predictions.lower == pytest.approx(predictions.mean - 1.6448536)
        assert predictions.quantile(0.5).tolist() == predictions.mean.tolist()
        assert predictions.errors == {}
        assert len(fleet) == 4
        assert "d" in fleet
        await fleet.heartbeat()
        await fleet.close(["d", "unknown"])
        assert "d" not in fleet
        assert (await fleet.observe(["d"], [1.0])).steps.tolist() == [1]
    assert serving.fake.sessions == {}


async def test_a_large_fleet_is_cut_into_frames(client: AsyncClient, serving: Serving) -> None:
    fleet = client.fleet("values")
    client._connection.protocol.max_frame_rows = 100
    ids = np.arange(1050)
    values = np.random.default_rng(0).normal(size=1050)
    assert (await fleet.observe(ids, values)).mean == pytest.approx(values)
    order = np.random.default_rng(1).permutation(1050)
    assert (await fleet.observe(ids[order], values[order])).mean == pytest.approx(2 * values[order])
    assert max(serving.fake.rows) == 100


async def test_a_fleet_of_words(client: AsyncClient) -> None:
    fleet = client.fleet("words")
    predictions = await fleet.observe([1, 2], ["the", "zebra"])
    assert predictions.top_words.tolist() == [["cat", "<unk>"], ["cat", "<unk>"]]
    assert predictions.top_tokens.tolist() == [[3, 0], [3, 0]]
    assert (await fleet.observe([1, 2], np.array([2, 3]))).steps.tolist() == [2, 2]
    assert predictions[0].top[0] == ("cat", 0.75)


async def test_one_session_of_a_fleet_ends(client: AsyncClient, serving: Serving) -> None:
    fleet = client.fleet("values")
    await fleet.observe(["a", "b"], [1.0, 2.0])
    gone = next(id for id, held in serving.fake.sessions.items() if held.applied == [1.0])
    serving.fake.ended[gone] = "SESSION_EXPIRED"
    del serving.fake.sessions[gone]
    predictions = await fleet.observe(["b", "a"], [3.0, 4.0])
    assert predictions.mean[0] == 5.0
    assert np.isnan(predictions.mean[1])
    assert list(predictions.errors) == ["a"]
    assert isinstance(predictions.errors["a"], SessionExpired)
    predictions = await fleet.observe(["b", "a"], [3.0, 4.0])
    assert predictions.mean.tolist() == [8.0, 4.0]
    assert predictions.errors == {}


async def test_a_fleet_survives_broken_streams(client: AsyncClient, serving: Serving) -> None:
    fleet = client.fleet("values")
    ids = np.arange(500)
    for number in range(1, 9):
        if number % 2 == 0:
            serving.fake.drop_streams()
        predictions = await fleet.observe(ids, np.full(500, float(number)))
        assert (predictions.mean == number * (number + 1) / 2).all()


async def test_a_fleet_with_unequal_columns(client: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match="2 ids for 1 observations"):
        await client.fleet("values").observe(["a", "b"], [1.0])


async def test_an_empty_fleet_frame(client: AsyncClient) -> None:
    assert len(await client.fleet("values").observe([], [])) == 0


async def test_no_place_for_one_of_a_fleet(client: AsyncClient, serving: Serving) -> None:
    fleet = client.fleet("values")
    serving.fake.open_refusals = [status("SESSION_LIMIT", code_pb2.RESOURCE_EXHAUSTED)]
    predictions = await fleet.observe(["a", "b"], [1.0, 2.0])
    assert list(predictions.errors) == ["a"]
    assert predictions.mean[1] == 2.0
    assert len(fleet) == 1
