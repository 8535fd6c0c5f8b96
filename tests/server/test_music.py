"""Frames of notes: observed, refused, continued, forked and taken back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.server.conftest import Serve
from tests.server.test_generate import Client
from tests.server.wire import fork, generate, opening, peek, rewind, texts, values, words

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.generation.sampling import COLDEST, draw_notes
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.versions.repository import LoadedModel

NOTES = 88


@pytest.fixture
def client(loaded: list[LoadedModel]) -> Iterator[Client]:
    """Of a host of the music model."""
    host = Host(Limits(max_sessions=100), Metrics("test"))
    for model in loaded:
        if model.info.task == "music":
            host.add_model(*model)
    yield Client(host)
    host.check_integrity()
    for stream in list(host.streams.values()):
        host.disconnect(stream)
    assert host.generating.active == 0


def frames(count: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((count, NOTES)) < 0.05).astype(np.float64)


def fed(client: Client, *handles: int, count: int = 5) -> np.ndarray:
    """Opens sessions and feeds them the same frames; the last probabilities."""
    client.send(opening(handles, "tunes"))
    for frame in frames(count):
        client.send(values(handles, [frame] * len(handles)))
    probabilities: np.ndarray = client.run().observed[-1].columns["probabilities"]
    return probabilities


def test_a_surprise_is_the_frame_s_under_the_prediction_before(client: Client) -> None:
    client.send(opening([0], "tunes"), peek([0]))
    before = client.run().peeked[0].columns
    assert np.isnan(before["surprises"]).all()
    assert before["probabilities"].shape == (NOTES,)
    for frame in frames(6):
        client.send(values([0], [frame]))
        answer = client.run().observed[-1].columns
        expected = -np.log(np.where(frame == 1, before["probabilities"], 1 - before["probabilities"])).sum()
        np.testing.assert_allclose(answer["surprises"], expected, rtol=1e-4)
        before = answer


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (values([0], [[0.5] + [0.0] * 87]), "something else than 0 and 1"),
        (values([0], [[np.nan] + [0.0] * 87]), "something else than 0 and 1"),
        (values([0], [[-1.0] + [0.0] * 87]), "something else than 0 and 1"),
        (values([0, 0], [[1.0] * 88, [2.0] * 88]), "something else than 0 and 1"),
        (values([0], [[1.0] * 12]), "takes 88 values per observation, not 12"),
        (words([0], [60]), "takes values"),
        (texts([0], ["c"]), "takes values"),
    ],
)
def test_what_is_no_frame_is_refused(client: Client, bad: pb.StreamRequest, message: str) -> None:
    client.send(opening([0], "tunes"), bad)
    (fault,) = client.run().faults
    assert fault.reason == "INPUT_INVALID"
    assert message in fault.message
    client.send(values([0], frames(1)))
    assert not client.run().faults[1:]


def test_a_continuation_is_a_piece_fed_back(client: Client) -> None:
    probabilities = fed(client, 0, 1)
    client.send(generate(0, 0, 6, temperature=0.0), generate(0, 1, 6, seed=4))
    client.run()
    likely, drawn = (client.replies.continuations[call].values.reshape(6, NOTES) for call in (0, 1))
    np.testing.assert_array_equal(likely[0], probabilities > 0.5)
    uniforms = np.random.default_rng(4).random((6, 1, NOTES))
    for step in range(6):
        np.testing.assert_array_equal(drawn[step], draw_notes(probabilities[None], 1.0, uniforms[step])[0])
        client.send(values([1], drawn[step : step + 1]))
        probabilities = client.run().of(1)[-1].columns["probabilities"]
    assert client.replies.of(0)[-1].step == 5, "the session stays where it is"


def test_with_a_seed_it_is_the_same_alone_and_with_others(client: Client) -> None:
    fed(client, 0)
    client.send(generate(0, 0, 20, seed=1, temperature=0.8))
    alone = client.run().continuations[0].values
    client.send(*(generate(0, call, 20, seed=call, temperature=0.8) for call in range(1, 5)))
    together = client.run().continuations
    np.testing.assert_array_equal(together[1].values, alone)
    assert not np.array_equal(together[2].values, alone)


@pytest.mark.parametrize(
    "options", [{"top_k": 3}, {"top_p": 0.5}, {"stop_tokens": [1]}, {"paths": 2}, {"quantiles": [0.5]}, {"count": 0}]
)
def test_what_notes_have_not_is_refused(client: Client, options: dict[str, object]) -> None:
    client.send(opening([0], "tunes"), generate(0, 5, **({"count": 3} | options)))  # type: ignore[arg-type]
    (fault,) = client.run().faults
    assert (fault.reason, fault.call) == ("INPUT_INVALID", 5)


def test_forks_and_rewinds_are_where_the_session_was(client: Client) -> None:
    there = fed(client, 0)
    client.send(fork([0], [1]))
    client.run()
    client.send(values([0, 0], frames(2, seed=1)), rewind([0], [5]), peek([1]))
    client.run()
    np.testing.assert_array_equal(client.replies.peeked[-1].columns["probabilities"], there)
    np.testing.assert_allclose(client.replies.rewound[-1].columns["probabilities"], there, rtol=1e-5)


@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    temperature=st.floats(0, 100),
    seed=st.integers(0, 2**32),
)
def test_impossible_notes_stay_silent_and_certain_ones_sound(
    probabilities: list[float], temperature: float, seed: int
) -> None:
    given_ = np.array([probabilities], np.float32)
    drawn = draw_notes(given_, temperature, np.random.default_rng(seed).random(given_.shape))
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    assert (drawn[given_ == 0] == 0).all()
    assert (drawn[given_ == 1] == 1).all()
    if temperature < COLDEST:
        np.testing.assert_array_equal(drawn, given_ > 0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_notes_are_drawn_as_often_as_their_logits_over_the_temperature_say(temperature: float) -> None:
    p, count = 0.2, 20_000
    uniforms = np.random.default_rng(0).random((1, count))
    drawn = draw_notes(np.full((1, count), p, np.float32), temperature, uniforms)
    expected = 1 / (1 + (p / (1 - p)) ** (-1 / temperature))
    assert stats.binomtest(int(drawn.sum()), count, expected).pvalue > 1e-3


async def test_versions_of_other_notes_are_no_relatives(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("music")
    random_bundle(folder, "music", version=1)
    random_bundle(folder, "music", version=2, lowest=60, notes=12)
    serving = await serve(models=folder)
    response = await serving.stub.GetModel(pb.GetModelRequest(name="music"))
    assert (response.model.task, response.model.notes.lowest, response.model.notes.count) == (pb.TASK_MUSIC, 60, 12)
    assert not response.model.HasField("values")
    wire = serving.wire()
    await wire.send(opening([0], "music", version="1", shadow_version="2"))
    await wire.until(lambda wire: wire.faults)
    assert wire.faults[0].reason == "INPUT_INVALID"
