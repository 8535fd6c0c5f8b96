"""Free-running continuations: what they say, that they leave the session alone, and that they wait their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scipy import stats
from tests.server.conftest import Serve
from tests.server.doubles import Clock, MixingWords, drained, make_host
from tests.server.wire import (
    Replies,
    cancel_generate,
    close,
    generate,
    opening,
    peek,
    rewind,
    values,
    words,
)

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.generation.generating import UNSENT_BYTES
from hiddenstate_server.generation.sampling import COLDEST, WordSampling, draw_values, draw_word
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import ValueOutputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.versions.repository import LoadedModel, load_models

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 2, "temperature": 0.7, "top_k": 10},
    {"seed": 3, "top_p": 0.8, "temperature": 1.5},
]


def done(*calls: int) -> Any:
    return lambda wire: all(wire.continuations[call].done for call in calls)


class Client:
    """A stream of a host without transport."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stream: Stream = host.connect()
        self.replies = Replies()

    def send(self, *frames: pb.StreamRequest) -> None:
        for frame in frames:
            self.host.receive(self.stream, frame)

    def read(self) -> Replies:
        """Takes all there is to be sent."""
        return drained(self.stream, self.replies, self.host.clock())

    def run(self) -> Replies:
        """Ticks, reading all the time, until nothing is left to do."""
        while self.host.ready:
            self.host.tick()
            self.host.check_integrity()
            self.read()
        return self.read()


@pytest.fixture
def host(loaded: list[LoadedModel]) -> Iterator[Host]:
    """Of the real models."""
    host = Host(Limits(max_sessions=100), Metrics("test"))
    for model in loaded:
        host.add_model(*model)
    yield host
    host.check_integrity()
    for stream in list(host.streams.values()):
        host.disconnect(stream)
    host.check_integrity()
    assert host.generating.active == 0


@pytest.fixture
def client(host: Host) -> Client:
    return Client(host)


# words


@pytest.mark.parametrize("fed", [[], [3, 9, 4]], ids=["fresh", "fed"])
def test_greedy_words_are_the_top_words_fed_back(client: Client, fed: list[int]) -> None:
    client.send(opening([0, 1], "next-word"))
    for token in fed:
        client.send(words([0, 1], [token, token]))
    client.send(generate(0, 7, 12, temperature=0.0, with_words=True))
    client.run()
    client.send(peek([1], with_words=True))
    answer = client.run().peeked[-1]
    for index in range(12):
        continuation = client.replies.continuations[7]
        assert continuation.tokens[index] == answer.columns["top_tokens"][0]
        assert continuation.words[index] == answer.words[0]
        np.testing.assert_allclose(continuation.probabilities[index], answer.columns["top_probabilities"][0], rtol=1e-5)
        client.send(words([1], [continuation.tokens[index]]), peek([1], with_words=True))
        answer = client.run().peeked[-1]
    assert len(client.replies.continuations[7].tokens) == 12


@pytest.mark.parametrize("options", OPTIONS)
def test_probabilities_are_those_before_temperature_and_cuts(client: Client, options: dict[str, Any]) -> None:
    client.send(opening([0, 1], "next-word"), words([0, 1], [5, 5]), generate(0, 0, 15, **options))
    continuation = client.run().continuations[0]
    client.send(words([1] * 15, continuation.tokens))
    surprises = [answer.columns["surprises"][0] for answer in client.run().of(1)[1:]]
    np.testing.assert_allclose(-np.log(continuation.probabilities), surprises, rtol=1e-4, atol=1e-5)


def test_the_session_is_left_alone_and_goes_on_at_once(client: Client) -> None:
    client.send(opening([0, 1], "next-word"), words([0, 1], [5, 5]), generate(0, 0, 50, seed=1))
    client.send(words([0, 0, 1, 1], [6, 7, 6, 7]))
    for _ in range(4):
        client.host.tick()
    assert len(client.read().observed) == 6, "observations waited for the continuation"
    assert not client.replies.continuations[0].done
    client.run()
    for one, other in zip(client.replies.of(0), client.replies.of(1), strict=True):
        assert one.step == other.step
        for name, column in one.columns.items():
            np.testing.assert_allclose(column, other.columns[name], rtol=1e-5, atol=1e-6)


def test_it_starts_where_the_session_is_when_reached(client: Client) -> None:
    client.send(opening([0, 1, 2], "next-word"))
    client.send(words([0] * 3, [5, 6, 7]), generate(0, 0, 9, seed=4), words([0], [8]))
    client.send(words([1] * 3, [5, 6, 7]))
    client.run()
    client.send(generate(1, 1, 9, seed=4))
    client.run()
    probabilities = {call: each.probabilities for call, each in client.replies.continuations.items()}
    np.testing.assert_allclose(probabilities[0], probabilities[1], rtol=1e-5)
    client.send(generate(0, 2, 9, seed=4), rewind([0], [3]), generate(0, 3, 9, seed=4))
    client.run()
    probabilities = {call: each.probabilities for call, each in client.replies.continuations.items()}
    np.testing.assert_allclose(probabilities[3], probabilities[0], rtol=1e-5)
    assert not np.allclose(probabilities[2][:1], probabilities[0][:1], rtol=1e-4)


def test_it_ends_after_a_stop_token(client: Client) -> None:
    client.send(opening([0], "next-word"), generate(0, 0, 40, seed=5))
    tokens = client.run().continuations[0].tokens
    assert len(tokens) == 40
    stop = tokens[10]
    client.send(generate(0, 1, 40, seed=5, stop_tokens=[stop, 49]))
    assert client.run().continuations[1].tokens == tokens[: min(tokens.index(stop), *(
        [tokens.index(49)] if 49 in tokens else [40]
    )) + 1]  # fmt: skip


@pytest.mark.parametrize("model", ["next-word", "next-value", "weather"])
def test_alone_or_with_others_it_says_the_same(client: Client, model: str) -> None:
    is_words = model == "next-word"
    width = 2 if model == "weather" else 1
    kinds: list[dict[str, Any]] = (
        OPTIONS if is_words else [{"seed": 1}, {"seed": 2, "paths": 90}, {"seed": 3, "paths": 9}]
    )
    client.send(opening([0, 1], model))
    for handle in (0, 1):
        for number in (4, 6, 5):
            client.send(words([handle], [number]) if is_words else values([handle], [[float(number)] * width]))
    alone = []
    for call, options in enumerate(kinds):
        client.send(generate(0, call, 30, **options))
        alone.append(client.run().continuations.pop(call))
    for call, options in enumerate(kinds * 3):
        client.send(generate(1, call, 30, **options))
    client.run()
    for call, continuation in client.replies.continuations.items():
        assert continuation.tokens == alone[call % len(kinds)].tokens
        np.testing.assert_allclose(continuation.values, alone[call % len(kinds)].values, rtol=1e-4)


def test_without_a_seed_continuations_differ(client: Client) -> None:
    client.send(opening([0], "next-word"), generate(0, 0, 30), generate(0, 1, 30))
    continuations = client.run().continuations
    assert continuations[0].tokens != continuations[1].tokens


# drawing words


def test_words_are_drawn_as_often_as_they_are_probable() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(20, 0.7))
    log_probabilities = np.log(probabilities).astype(np.float32)
    for sampling, expected in [
        (WordSampling(1.0, 0, 1.0), probabilities),
        (WordSampling(0.5, 0, 1.0), probabilities**2),
        (WordSampling(2.0, 5, 1.0), np.where(probabilities >= np.sort(probabilities)[-5], probabilities**0.5, 0)),
        (WordSampling(1.0, 0, 0.6), cut(probabilities, 0.6)),
        (WordSampling(1.0, 6, 0.5), cut(np.where(probabilities >= np.sort(probabilities)[-6], probabilities, 0), 0.5)),
    ]:
        drawn = [draw_word(log_probabilities, sampling, uniform) for uniform in rng.random(20_000)]
        counts = np.bincount(drawn, minlength=20)
        expected = expected / expected.sum()
        assert not counts[expected == 0].any()
        kept = expected > 0
        if kept.sum() > 1:
            assert stats.chisquare(counts[kept], expected[kept] * counts.sum()).pvalue > 1e-4


def cut(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest most probable that have `top_p` of the whole."""
    order = np.argsort(-probabilities)
    enough = int(np.argmax(np.cumsum(probabilities[order]) >= top_p * probabilities.sum()))
    kept = np.zeros_like(probabilities)
    kept[order[: enough + 1]] = probabilities[order[: enough + 1]]
    return kept


@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_a_cut_is_exact_in_a_large_vocabulary(top_p: float) -> None:
    """Whether few words have enough of the probability or many are needed."""
    log_probabilities = np.log(np.random.default_rng(3).dirichlet(np.full(3000, 0.3))).astype(np.float32)
    allowed = set(np.flatnonzero(cut(np.exp(log_probabilities.astype(np.float64)), top_p)).tolist())
    uniforms = np.linspace(0, 1, 20_000, endpoint=False)
    drawn = {draw_word(log_probabilities, WordSampling(1, 0, top_p), uniform) for uniform in uniforms}
    assert drawn <= allowed
    assert len(drawn) > 0.5 * len(allowed)


@pytest.mark.parametrize("sampling", [WordSampling(1, 0, 1), WordSampling(COLDEST, 0, 1), WordSampling(100, 3, 1e-9)])
@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1, 0)])
def test_the_ends_of_the_range_draw_words_too(sampling: WordSampling, uniform: float) -> None:
    log_probabilities = np.array([-np.inf, -1.0, -0.6, -2.0, -np.inf], np.float32)
    assert draw_word(log_probabilities, sampling, uniform) in (1, 2, 3)


# values


@pytest.mark.parametrize("freedom", [2.1, 5.0, 200.0, np.inf])
def test_values_are_drawn_from_the_distribution(freedom: float) -> None:
    shape = (40_000, 2)
    locations = np.broadcast_to([5.0, -3.0], shape)
    scales = np.broadcast_to([0.5, 2.0], shape)
    predicted = ValueOutputs(
        np.zeros(len(locations), np.float32), locations, scales, np.full(shape, freedom, np.float32)
    )
    drawn = draw_values(predicted, 1.0, np.random.default_rng(1).random((*shape, 2)))
    for column in range(2):
        distribution = stats.t(freedom, locations[0, column], scales[0, column])
        assert stats.kstest(drawn[:, column], distribution.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(np.sign(drawn - locations), rowvar=False)[0, 1]) < 0.02
    halved = draw_values(predicted, 0.5, np.random.default_rng(1).random((*shape, 2)))
    np.testing.assert_allclose(halved - locations, (drawn - locations) / 2)


def test_the_ends_of_the_range_draw_values_too() -> None:
    freedom = np.array([[2.1], [np.inf], [4.0]], np.float32)
    predicted = ValueOutputs(
        np.zeros(3, np.float32), np.array([[1.0], [1e30], [np.nan]]), np.array([[1e29], [1e30], [np.nan]]), freedom
    )
    for first in (0.0, np.nextafter(1, 0)):
        drawn = draw_values(predicted, 100.0, np.full((3, 1, 2), [first, 0.0]))
        assert np.isfinite(drawn[:2]).all()
        assert (np.abs(drawn[:2]) <= 1e30).all()
        assert np.isnan(drawn[2]).all()


def fed(client: Client, model: str, width: int = 1) -> dict[str, Any]:
    """Opens sessions 0 and 1 and feeds them; what is predicted of session 0."""
    client.send(opening([0, 1], model))
    for number in (4.0, 6.0, 5.5, 7.0):
        client.send(values([0, 1], [[number, -number][:width]] * 2))
    return client.run().of(0)[-1].columns


@pytest.mark.parametrize(("model", "width"), [("next-value", 1), ("weather", 2)])
def test_one_step_ahead_is_the_prediction(client: Client, model: str, width: int) -> None:
    predicted = fed(client, model, width)
    client.send(generate(0, 0, 1, paths=1000, seed=1))
    client.send(generate(0, 1, 1, paths=1000, seed=2, quantiles=[0.1, 0.5, 0.9]))
    client.run()
    paths = client.replies.continuations[0].values.reshape(1000, width)
    quantiles = client.replies.continuations[1].values.reshape(3, width)
    for column in range(width):
        location, scale = predicted["locations"][column], predicted["scales"][column]
        distribution = stats.t(predicted["degrees_of_freedom"][column], location, scale)
        assert stats.kstest(paths[:, column], distribution.cdf).pvalue > 1e-3
        # Three standard errors of a sample's quantile.
        exact = distribution.ppf([0.1, 0.5, 0.9])
        errors = np.sqrt(np.array([0.09, 0.25, 0.09]) / 1000) / distribution.pdf(exact)
        assert (np.abs(quantiles[:, column] - exact) < 3 * errors).all()


def test_a_path_is_a_series_fed_back(client: Client) -> None:
    """Of every path, the values further ahead are drawn from what a session would predict that is fed the path."""
    fed(client, "weather", 2)
    client.send(generate(0, 0, 5, paths=3, seed=9))
    paths = client.run().continuations[0].values.reshape(5, 3, 2)
    client.send(generate(0, 1, 5, paths=3, seed=9, temperature=0.0))
    straight = client.run().continuations[1].values.reshape(5, 3, 2)
    for step in range(5):
        location = client.replies.of(1)[-1].columns["locations"]
        np.testing.assert_allclose(straight[step], np.broadcast_to(location, (3, 2)), rtol=1e-5)
        client.send(values([1], straight[step, :1]))
        client.run()

    uniforms = np.random.default_rng(9).random((5, 3, 2, 2))
    client.send(opening([2], "weather"))
    for number in (4.0, 6.0, 5.5, 7.0):
        client.send(values([2], [[number, -number]]))
    for step in range(5):
        columns = client.run().of(2)[-1].columns
        predicted = ValueOutputs(*(columns[name][None] for name in ValueOutputs._fields))
        drawn = draw_values(predicted, 1.0, uniforms[step, 1:2])
        np.testing.assert_allclose(paths[step, 1], drawn[0], rtol=1e-3)
        client.send(values([2], paths[step, 1:2]))


def test_quantiles_are_those_of_the_paths(client: Client) -> None:
    fed(client, "next-value")
    client.send(generate(0, 0, 8, paths=100, seed=3), generate(0, 1, 8, paths=100, seed=3, quantiles=[0.25, 0.75]))
    client.send(generate(0, 2, 2, quantiles=[0.5]), generate(0, 3, 2))
    client.run()
    paths = client.replies.continuations[0].values.reshape(8, 100, 1)
    told = client.replies.continuations[1].values.reshape(8, 2, 1)
    np.testing.assert_allclose(np.quantile(paths, [0.25, 0.75], axis=1).swapaxes(0, 1), told, rtol=1e-4)
    assert client.replies.continuations[2].values.shape == (2,)
    assert client.replies.continuations[3].values.shape == (2,), "one path unless asked for more"


def test_targets_in_another_order_are_fed_to_their_columns(tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-value", seed=4, columns=2, targets=[1, 0])
    host = Host(Limits(max_sessions=9), Metrics("test"))
    (model,) = load_models(Settings(models=tmp_path, max_batch=8))
    host.add_model(*model)
    client = Client(host)
    fed(client, "next-value", 2)
    client.send(generate(0, 0, 4, temperature=0.0))
    straight = client.run().continuations[0].values.reshape(4, 2)
    for step in range(4):
        np.testing.assert_allclose(straight[step], client.replies.of(1)[-1].columns["locations"], rtol=1e-5)
        client.send(values([1], straight[step : step + 1, ::-1]))
        client.run()


# what cannot be asked for


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("next-word", {"count": 0}, "0 steps"),
        ("next-word", {"count": 10_001}, "10001 steps"),
        ("next-word", {"temperature": -1.0}, "temperature"),
        ("next-word", {"temperature": float("nan")}, "temperature"),
        ("next-word", {"temperature": float("inf")}, "temperature"),
        ("next-word", {"top_p": 0.0}, "top_p"),
        ("next-word", {"top_p": 1.5}, "top_p"),
        ("next-word", {"top_p": float("nan")}, "top_p"),
        ("next-word", {"stop_tokens": [50]}, "vocabulary"),
        ("next-word", {"paths": 2}, "paths"),
        ("next-word", {"quantiles": [0.5]}, "quantiles"),
        ("next-value", {"top_k": 2}, "top_k"),
        ("next-value", {"top_p": 0.5}, "top_p"),
        ("next-value", {"stop_tokens": [1]}, "stop_tokens"),
        ("next-value", {"paths": 1025}, "1025 paths"),
        ("next-value", {"quantiles": [0.0]}, "quantiles"),
        ("next-value", {"quantiles": [0.5, 1.0]}, "quantiles"),
        ("next-value", {"quantiles": [float("nan")]}, "quantiles"),
        ("next-value", {"quantiles": [0.5] * 1025}, "quantiles"),
        ("next-value", {}, "before the first value"),
    ],
)
def test_what_cannot_be_is_refused(client: Client, model: str, options: dict[str, Any], message: str) -> None:
    client.send(opening([0], model), generate(0, 5, **({"count": 3} | options)))
    (fault,) = client.run().faults
    assert (fault.reason, fault.handle, fault.call, fault.step) == ("INPUT_INVALID", 0, 5, 0)
    assert message in fault.message
    assert client.stream.backlog == 0
    assert not client.replies.continuations


def test_models_with_other_inputs_do_not_run_free(tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-value", columns=2, targets=[1])
    host = Host(Limits(max_sessions=9), Metrics("test"))
    (model,) = load_models(Settings(models=tmp_path, max_batch=8))
    host.add_model(*model)
    client = Client(host)
    client.send(opening([0], "next-value"), values([0], [[1.0, 2.0]]), generate(0, 0, 3))
    (fault,) = client.run().faults
    assert fault.reason == "INPUT_INVALID"
    assert "run free" in fault.message


def test_handles_without_a_session_are_refused(client: Client) -> None:
    client.send(opening([0], "next-word"), generate(3, 1, 5), close([0]), generate(0, 2, 5))
    client.run()
    client.send(generate(0, 3, 5), generate(2**32 - 1, 4, 5))
    client.run()
    assert [(fault.call, fault.reason) for fault in client.replies.faults] == [
        (1, "HANDLE_UNKNOWN"),
        (2, "SESSION_CLOSED"),
        (3, "SESSION_CLOSED"),
        (4, "HANDLE_UNKNOWN"),
    ]


def test_a_call_under_way_is_not_a_new_one(client: Client) -> None:
    client.send(opening([0], "next-word"), generate(0, 1, 20, seed=1), generate(0, 1, 20, seed=2))
    client.run()
    assert [(fault.call, fault.reason) for fault in client.replies.faults] == [(None, "INPUT_INVALID")]
    assert len(client.replies.continuations[1].tokens) == 20
    del client.replies.continuations[1]
    client.send(generate(0, 1, 3))
    assert len(client.run().continuations[1].tokens) == 3


def test_limits() -> None:
    host, *_ = make_host(Clock(), max_generates_per_stream=3, max_generate_rows=10, max_generate_paths=8)
    client, other = Client(host), Client(host)
    client.send(opening([0], "words"), *(generate(0, call, 5) for call in range(5)))
    other.send(opening([0, 1], "values"), values([0], [[1.0, 2.0]]))
    other.send(opening([2], "words"), generate(2, 0, 5), generate(2, 1, 5))
    client.run()
    other.read()
    limited = [fault for fault in client.replies.faults if fault.reason == "GENERATION_LIMIT"]
    assert [fault.call for fault in limited] == [3, 4]
    assert all(fault.retry and fault.metadata == {"limit": "3"} for fault in limited)
    assert done(0, 1, 2)(client.replies)
    assert done(0, 1)(other.replies)
    client.send(generate(0, 7, 3))
    assert done(7)(client.run())


def test_rows_are_limited_for_all_together(loaded: list[LoadedModel]) -> None:
    host = Host(Limits(max_sessions=9, max_generate_rows=100), Metrics("test"))
    for model in loaded:
        host.add_model(*model)
    client, other = Client(host), Client(host)
    for each in (client, other):
        fed(each, "next-value")
    client.send(generate(0, 0, 3, paths=60))
    other.send(generate(0, 0, 3, paths=41), generate(0, 1, 3, paths=40))
    client.run()
    assert [(fault.call, fault.reason) for fault in other.read().faults] == [(0, "GENERATION_LIMIT")]
    other.send(generate(0, 2, 3, paths=100))
    assert done(1, 2)(other.run())


def test_the_stream_backlog_counts() -> None:
    host, *_ = make_host(Clock(), max_stream_backlog=2)
    client = Client(host)
    client.send(opening([0], "words"), *(generate(0, call, 5) for call in range(3)))
    client.run()
    assert client.replies.reasons == ["STREAM_BACKLOG"]
    assert client.stream.backlog == 0


# turns


def test_one_small_step_between_two_ticks() -> None:
    """Whatever is being generated, an observation is answered in the tick it would be answered in without it."""
    host, words_model, _ = make_host(Clock(), max_batch=8)
    runtime = words_model.runtime
    assert isinstance(runtime, MixingWords)
    client = Client(host)
    client.send(opening([0, 1], "words"), *(generate(0, call, 30, temperature=0.0) for call in range(20)))
    host.tick()
    for number in range(10):
        client.send(words([1], [4]))
        runtime.batches.clear()
        host.tick()
        assert len(client.read().of(1)) == number + 1
        assert runtime.batches[0] == 1
        assert len(runtime.batches) <= 2
        assert max(runtime.batches) <= 8
    assert not any(continuation.done for continuation in client.replies.continuations.values())
    client.run()
    assert done(*range(20))(client.replies)
    assert all(len(each.tokens) == 30 for each in client.replies.continuations.values())


def test_paths_are_stepped_in_parts(loaded: list[LoadedModel]) -> None:
    """A step of many paths takes several turns, between which others have theirs."""
    host = Host(Limits(max_sessions=9), Metrics("test"))
    for model in loaded:
        host.add_model(model.info, model.runtime, max_batch=16)
    client = Client(host)
    fed(client, "next-value")
    client.send(generate(0, 0, 4, paths=200, seed=1), generate(0, 1, 4, paths=3, seed=2), opening([5], "next-word"))
    client.send(generate(5, 2, 4, seed=1))
    host.tick()
    turns = 0
    while not done(1, 2)(client.read()):
        host.tick()
        host.check_integrity()
        turns += 1
    assert not client.replies.continuations[0].done
    assert turns < 30
    assert client.run().continuations[0].values.shape == (800,)
    client.send(generate(0, 0, 4, paths=200, seed=1))
    before = client.replies.continuations.pop(0).values
    np.testing.assert_allclose(client.run().continuations[0].values, before, rtol=1e-5)


def test_who_does_not_read_is_waited_for(client: Client, host: Host) -> None:
    other = Client(host)
    woken = []
    host.generating.wake = lambda: woken.append(True)
    fed(client, "next-value")
    fed(other, "next-value")
    client.send(generate(0, 0, 500, paths=100, seed=1))
    other.send(generate(0, 0, 200, paths=100))
    for _ in range(2000):
        if not host.ready:
            break
        host.tick()
        other.read()
    assert not host.ready, "it ran ahead of its reader"
    assert done(0)(other.replies)
    assert client.stream.continuations[0].left > 0
    reply, parts, rows = client.stream.take()
    assert len(reply) < UNSENT_BYTES + 2000
    assert woken
    client.stream.sent(parts, rows, 0.0)
    client.replies.add(pb.StreamResponse.FromString(reply))
    client.run()
    assert client.replies.continuations[0].values.shape == (50_000,)
    assert client.stream.backlog == 0


# endings


def test_cancelled_it_is_done(client: Client) -> None:
    client.send(opening([0], "next-word"), generate(0, 1, 1000), generate(0, 2, 5))
    for _ in range(5):
        client.host.tick()
    client.send(cancel_generate(1), cancel_generate(1), cancel_generate(77))
    client.run()
    assert done(1, 2)(client.replies)
    assert 0 < len(client.replies.continuations[1].tokens) < 1000
    client.send(words([0] * 5, [3] * 5), generate(0, 3, 10), cancel_generate(3))
    client.run()
    assert client.replies.continuations[3].done
    assert not client.replies.continuations[3].tokens, "cancelled before its turn came"
    assert client.stream.backlog == 0
    assert not client.replies.faults


def test_it_ends_with_its_session(client: Client, host: Host) -> None:
    client.send(opening([0, 1, 2], "next-word", ids=["a", "b", "c"], lease=1e-9))
    client.send(*(generate(handle, handle, 5000) for handle in range(3)))
    for _ in range(3):
        host.tick()
    client.send(close([0]))
    host.tick()
    taker = Client(host)
    taker.send(opening([4], "", ids=["b"], mode=pb.OPEN_MODE_RESUME))
    host.expire()
    client.run()
    faults = {fault.call: fault.reason for fault in client.replies.faults if fault.call is not None}
    assert faults == {0: "SESSION_CLOSED", 1: "SESSION_TAKEN_OVER", 2: "SESSION_EXPIRED"}
    assert not any(continuation.done for continuation in client.replies.continuations.values())
    assert client.stream.backlog == 0


def test_taken_over_before_its_turn(client: Client, host: Host) -> None:
    client.send(opening([0], "next-word", ids=["a"]), words([0] * 3, [3] * 3), generate(0, 0, 5))
    taker = Client(host)
    taker.send(opening([4], "", ids=["a"], mode=pb.OPEN_MODE_RESUME))
    client.run()
    assert [fault.call for fault in client.replies.faults if fault.reason == "SESSION_TAKEN_OVER"] == [0, None]
    assert client.stream.backlog == 0
    assert not client.replies.continuations


def test_it_ends_with_its_stream(client: Client, host: Host) -> None:
    client.send(opening([0], "next-word"), generate(0, 0, 500), words([0] * 3, [3] * 3), generate(0, 1, 500))
    host.tick()
    host.disconnect(client.stream)
    host.check_integrity()
    assert not host.ready


def test_a_failed_step_ends_it_alone() -> None:
    host, words_model, _ = make_host(Clock())
    runtime = words_model.runtime
    assert isinstance(runtime, MixingWords)
    client = Client(host)
    client.send(opening([0], "words"), generate(0, 0, 50))
    host.tick()
    runtime.fail = True
    host.tick()
    runtime.fail = False
    client.send(words([0], [3]), generate(0, 1, 5))
    client.run()
    assert [(fault.call, fault.reason) for fault in client.replies.faults] == [(0, "INTERNAL")]
    assert len(client.replies.of(0)) == 1
    assert len(client.replies.continuations[1].tokens) == 5
    assert client.stream.backlog == 0


# on the wire


async def test_streamed_over_grpc(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word")
    await wire.send(words([0], [3]), generate(0, 1, 200, seed=1, with_words=True), words([0], [4]))
    await wire.until(done(1))
    continuation = wire.continuations[1]
    assert continuation.pieces > 1
    assert len(continuation.tokens) == len(continuation.probabilities) == len(continuation.words) == 200
    assert [answer.step for answer in wire.of(0)] == [1, 2]


async def test_a_session_that_is_away_is_brought_back(serve: Serve) -> None:
    """And a continuation goes on while its session is away."""
    serving = await serve(max_sessions=2)
    wire = serving.wire()
    await wire.open([0], "next-word")
    await wire.send(words([0] * 3, [3, 4, 5]), generate(0, 0, 20, seed=1), generate(0, 1, 5000, seed=2))
    await wire.until(lambda wire: done(0)(wire) and wire.continuations[1].tokens)
    away = serving.host.streams[1].away
    while not len(away):
        # Only a session that is in the store gives way.
        await wire.open([len(wire.opened)], "next-word")
    assert (0, "/" + wire.opened[0][0]) in list(away)
    await wire.send(generate(0, 2, 20, seed=1))
    await wire.until(done(1, 2))
    np.testing.assert_allclose(wire.continuations[2].probabilities, wire.continuations[0].probabilities, rtol=1e-4)
    assert len(wire.continuations[1].tokens) == 5000


async def test_half_closing_lets_it_finish(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.send(opening([0], "next-word"), words([0] * 50, [3] * 50), generate(0, 1, 300))
    assert await wire.finish() == grpc.StatusCode.OK
    assert len(wire.continuations[1].tokens) == 300


async def test_a_client_that_stops_reading_stops_it(serve: Serve) -> None:
    serving = await serve()
    call = serving.stub.Stream()
    await call.write(opening([0], "next-value"))
    await call.write(values([0], [1.0]))
    await call.write(generate(0, 0, 10_000, paths=1000))
    await serving.settled(lambda host: host.generating.active == 1)
    (stream,) = serving.host.streams.values()
    left = 0
    while left != stream.continuations[0].left:
        # Until what the transport buffers is full.
        left = stream.continuations[0].left
        await asyncio.sleep(0.3)
    assert left > 5000
    wire = serving.wire()
    await wire.open([0], "next-word")
    await wire.send(words([0], [3]), generate(0, 0, 20))
    await wire.until(done(0))
    assert stream.continuations[0].left == left
    while isinstance(read := await call.read(), pb.StreamResponse) and not read.generated:
        pass
    await serving.settled(lambda _: stream.continuations[0].left < left)
    call.cancel()
    await serving.settled(lambda host: host.generating.active == 0)


async def test_drained(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.send(opening([0], "next-value"), values([0], [1.0]), generate(0, 3, 10_000, paths=1000))
    await wire.until(lambda wire: wire.continuations[3].pieces)
    async with asyncio.timeout(10):
        await serving.worker.drain()
    await wire.end()
    assert [(fault.call, fault.reason) for fault in wire.faults if fault.call is not None] == [(3, "DRAINING")]


async def test_metrics(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.send(opening([0], "next-value"), values([0], [1.0]), generate(0, 3, 7, paths=10))
    await wire.until(done(3))
    registry = serving.host.metrics.registry
    serving.host.flush_metrics()
    labels = {"model": "next-value", "version": "1"}
    assert registry.get_sample_value("hiddenstate_generated_steps_total", labels) == 70
    assert registry.get_sample_value("hiddenstate_generating") == 0
