"""The SDK against the real server with small random models."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from hiddenstate import (
    AsyncClient,
    Client,
    InvalidInput,
    ModelNotFound,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    SessionTakenOver,
    ValuePrediction,
    WordPrediction,
)


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture
async def waiting(server: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server) as client:
        yield client


def test_words(client: Client) -> None:
    with client.session("next-word") as session:
        before = session.peek()
        assert isinstance(before, WordPrediction)
        assert before.step == 0
        assert math.isnan(before.surprise)
        assert len(before.top) == 5
        word, probability = before.top[2]
        prediction = session.observe(word)
        assert prediction.surprise == pytest.approx(-math.log(probability), rel=1e-4)
        assert prediction.step == session.step == 1
        column = session.observe_many(["the", "never-heard", "<eos>"])
        assert column.steps.tolist() == [2, 3, 4]
        assert column.top_words.shape == (3, 5)
        assert np.isfinite(column.surprise).all()
        assert session.peek() == WordPrediction(column[-1].top, column[-1].surprise, 4)


def test_a_text_at_once_equals_its_words_one_by_one(client: Client) -> None:
    text = "the w1 w2, the unheard w7 . w3"
    with client.session("next-word") as once, client.session("next-word") as singly:
        column = once.observe_many(text)
        vocabulary = once.model.vocabulary
        assert vocabulary is not None
        for word, prediction in zip(vocabulary.split(text), column, strict=True):
            alone = singly.observe(word)
            assert alone.surprise == pytest.approx(prediction.surprise, abs=1e-5)
            assert [word for word, _ in alone.top] == [word for word, _ in prediction.top]


def test_values(client: Client) -> None:
    with client.session("next-value") as session:
        before = session.peek()
        assert isinstance(before, ValuePrediction)
        assert math.isnan(float(before.mean))
        for value in (21.0, 21.5, None, 22.0):
            prediction = session.observe(value)
        low, high = prediction.interval(0.9)
        assert low < prediction.mean < high
        assert prediction.quantile(0.05) == pytest.approx(low)
        assert session.step == 4
    with client.session("weather") as session:
        prediction = session.observe_many([[1.0, 2.0], [1.5, math.nan], [2.0, 3.0]])[-1]
        assert np.shape(prediction.mean) == (2,)


def test_a_long_warm_up(client: Client) -> None:
    with client.session("next-value") as session:
        column = session.observe_many(np.sin(np.arange(9000) / 10))
        assert column.steps.tolist() == list(range(1, 9001))
        assert np.isfinite(column.mean).all()
        assert (column.lower < column.upper).all()


def test_a_fleet_equals_its_sessions(client: Client) -> None:
    values = np.random.default_rng(0).normal(size=(4, 6))
    with client.fleet("next-value") as fleet:
        rounds = [fleet.observe(range(6), row) for row in values]
    for i in range(6):
        with client.session("next-value") as session:
            alone = session.observe_many(values[:, i])
        assert alone.mean == pytest.approx([predictions.mean[i] for predictions in rounds], rel=1e-4)
        assert alone.surprise[1:] == pytest.approx([p.surprise[i] for p in rounds[1:]], rel=1e-4)


def test_a_fleet_beyond_one_frame(client: Client) -> None:
    ids = np.arange(20_000)
    with client.fleet("next-value") as fleet:
        fleet.observe(ids, ids.astype(float))
        predictions = fleet.observe(ids[::-1], ids[::-1] + 1.0)
    assert (predictions.steps == 2).all()
    assert predictions.errors == {}
    assert (np.diff(predictions.mean) < 0).all()


def test_a_fleet_of_words(client: Client) -> None:
    with client.fleet("next-word") as fleet:
        predictions = fleet.observe(["a", "b", "a"], ["the", "w3", "w4"])
        assert predictions.steps.tolist() == [1, 1, 2]
        assert predictions.top_words.shape == (3, 5)


def test_how_sessions_end(client: Client, server: str) -> None:
    with client.session("next-value", id="mine") as session:
        session.observe(1.0)
        with pytest.raises(SessionExists):
            client.session("next-value", id="mine")
        info = client.get_session("mine")
        assert (info.step, info.model, info.attached) == (1, "next-value", True)
        with Client(server) as other:
            taken = other.session("next-value", id="mine", resume=True)
            assert taken.step == 1
            assert taken.observe(2.0).step == 2
            with pytest.raises(SessionTakenOver):
                session.observe(2.0)
            taken.close()
    with pytest.raises(SessionClosed):
        client.get_session("mine")
    with pytest.raises(SessionClosed):
        client.session("next-value", id="mine", resume=True)
    with pytest.raises(SessionNotFound):
        client.get_session("never")


def test_a_session_outlives_its_client(server: str) -> None:
    with Client(server) as first:
        first.session("next-value", id="kept").observe_many([1.0, 2.0])
    with Client(server) as second, second.session("next-value", id="kept", resume=True) as session:
        assert session.step == 2


def test_what_is_served(client: Client) -> None:
    names = {"next-word", "next-value", "weather", "music", "forecasting", "outlook"}
    assert {model.name for model in client.models()} == names
    assert client.model("weather").targets == (0, 1)
    with pytest.raises(ModelNotFound, match="next-value"):
        client.session("missing")
    with pytest.raises(ModelNotFound):
        client.session("next-value", version="99")
    with client.session("next-value", idle_timeout=33) as session:
        assert session.idle_timeout == 33
        session.heartbeat()
        assert session.id in [info.id for info in client.sessions("next-value")]
    with pytest.raises(InvalidInput):
        client.session("next-value", id="not a good id!")


async def test_hundreds_of_tasks(waiting: AsyncClient) -> None:
    async def work(number: int) -> ValuePrediction:
        async with waiting.session("next-value") as session:
            for value in range(10):
                prediction = await session.observe(float(number + value))
            return prediction

    predictions = await asyncio.gather(*(work(number) for number in range(200)))
    assert all(prediction.step == 10 for prediction in predictions)
    means = [float(prediction.mean) for prediction in predictions]
    assert means == sorted(means)


async def test_cancellation_harms_nobody(waiting: AsyncClient) -> None:
    session = await waiting.session("next-value")
    tasks = [asyncio.create_task(session.observe(float(value))) for value in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [result for result in done if isinstance(result, ValuePrediction)]
    assert len(kept) == 33
    assert [result.step for result in kept] == sorted(result.step for result in kept)
    assert (await session.observe(1.0)).step == session.step
