"""A session moves to another version in order with its observations, by what is kept of them, or stays unharmed."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.server.conftest import Serve, Serving
from tests.server.doubles import VALUES, VOCABULARY, WORDS, Clock, MixingWords, RunningMean, drained
from tests.server.test_service import alone, assert_same
from tests.server.wire import Replies, Wire, close, fork, generate, opening, peek, rewarm, rewind, values, words

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.model import ServedModel, TextInfo
from hiddenstate_server.stepping.twins import translation
from hiddenstate_server.versions.repository import LoadedModel, load_models


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    return await serve()


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    """A stream with a session of words in version 1, handle 0."""
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["s"])
    return wire


async def moved(wire: Wire, times: int = 1) -> list[pb.Opened]:
    """Waits until that many moves were told, and returns them."""
    await wire.until(lambda wire: len(moves(wire)) >= times)
    return moves(wire)


def moves(wire: Wire) -> list[pb.Opened]:
    """What was opened after the first."""
    return [opened for frame in wire.frames for opened in frame.opened][1:]


@pytest.mark.parametrize("before", [0, 1, 5, 80])
async def test_in_order_with_observations(wire: Wire, serving: Serving, loaded: list[LoadedModel], before: int) -> None:
    tokens = np.random.default_rng(before).integers(0, 50, before + 9).tolist()
    await wire.send(
        words([0] * before, tokens[:before]) if before else peek([0]),
        rewarm([0]),
        words([0] * 9, tokens[before:], range(before + 1, before + 10)),
        peek([0]),
        close([0]),
    )
    await wire.until(lambda wire: wire.closed)
    (told,) = await moved(wire)
    assert (told.version, list(told.session_ids), told.steps) == ("2", ["s"], before.to_bytes(8, "little"))
    old, new = alone(loaded, "next-word", tokens), alone(loaded, "next-word", tokens, "2")
    assert [answer.step for answer in wire.observed] == list(range(1, before + 10))
    for answer in wire.observed:
        assert_same(answer.columns, (old if answer.step <= before else new)[answer.step])
    assert_same(wire.peeked[-1].columns, new[-1])
    assert wire.faults == []
    assert not serving.host.models[0].arena.used + serving.host.models[1].arena.used + len(serving.host.directory)


def test_what_is_kept_is_what_it_knows() -> None:
    """Of a long history the last observations are fed; with them it goes on, and back, in the new version."""
    host = Host(Limits(), Metrics("test"), Clock())
    host.add_model(VALUES, RunningMean(), 8)
    new = host.add_model(replace(VALUES, version="2"), RunningMean(), 8)
    stream = host.connect()
    host.receive(stream, opening([0], "values", version="1"))
    host.receive(stream, values([0] * 400, [[step, 0.0] for step in range(1, 401)]))
    host.receive(stream, rewarm([0], "2"))
    while host.ready:
        host.tick()
    (row,) = new.table.live()
    total, count = new.arena.states[row]
    assert 64 <= count < 200
    assert total == np.arange(401 - count, 401).sum()
    host.receive(stream, values([0], [[401.0, 0.0]]))
    host.receive(stream, rewind([0], [370]))
    while host.ready:
        host.tick()
    assert new.table.applied[row] == 370
    assert new.arena.states[row].tolist() == [np.arange(401 - count, 371).sum(), count - 30]


async def test_rewinds_keep_their_count_and_place(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(
        words([0] * 6, [2, 3, 4, 5, 6, 7]),
        rewind([0], [5]),
        rewarm([0], "2"),
        rewind([0], [4], [2]),
        words([0], [9], [5]),
    )
    await wire.answered(7)
    (told,) = await moved(wire)
    assert (told.steps, told.rewinds) == ((5).to_bytes(8, "little"), (1).to_bytes(4, "little"))
    assert_same(wire.rewound[1].columns, alone(loaded, "next-word", [2, 3, 4, 5], "2")[-1])
    assert_same(wire.observed[-1].columns, alone(loaded, "next-word", [2, 3, 4, 5, 9], "2")[-1])
    await wire.send(rewind([0], [1], [2]))
    await wire.until(lambda wire: len(wire.rewound) == 3)
    assert wire.rewound[2].step == 5


async def test_there_and_back(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0], [3]), rewarm([0], "2"), words([0], [4]), rewarm([0], "1"), words([0], [5]))
    await wire.answered(3)
    assert [opened.version for opened in await moved(wire, 2)] == ["2", "1"]
    assert_same(wire.observed[2].columns, alone(loaded, "next-word", [3, 4, 5])[-1])


async def test_to_where_it_is_already(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0], [3]), rewarm([0], "1"), words([0], [4]))
    await wire.answered(2)
    assert [opened.version for opened in await moved(wire)] == ["1"]
    assert_same(wire.observed[1].columns, alone(loaded, "next-word", [3, 4])[-1])


async def test_what_cannot_be_done_harms_nobody(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0], [3]), rewarm([0, 9], "7"), words([0], [4]))
    await wire.answered(2)
    assert sorted(wire.reasons) == ["HANDLE_UNKNOWN", "MODEL_NOT_FOUND"]
    assert_same(wire.observed[1].columns, alone(loaded, "next-word", [3, 4])[-1])
    await wire.send(close([0]), rewarm([0], "2"))
    await wire.until(lambda wire: len(wire.faults) == 3)
    assert wire.reasons[2:] == ["SESSION_CLOSED"]


async def test_another_task_or_other_columns(serve: Serve, tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-value", name="m", version=1, seed=1)
    random_bundle(tmp_path, "next-value", name="m", version=2, seed=2, columns=2)
    random_bundle(tmp_path, "next-word", name="m", version=3, seed=3)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    wire = (await serve(models=tmp_path)).wire()
    await wire.open([0], "m", version="1")
    await wire.send(values([0], [1.0]), rewarm([0], "2"), rewarm([0], "3"), values([0], [2.0]))
    await wire.answered(2)
    assert wire.reasons == ["INPUT_INVALID"] * 2
    assert_same(wire.observed[1].columns, alone(loaded, "m", [[1.0], [2.0]])[-1])


async def test_values_are_fed_as_they_were(serve: Serve, tmp_path: Path) -> None:
    for version in (1, 2):
        random_bundle(tmp_path, "next-value", version=version, seed=version)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    wire = (await serve(models=tmp_path)).wire()
    await wire.open([0], "next-value", version="1")
    series = [1.0, 2.5, float("nan"), 1e6, 3.0]
    await wire.send(values([0] * 4, series[:4]), rewarm([0]), values([0], series[4:]))
    await wire.answered(5)
    assert_same(wire.observed[4].columns, alone(loaded, "next-value", [[value] for value in series], "2")[-1])


def test_words_are_mapped_by_their_text(tmp_path: Path) -> None:
    """Version 2 knows the first 40 words only; what is queued behind the move is mapped, too."""
    random_bundle(tmp_path, "next-word", version=1, seed=1)
    random_bundle(tmp_path, "next-word", version=2, seed=2, vocabulary_size=40)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    host = Host(Limits(max_sessions=8), Metrics("test"))
    for model in loaded:
        host.add_model(*model)
    stream = host.connect()
    host.receive(stream, opening([0], "next-word", version="1"))
    # Without a tick between them, or the last would be read after the move, in the new version's words.
    for frame in (words([0] * 3, [3, 45, 39]), rewarm([0]), words([0] * 2, [49, 5])):
        host.receive(stream, frame)
    while host.ready:
        host.tick()
    assert_same(
        drained(stream, now=host.clock()).observed[4].columns, alone(loaded, "next-word", [3, 0, 39, 0, 5], "2")[-1]
    )
    host.receive(stream, words([0], [45]))
    assert drained(stream, now=host.clock()).reasons == ["INPUT_INVALID"]


async def test_what_is_queued_behind_goes_along(serve: Serve, tmp_path: Path) -> None:
    """Copies and continuations are of the version that the session is in when their turn comes."""
    random_bundle(tmp_path, "next-word", version=1, seed=1)
    random_bundle(tmp_path, "next-word", version=2, seed=2, vocabulary_size=40)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    wire = (await serve(models=tmp_path)).wire()
    await wire.open([0], "next-word", version="1")
    await wire.send(
        words([0] * 3, [3, 4, 5]), rewarm([0]), generate(0, 7, 4, temperature=0, with_words=True), fork([0], [1])
    )
    await wire.until(lambda wire: 1 in wire.opened and any(piece.done for f in wire.frames for piece in f.generated))
    opened = {handle: frame.version for frame in moves(wire) for handle in np.frombuffer(frame.handles, "<u4").tolist()}
    assert opened == {0: "2", 1: "2"}
    tokens = [3, 4, 5]
    for _ in range(4):
        tokens.append(int(alone(loaded, "next-word", tokens, "2")[-1]["top_tokens"][0, 0]))
    pieces = [piece for frame in wire.frames for piece in frame.generated]
    assert b"".join(piece.tokens for piece in pieces) == np.array(tokens[3:], "<i4").tobytes()
    assert len([word for piece in pieces for word in piece.words]) == 4
    await wire.send(words([1], [6]))
    await wire.answered(4)
    assert_same(wire.observed[-1].columns, alone(loaded, "next-word", [3, 4, 5, 6], "2")[-1])
    assert wire.faults == []


def test_translation_goes_by_text() -> None:
    assert WORDS.text is not None
    assert translation(WORDS, WORDS) is None
    shuffled = ("word5", "<end>", "WORD3", "<unknown>", "word4")
    other = replace(
        WORDS,
        version="2",
        text=TextInfo(shuffled, {word: i for i, word in enumerate(shuffled)}, True, 3, 1, r"\w+"),
    )
    tokens = translation(WORDS, other)
    assert tokens is not None
    by_word = {word: shuffled[token] for word, token in zip(VOCABULARY, tokens.tolist(), strict=True)}
    assert {word: by_word[word] for word in ("<unk>", "<eos>", "word4", "word5", "word3", "word17")} == {
        "<unk>": "<unknown>", "<eos>": "<end>", "word4": "word4", "word5": "word5", "word3": "<unknown>",
        "word17": "<unknown>",
    }  # fmt: skip


async def test_many_sessions_move_while_others_stream(serving: Serving, loaded: list[LoadedModel]) -> None:
    wire, other = serving.wire(), serving.wire()
    await wire.open(range(150), "next-word", version="1")
    await other.open([0], "next-word", version="1")
    tokens = np.random.default_rng(2).integers(0, 50, (30, 150))
    for row in tokens[:20]:
        await wire.send(words(range(150), row))
    await wire.send(rewarm(range(150)))
    for row in tokens[20:]:
        await wire.send(words(range(150), row))
    await other.send(words([0] * 100, [3] * 100))
    await wire.answered(150 * 30)
    for handle in range(150):
        expected = alone(loaded, "next-word", tokens[:, handle].tolist(), "2")
        for answer in wire.of(handle)[20:]:
            assert_same(answer.columns, expected[answer.step])
    await other.answered(100)
    assert_same(other.observed[-1].columns, alone(loaded, "next-word", [3] * 100)[-1])


@pytest.mark.parametrize("how", ["cancel", "take over"])
async def test_cut_off_while_moving(serve: Serve, how: str) -> None:
    """Whoever comes next finds the session in its old version, and nothing is left of the new row."""
    serving = await serve()
    wire = serving.wire()
    await wire.open(range(50), "next-word", version="1", ids=[f"s{i}" for i in range(50)])
    for _ in range(80):
        await wire.send(words(range(50), [3] * 50))
    await wire.send(rewarm(range(50)))
    await serving.settled(lambda host: host.models[2].twins or wire.ended)
    other = serving.wire()
    if how == "cancel":
        await wire.cancel()
        await serving.settled(lambda host: len(host.streams) == 1)
    await other.open(range(50), "", ids=[f"s{i}" for i in range(50)], mode=pb.OPEN_MODE_RESUME)
    assert {step for _, step in other.opened.values()} == {80}
    serving.host.check_integrity()
    assert not any(model.twins for model in serving.host.models)


def two_versions(clock: Clock, **limits: int) -> tuple[Host, ServedModel, ServedModel, MixingWords]:
    """A host of words in two versions."""
    host = Host(Limits(**limits), Metrics("test"), clock)
    failing = MixingWords()
    old = host.add_model(WORDS, MixingWords(), 8)
    return host, old, host.add_model(replace(WORDS, version="2"), failing, 8), failing


def test_a_step_of_the_new_version_fails() -> None:
    host, old, new, failing = two_versions(Clock())
    stream, replies = host.connect(), Replies()
    host.receive(stream, opening([0], "words", version="1"))
    host.receive(stream, words([0] * 3, [3, 4, 5]))
    while host.ready:
        host.tick()
    failing.fail = True
    host.receive(stream, rewarm([0]))
    host.receive(stream, words([0], [6], [4]))
    while host.ready:
        host.tick()
        host.check_integrity()
    drained(stream, replies)
    assert replies.reasons == ["INTERNAL"]
    assert [answer.step for answer in replies.observed] == [1, 2, 3, 4]
    assert (old.arena.used, new.arena.used, stream.backlog) == (1, 0, 0)


def test_no_room_in_the_new_version() -> None:
    host, old, new, _ = two_versions(Clock(), max_sessions=1)
    stream, replies = host.connect(), Replies()
    host.receive(stream, opening([0], "words", version="1"))
    host.receive(stream, opening([1], "words", version="2"))
    host.receive(stream, rewarm([0]))
    while host.ready:
        host.tick()
        host.check_integrity()
    drained(stream, replies)
    assert replies.reasons == ["SESSION_LIMIT"]
    assert (old.arena.used, new.arena.used, stream.backlog) == (1, 1, 0)


# policies


async def test_a_policy_moves_streaming_and_resting_sessions(serve: Serve, tmp_path: Path) -> None:
    random_bundle(tmp_path, "next-word", version=1, seed=1)
    serving = await serve(models=tmp_path, on_new_version="rewarm", reload_interval=0.05)
    resting, streaming = serving.wire(), serving.wire()
    await resting.open([0], "next-word", ids=["rests"])
    await resting.send(words([0] * 3, [3, 4, 5]))
    await resting.answered(3)
    await resting.cancel()
    await streaming.open([0], "next-word")
    tokens = np.random.default_rng(1).integers(0, 50, 30).tolist()
    await streaming.send(words([0] * 30, tokens))
    await streaming.answered(30)
    await asyncio.to_thread(random_bundle, tmp_path, "next-word", version=2, seed=2)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    while not moves(streaming):
        tokens.append(len(tokens) % 50)
        await streaming.send(words([0], tokens[-1:]))
        await streaming.answered(len(tokens))
    assert [opened.version for opened in moves(streaming)] == ["2"]
    tokens.append(7)
    await streaming.send(words([0], [7]))
    await streaming.answered(len(tokens))
    assert [answer.step for answer in streaming.observed] == list(range(1, len(tokens) + 1))
    first, second = alone(loaded, "next-word", tokens), alone(loaded, "next-word", tokens, "2")
    at = [frame.opened[0].version if frame.opened else "" for frame in streaming.frames].index("2")
    before = sum(len(predictions.steps) // 8 for frame in streaming.frames[:at] for predictions in frame.observed)
    for answer in streaming.observed[:before]:
        assert_same(answer.columns, first[answer.step])
    if len(tokens) < 64:
        assert_same(streaming.observed[-1].columns, second[-1])
    await serving.settled(lambda host: not host.models[0].arena.used)
    again = serving.wire()
    await again.send(opening([0], "next-word", version="1", ids=["rests"], mode=pb.OPEN_MODE_RESUME), words([0], [6]))
    await again.answered(1)
    assert [opened.version for frame in again.frames for opened in frame.opened] == ["2"]
    assert_same(again.observed[0].columns, alone(loaded, "next-word", [3, 4, 5, 6], "2")[-1])


async def test_retired_sessions_move_and_the_version_goes(serve: Serve, tmp_path: Path) -> None:
    for version in (1, 2):
        random_bundle(tmp_path, "next-word", version=version, seed=version)
    serving = await serve(models=tmp_path, retire="rewarm", store="none", reload_interval=0.05)
    wire = serving.wire()
    await wire.open(range(200), "next-word", version="1")
    await wire.send(words(range(200), [3] * 200))
    await wire.answered(200)
    shutil.rmtree(tmp_path / "next-word" / "1")
    await serving.settled(lambda host: len(host.models) == 1)
    loaded = load_models(Settings(models=tmp_path, max_batch=8))
    await wire.send(words(range(200), [4] * 200))
    await wire.answered(400)
    expected = alone(loaded, "next-word", [3, 4], "2")[-1]
    for answer in wire.observed[200:]:
        assert_same(answer.columns, expected)


async def test_a_policy_moves_nobody_to_another_vocabulary(serve: Serve, tmp_path: Path) -> None:
    """Tokens of clients that do not know would be read as other words."""
    random_bundle(tmp_path, "next-word", version=1, seed=1)
    random_bundle(tmp_path, "next-word", version=2, seed=2, vocabulary_size=40)
    serving = await serve(models=tmp_path, on_new_version="rewarm", retire="rewarm", store="none", reload_interval=0.05)
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["s"])
    shutil.rmtree(tmp_path / "next-word" / "1")
    await serving.settled(lambda host: host.models[0].retired)
    await asyncio.sleep(0.8)
    await wire.send(words([0], [45]))
    await wire.answered(1)
    assert moves(wire) == []
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id="s"))).session
    assert (session.version, session.step) == ("1", 1)


# with a store


@pytest.mark.parametrize("durability", ["behind", "every-step"])
async def test_a_moved_session_outlives_its_server(
    serve: Serve, bundles: Path, tmp_path: Path, durability: str
) -> None:
    loaded = load_models(Settings(models=bundles, max_batch=8))
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    first = await serve(store=store, durability=durability)
    wire = first.wire()
    await wire.open([0], "next-word", version="1", ids=["s"])
    await wire.send(words([0] * 3, [3, 4, 5]), rewarm([0], "2"), words([0], [6]))
    await wire.answered(4)
    (opened,) = await moved(wire)
    assert (opened.version, opened.steps) == ("2", (3).to_bytes(8, "little"))
    assert int.from_bytes(opened.durable_steps, "little") >= 3, "the move was told before a restart would find it"
    told = [(len(frame.opened), sum(len(p.steps) // 8 for p in frame.observed)) for frame in wire.frames]
    before_the_move = told[: 1 + [opened for opened, _ in told[1:]].index(1) + 1]
    assert sum(observed for _, observed in before_the_move) >= 3, "the move was told before what it follows"
    await first.stop()
    second = (await serve(store=store)).wire()
    await second.send(opening([0], "", ids=["s"], mode=pb.OPEN_MODE_RESUME), words([0], [7], [5]), rewind([0], [2]))
    await second.until(lambda wire: wire.rewound)
    assert second.frames[0].opened[0].version == "2"
    assert_same(second.observed[0].columns, alone(loaded, "next-word", [3, 4, 5, 6, 7], "2")[-1])
    assert_same(second.rewound[0].columns, alone(loaded, "next-word", [3, 4], "2")[-1])
