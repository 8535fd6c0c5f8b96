"""Taking observations back over real gRPC, in order with what is around it."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tests.server.conftest import Serve, Serving
from tests.server.doubles import Clock, MixingWords, drained, make_host
from tests.server.test_service import alone, assert_same
from tests.server.wire import Replies, Wire, close, opening, peek, rewind, u4, u8, values, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.stepping.streams import Stream
from hiddenstate_server.versions.repository import LoadedModel


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    return await serve()


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    """A stream with a session of words, 0."""
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["s"])
    return wire


@pytest.mark.parametrize("back", [1, 2, 33, 63, 64])
async def test_back_and_on_as_if_never_gone(wire: Wire, loaded: list[LoadedModel], back: int) -> None:
    tokens = np.random.default_rng(back).integers(0, 50, 200).tolist()
    kept = 200 - back
    await wire.send(words([0] * 200, tokens), rewind([0], [kept]), words([0, 0], [7, 8], [kept + 1, kept + 2]))
    await wire.answered(202)
    expected = alone(loaded, "next-word", [*tokens[:kept], 7, 8])
    assert [answer.step for answer in wire.rewound] == [kept]
    assert_same(wire.rewound[0].columns, expected[kept])
    for answer, outputs in zip(wire.observed[-2:], expected[-2:], strict=True):
        assert_same(answer.columns, outputs)
    assert wire.faults == []


async def test_back_to_the_beginning(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(words([0] * 3, [4, 5, 6]), rewind([0], [0]), words([0], [9], [1]))
    await wire.answered(4)
    assert [answer.step for answer in wire.rewound] == [0]
    assert np.isnan(wire.rewound[0].columns["surprises"]).all()
    assert_same(wire.observed[3].columns, alone(loaded, "next-word", [9])[1])


async def test_nothing_from_before_the_beginning_comes_back(wire: Wire, loaded: list[LoadedModel]) -> None:
    """States of a session that goes back often are kept; those of what was taken back are not gone back to."""
    old, new = [1, 3, 4, 5, 6, 7, 8, 9], [19, 18, 17, 16, 15, 14, 13]
    await wire.send(words([0] * 2, [1, 2]), rewind([0], [1]))
    await wire.until(lambda wire: wire.rewound)
    for count, token in enumerate(old[1:], 3):
        await wire.send(words([0], [token]))
        await wire.answered(count)
    await wire.send(rewind([0], [0]))
    for count, token in enumerate(new, 10):
        await wire.send(words([0], [token]))
        await wire.answered(count)
    await wire.send(rewind([0], [6]))
    await wire.until(lambda wire: len(wire.rewound) == 3)
    assert_same(wire.rewound[2].columns, alone(loaded, "next-word", new[:6])[6])


async def test_values_with_missing_ones(serving: Serving, loaded: list[LoadedModel]) -> None:
    wire = serving.wire()
    await wire.open([3], "weather")
    series = np.random.default_rng(0).normal(20, 5, (90, 2))
    series[70, 1] = np.nan
    await wire.send(values([3] * 90, series), rewind([3], [75]), values([3], [[1.0, 2.0]]))
    await wire.answered(91)
    expected = alone(loaded, "weather", [*series[:75], [1.0, 2.0]])
    assert_same(wire.rewound[0].columns, expected[75])
    assert_same(wire.observed[-1].columns, expected[76])


async def test_many_sessions_at_once_and_others_in_between(serving: Serving, loaded: list[LoadedModel]) -> None:
    wire, other = serving.wire(), serving.wire()
    await wire.open(range(40), "next-word", version="1")
    await other.open([0], "next-word", version="1")
    tokens = np.random.default_rng(2).integers(0, 50, (50, 40))
    for row in tokens:
        await wire.send(words(range(40), row))
    await wire.send(rewind(range(40), range(40)))
    await other.send(words([0] * 100, [3] * 100))
    await wire.until(lambda wire: len(wire.rewound) == 40)
    for answer in wire.rewound:
        history = tokens[: answer.handle, answer.handle].tolist()
        assert answer.step == answer.handle
        assert_same(answer.columns, alone(loaded, "next-word", history)[-1])
    await other.answered(100)
    assert_same(other.observed[-1].columns, alone(loaded, "next-word", [3] * 100)[-1])


async def test_a_rewind_keeps_its_place(wire: Wire, loaded: list[LoadedModel]) -> None:
    await wire.send(
        words([0] * 3, [2, 3, 4]), rewind([0, 0], [2, 1]), peek([0]), words([0], [5], [2]), rewind([0], [1]), close([0])
    )
    await wire.until(lambda wire: wire.closed)
    assert [answer.step for answer in wire.rewound] == [2, 1, 1]
    expected = alone(loaded, "next-word", [2, 3])
    assert_same(wire.rewound[0].columns, expected[2])
    assert_same(wire.peeked[0].columns, expected[1])
    assert_same(wire.observed[3].columns, alone(loaded, "next-word", [2, 5])[2])
    assert wire.faults == []


async def test_the_same_rewind_twice_is_done_once(wire: Wire) -> None:
    await wire.send(words([0] * 5, [1, 2, 3, 4, 5]), rewind([0], [3], [1]), words([0], [9], [4]), rewind([0], [3], [1]))
    await wire.until(lambda wire: len(wire.rewound) == 2)
    assert [answer.step for answer in wire.rewound] == [3, 4]


async def test_a_step_not_reached_is_counted_but_changes_nothing(wire: Wire, serving: Serving) -> None:
    await wire.send(words([0] * 2, [1, 2]), rewind([0, 0], [2, 2**64 - 1], [1, 7]), rewind([0], [1], [7]))
    await wire.until(lambda wire: len(wire.rewound) == 3)
    assert [answer.step for answer in wire.rewound] == [2, 2, 2]
    other = serving.wire()
    await other.open([4], "", ids=["s"], mode=pb.OPEN_MODE_RESUME)
    assert (other.opened[4][1], other.rewinds[4]) == (2, 7)
    assert other.frames[0].opened[0].rewind_limit == 64


async def test_a_repeated_step_after_a_rewind(wire: Wire, loaded: list[LoadedModel]) -> None:
    """The step gone back to is answered from the last result; those taken back do not exist."""
    await wire.send(words([0] * 6, [1, 2, 3, 4, 5, 6]), rewind([0], [4]))
    await wire.until(lambda wire: wire.rewound)
    await wire.send(words([0], [4], [4]), words([0], [6], [6]), words([0], [3], [3]), words([0], [8], [5]))
    await wire.answered(8)
    expected = alone(loaded, "next-word", [1, 2, 3, 4, 8])
    assert_same(wire.observed[6].columns, expected[4])
    assert_same(wire.observed[7].columns, expected[5])
    assert wire.reasons == ["STEP_GAP", "STEP_ALREADY_APPLIED"]
    assert [fault.metadata for fault in wire.faults] == [{"expected": "5"}, {"step": "4"}]


async def test_answers_with_words(wire: Wire) -> None:
    await wire.send(words([0] * 2, [1, 2]), rewind([0], [1], with_words=True), rewind([0], [1]))
    await wire.until(lambda wire: len(wire.rewound) == 2)
    assert len(wire.rewound[0].words) == 5
    assert wire.rewound[1].words == []


async def test_the_limit(serve: Serve) -> None:
    wire = (await serve(rewind_steps=4)).wire()
    await wire.open([0], "next-word")
    await wire.send(words([0] * 9, [1] * 9), rewind([0], [4]), rewind([0], [5]), rewind([0], [4]))
    await wire.until(lambda wire: len(wire.faults) == 2 and wire.rewound)
    assert wire.reasons == ["REWIND_LIMIT"] * 2
    assert all(fault.code == grpc.StatusCode.OUT_OF_RANGE.value[0] for fault in wire.faults)
    assert [(fault.handle, fault.step, fault.metadata) for fault in wire.faults] == [(0, 0, {"oldest": "5"})] * 2


async def test_switched_off(serve: Serve) -> None:
    wire = (await serve(rewind_steps=0)).wire()
    await wire.open([0], "next-word")
    await wire.send(words([0] * 2, [1, 2]), rewind([0, 0], [1, 2]))
    await wire.until(lambda wire: wire.faults and wire.rewound)
    assert wire.reasons == ["REWIND_LIMIT"]
    assert wire.faults[0].metadata == {"oldest": "2"}
    assert wire.rewound[0].step == 2


@pytest.mark.parametrize(
    ("fields", "handle", "reason"),
    [
        pytest.param({"handles": u4([9]), "steps": u8([0])}, 9, "HANDLE_UNKNOWN", id="unknown handle"),
        pytest.param({"handles": u4([0])}, None, "FRAME_INVALID", id="no steps"),
        pytest.param({"steps": u8([0])}, None, "FRAME_INVALID", id="no handles"),
        pytest.param({"handles": u4([0]), "steps": u8([0, 1])}, None, "FRAME_INVALID", id="too many steps"),
        pytest.param(
            {"handles": u4([0]), "steps": u8([0]), "numbers": b"\0"}, None, "FRAME_INVALID", id="torn numbers"
        ),
        pytest.param({"handles": u4([0] * 16_385), "steps": u8([0] * 16_385)}, None, "FRAME_INVALID", id="too many"),
    ],
)
async def test_refused(wire: Wire, fields: dict[str, Any], handle: int | None, reason: str) -> None:
    await wire.send(pb.StreamRequest(rewind=pb.Rewind(**fields)), words([0], [3], [1]))
    await wire.until(lambda wire: wire.faults and wire.observed)
    assert [(fault.handle, fault.reason) for fault in wire.faults] == [(handle, reason)]


async def test_closing_session(wire: Wire) -> None:
    await wire.send(words([0] * 50, [1] * 50), close([0]), rewind([0], [1]))
    await wire.until(lambda wire: wire.closed and wire.faults)
    assert wire.reasons == ["SESSION_CLOSED"]
    assert wire.rewound == []


# Without transport: what happens at a limit, and in the middle of a replay.


def test_stream_backlog() -> None:
    host, *_ = make_host(Clock(), max_stream_backlog=4)
    stream = host.connect()
    for frame in (opening([0], "words"), words([0] * 3, [1] * 3), rewind([0] * 3, [2] * 3)):
        host.receive(stream, frame)
    host.tick()
    replies = drained(stream)
    assert replies.reasons == ["STREAM_BACKLOG"] * 2
    assert all(fault.retry for fault in replies.faults)


class Halfway:
    """A session at step 20 whose rewind to step 15 has begun."""

    def __init__(self) -> None:
        self.host, self.model, _ = make_host(Clock())
        self.stream, self.replies = self.host.connect(), Replies()
        self.receive(opening([0], "words", ids=["s"]), words([0] * 20, range(20)))
        self.run()
        self.receive(rewind([0], [15]), words([0], [7], [16]))
        for _ in range(4):
            self.host.tick()
        assert self.model.table.replaying.any()

    def receive(self, *frames: pb.StreamRequest) -> None:
        for frame in frames:
            self.host.receive(self.stream, frame)

    def run(self) -> None:
        while self.host.ready:
            self.host.tick()
        self.replies = drained(self.stream, self.replies)
        self.host.check_integrity()

    def outputs(self, tokens: list[int]) -> dict[str, np.ndarray]:
        runtime = MixingWords()
        outputs, state = runtime.initial()
        for token in tokens:
            outputs, state = runtime.step(np.array([token]), state)
        return outputs._asdict()


def resumed(host: Host) -> tuple[Stream, Replies]:
    stream = host.connect()
    host.receive(stream, opening([0], "", ids=["s"], mode=pb.OPEN_MODE_RESUME))
    return stream, drained(stream)


def test_a_repeat_while_replaying_is_answered_by_the_rewind() -> None:
    halfway = Halfway()
    before = len(halfway.replies.observed)
    halfway.receive(words([0], [15], [15]), words([0], [7], [16]))
    halfway.run()
    assert [answer.step for answer in halfway.replies.rewound] == [15]
    assert [answer.step for answer in halfway.replies.observed[before:]] == [16]
    assert halfway.replies.faults == []


def test_disconnecting_in_the_middle_undoes_the_rewind() -> None:
    halfway = Halfway()
    halfway.host.disconnect(halfway.stream)
    halfway.host.check_integrity()
    stream, replies = resumed(halfway.host)
    assert (replies.opened[0], replies.rewinds[0]) == (("s", 20), 0)
    halfway.host.receive(stream, peek([0]))
    halfway.host.tick()
    assert_same(drained(stream, replies).peeked[0].columns, halfway.outputs(list(range(20))))
    # Sent again, it is done.
    halfway.host.receive(stream, rewind([0], [15], [1]))
    while halfway.host.ready:
        halfway.host.tick()
    assert_same(drained(stream, replies).rewound[0].columns, halfway.outputs(list(range(15))))


def test_taking_over_in_the_middle_undoes_the_rewind() -> None:
    halfway = Halfway()
    _, replies = resumed(halfway.host)
    assert (replies.opened[0], replies.rewinds[0]) == (("s", 20), 0)
    halfway.run()
    assert halfway.replies.reasons == ["SESSION_TAKEN_OVER"]
    assert halfway.stream.backlog == 0


def test_a_step_that_fails_in_the_middle_undoes_the_rewind() -> None:
    halfway = Halfway()
    runtime = halfway.model.runtime
    assert isinstance(runtime, MixingWords)
    runtime.fail = True
    halfway.host.tick()
    runtime.fail = False
    halfway.receive(peek([0]), words([0], [9], [21]))
    halfway.run()
    assert halfway.replies.reasons == ["INTERNAL"] * 2
    assert halfway.replies.rewound == []
    assert_same(halfway.replies.peeked[0].columns, halfway.outputs(list(range(20))))
    assert_same(halfway.replies.observed[-1].columns, halfway.outputs([*range(20), 9]))
    assert halfway.stream.backlog == 0
