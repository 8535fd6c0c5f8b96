"""Another version sees what a session observes and is compared with it, at no cost to the session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.server.conftest import Serve
from tests.server.doubles import VALUES, WORDS, Clock, MixingWords, RunningMean, drained
from tests.server.test_service import alone, assert_same
from tests.server.wire import Replies, close, opening, rewarm, rewind, values, words

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import FloatArray, InputArray, Outputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.versions.repository import LoadedModel


def compared(host: Host, name: str, version: str, role: str) -> tuple[float, float]:
    """How many surprises were recorded, and their sum."""
    labels = {"model": name, "version": version, "role": role}
    values = [host.metrics.registry.get_sample_value(f"hiddenstate_shadow_surprise_nats_{part}", labels)
              for part in ("count", "sum")]  # fmt: skip
    assert values[0] is not None
    assert values[1] is not None
    return values[0], values[1]


async def test_both_are_compared_on_the_same_observations(serve: Serve, loaded: list[LoadedModel]) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", shadow_version="2", ids=["s"])
    await wire.open([1], "next-word", version="1")
    tokens = np.random.default_rng(0).integers(0, 50, 60).tolist()
    await wire.send(words([0, 1] * 60, np.repeat(tokens, 2)))
    await wire.answered(120)
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id="s"))).session
    assert (session.version, session.shadow_version) == ("1", "2")
    assert not serving.host.ready
    for version, role in (("1", "primary"), ("2", "shadow")):
        outputs = alone(loaded, "next-word", tokens, version)[1:]
        count, total = compared(serving.host, "next-word", version, role)
        assert count == 60
        assert total == pytest.approx(sum(float(column["surprises"][0]) for column in outputs), rel=1e-5)
    assert compared(serving.host, "next-word", "1", "shadow")[0] == 0
    for answer in wire.of(0):
        assert_same(answer.columns, alone(loaded, "next-word", tokens[: answer.step])[-1])
    models = (await serving.stub.ListModels(pb.ListModelsRequest())).models
    assert {f"{model.name}/{model.version}": model.live_sessions for model in models}["next-word/2"] == 0
    await wire.send(close([0]))
    await wire.until(lambda wire: wire.closed)
    assert serving.host.model("next-word", "2").arena.used == 0


async def test_what_cannot_be_a_shadow(serve: Serve, tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-value", name="m", version=1)
    random_bundle(tmp_path, "next-word", name="m", version=2)
    wire = (await serve(models=tmp_path)).wire()
    await wire.send(*(opening([0], "m", version="1", shadow_version=shadow) for shadow in ("1", "2", "3")))
    await wire.until(lambda wire: len(wire.faults) == 3)
    assert wire.reasons == ["INPUT_INVALID", "INPUT_INVALID", "MODEL_NOT_FOUND"]
    assert wire.opened == {}


# on a host without transport


class Shadowed:
    """A host of words in two versions, one stream, and session 0 with a shadow."""

    def __init__(self, **limits: int) -> None:
        self.host = Host(Limits(**limits), Metrics("test"), Clock())
        self.runtime = MixingWords()
        self.old = self.host.add_model(WORDS, MixingWords(), 8)
        self.new = self.host.add_model(replace(WORDS, version="2"), self.runtime, 8)
        self.stream, self.replies = self.host.connect(), Replies()
        self.receive(opening([0], "words", version="1", shadow_version="2", ids=["s"]))

    def receive(self, *frames: pb.StreamRequest, stream: Stream | None = None) -> None:
        for frame in frames:
            self.host.receive(stream or self.stream, frame)

    def settle(self) -> None:
        while self.host.ready:
            self.host.tick()
            self.host.check_integrity()
        drained(self.stream, self.replies)

    def twin(self) -> FloatArray:
        """The shadow's state."""
        (row,) = self.new.twins
        state: FloatArray = self.new.arena.states[row]
        return state

    def lone(self, tokens: list[int]) -> FloatArray:
        _, state = self.runtime.initial()
        for token in tokens:
            _, state = self.runtime.step(np.array([token]), state)
        first: FloatArray = state[0]
        return first


@pytest.fixture
def shadowed() -> Shadowed:
    return Shadowed()


@pytest.mark.parametrize("to", [0, 1, 150, 180, 200])
def test_it_goes_back_with_its_session(shadowed: Shadowed, to: int) -> None:
    tokens = np.random.default_rng(to).integers(0, 20, 200).tolist()
    kept = 200 if to > 1 else 10
    tokens = tokens[:kept]
    shadowed.receive(words([0] * kept, tokens), rewind([0], [to]), words([0] * 2, [7, 8]))
    shadowed.settle()
    np.testing.assert_allclose(shadowed.twin(), shadowed.lone([*tokens[:to], 7, 8]), rtol=1e-5)
    assert shadowed.replies.reasons == []


def test_rewinds_under_way_are_followed_in_order(shadowed: Shadowed) -> None:
    shadowed.receive(
        words([0] * 4, [2, 3, 4, 5]), rewind([0], [3]), words([0] * 2, [6, 7]), rewind([0], [2]), rewind([0], [1])
    )
    shadowed.receive(words([0], [9]))
    shadowed.settle()
    np.testing.assert_allclose(shadowed.twin(), shadowed.lone([2, 9]), rtol=1e-5)


def test_a_failing_shadow_is_given_up_and_its_session_goes_on(shadowed: Shadowed) -> None:
    shadowed.receive(words([0] * 2, [3, 4]))
    shadowed.settle()
    shadowed.runtime.fail = True
    shadowed.receive(words([0] * 2, [5, 6]))
    shadowed.settle()
    shadowed.runtime.fail = False
    shadowed.receive(words([0] * 2, [7, 8]))
    shadowed.settle()
    assert shadowed.replies.reasons == []
    assert [answer.step for answer in shadowed.replies.observed] == [1, 2, 3, 4, 5, 6]
    assert (shadowed.new.arena.used, shadowed.stream.backlog) == (0, 0)


def test_it_gives_way_to_sessions() -> None:
    tight = Shadowed(max_sessions=1)
    tight.receive(words([0], [3]), opening([1], "words", version="2"))
    tight.settle()
    tight.receive(words([0, 1], [4, 5]))
    tight.settle()
    assert sorted(tight.replies.opened) == [0, 1]
    assert [answer.step for answer in tight.replies.of(0)] == [1, 2]
    assert tight.replies.reasons == []
    assert not tight.new.twins


def test_no_room_for_one_is_no_fault() -> None:
    tight = Shadowed(max_sessions=1)
    tight.receive(close([0]))
    tight.settle()
    tight.receive(opening([1], "words", version="2"), opening([2], "words", version="1", shadow_version="2"))
    tight.receive(words([1, 2], [3, 4]))
    tight.settle()
    assert sorted(tight.replies.opened) == [0, 1, 2]
    assert tight.replies.reasons == []


def test_one_that_falls_behind_begins_anew() -> None:
    slow = Shadowed(max_session_backlog=30)
    tokens = np.random.default_rng(1).integers(0, 20, 100).tolist()
    for start in range(0, 100, 20):
        slow.receive(words([0] * 20, tokens[start : start + 20]))
        while slow.old.scheduler.ready:
            slow.old.tick(slow.host.clock())
        slow.host.check_integrity()
        (row,) = slow.new.twins
        assert slow.new.scheduler.pending[row] <= 200
    slow.settle()
    np.testing.assert_allclose(slow.twin(), slow.lone(tokens), rtol=1e-5)


def test_it_ends_with_its_session_wherever_that_goes(shadowed: Shadowed) -> None:
    shadowed.receive(words([0] * 2, [3, 4]))
    shadowed.settle()
    shadowed.host.disconnect(shadowed.stream)
    shadowed.host.check_integrity()
    assert len(shadowed.new.twins) == 1
    shadowed.stream = shadowed.host.connect()
    shadowed.receive(opening([5], "", ids=["s"], mode=pb.OPEN_MODE_RESUME), words([5], [6]))
    shadowed.settle()
    np.testing.assert_allclose(shadowed.twin(), shadowed.lone([3, 4, 6]), rtol=1e-5)
    shadowed.receive(rewarm([5], "2"), words([5], [7]))
    shadowed.settle()
    assert not shadowed.new.twins
    assert (shadowed.old.arena.used, shadowed.new.arena.used) == (0, 1)
    (row,) = shadowed.new.table.live()
    np.testing.assert_allclose(shadowed.new.arena.states[row], shadowed.lone([3, 4, 6, 7]), rtol=1e-5)


def test_it_follows_into_a_third_version(shadowed: Shadowed) -> None:
    """Its words are mapped from the vocabulary of the version that its session is in now."""
    assert WORDS.text is not None
    words_3 = tuple(reversed(WORDS.text.vocabulary))
    text = replace(WORDS.text, vocabulary=words_3, token_ids={word: i for i, word in enumerate(words_3)})
    third = shadowed.host.add_model(replace(WORDS, version="3", text=text), MixingWords(), 8)
    shadowed.receive(words([0] * 2, [3, 4]), rewarm([0], "3"))
    shadowed.settle()
    shadowed.receive(words([0], [words_3.index("word3")]))
    shadowed.settle()
    assert third.followers.shadow_version(int(third.table.live()[0])) == "2"
    np.testing.assert_allclose(shadowed.twin(), shadowed.lone([3, 4, WORDS.text.token_ids["word3"]]), rtol=1e-5)
    assert shadowed.old.arena.used == 0


def test_a_version_that_only_shadows_goes_when_retired(shadowed: Shadowed) -> None:
    shadowed.receive(words([0], [3]))
    shadowed.settle()
    shadowed.new.retired = True
    shadowed.host.unload_retired()
    shadowed.receive(words([0], [4]))
    shadowed.settle()
    assert shadowed.host.models == [shadowed.old]
    assert [answer.step for answer in shadowed.replies.observed] == [1, 2]


class Unsurprised(RunningMean):
    """Says nothing of surprise, as of a missing value."""

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        outputs, states = super().step(inputs, states)
        return outputs._replace(surprises=np.full(len(inputs), np.nan, np.float32)), states


def test_missing_values_are_not_compared() -> None:
    host = Host(Limits(), Metrics("test"), Clock())
    host.add_model(VALUES, Unsurprised(), 8)
    host.add_model(replace(VALUES, version="2"), RunningMean(), 8)
    stream = host.connect()
    host.receive(stream, opening([0], "values", version="1", shadow_version="2"))
    host.receive(stream, values([0] * 3, [[1.0, 0.0], [2.0, 0.0], [2.0, 0.0]]))
    while host.ready:
        host.tick()
    assert compared(host, "values", "1", "primary") == (0, 0)
    assert compared(host, "values", "2", "shadow") == (3, 9)


async def test_it_is_begun_again_when_its_session_comes_back(
    serve: Serve, loaded: list[LoadedModel], tmp_path: Path
) -> None:
    """From the store, in another process: fed what is kept of the session, and compared from then on."""
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    first = await serve(store=store)
    wire = first.wire()
    await wire.open([0], "next-word", version="1", shadow_version="2", ids=["s"])
    await wire.send(words([0] * 5, [3, 4, 5, 6, 7]))
    await wire.answered(5)
    await first.stop()
    second = await serve(store=store)
    again = second.wire()
    await again.send(opening([0], "", ids=["s"], mode=pb.OPEN_MODE_RESUME), words([0] * 2, [8, 9]))
    await again.answered(2)
    await second.settled(lambda host: not host.ready)
    assert (await second.stub.GetSession(pb.GetSessionRequest(id="s"))).session.shadow_version == "2"
    outputs = alone(loaded, "next-word", [3, 4, 5, 6, 7, 8, 9], "2")[-2:]
    count, total = compared(second.host, "next-word", "2", "shadow")
    assert count == 2
    assert total == pytest.approx(sum(float(column["surprises"][0]) for column in outputs), rel=1e-4)
    assert compared(second.host, "next-word", "1", "primary")[0] == 2
