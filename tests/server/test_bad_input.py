"""Bad input, one by one, over real gRPC: each is answered, and a session on another stream goes on unharmed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from tests.server.conftest import Serve, Serving
from tests.server.wire import Wire, close, heartbeat, opening, peek, texts, u4, u8, values, words

from hiddenstate_proto import hiddenstate_pb2 as pb


class Bystander:
    """A session on a stream of its own that is fed one observation before and one after."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.wire = serving.wire()

    async def start(self) -> None:
        await self.wire.open([0], "next-value")
        await self.wire.send(values([0], [1.0], [1]))
        await self.wire.until(lambda wire: len(wire.observed) == 1)

    async def check(self) -> None:
        twin = self.serving.wire()
        await twin.open([0], "next-value")
        await twin.send(values([0, 0], [1.0, 2.0]))
        await self.wire.send(values([0], [2.0], [2]))
        await self.wire.until(lambda wire: len(wire.observed) == 2)
        await twin.until(lambda wire: len(wire.observed) == 2)
        for name, column in self.wire.observed[1].columns.items():
            np.testing.assert_allclose(column, twin.observed[1].columns[name], rtol=1e-5)
        assert self.wire.faults == []


@pytest.fixture
async def serving(serve: Serve) -> AsyncIterator[Serving]:
    """A server with a bystander, checked when the test is over."""
    serving = await serve()
    bystander = Bystander(serving)
    await bystander.start()
    yield serving
    await bystander.check()


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    """A stream with a session of each model: 0 words, 1 values, 2 weather (two columns)."""
    wire = serving.wire()
    for handle, model in enumerate(("next-word", "next-value", "weather")):
        await wire.open([handle], model)
    return wire


def observe(**fields: object) -> pb.StreamRequest:
    return pb.StreamRequest(observe=pb.Observe(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frame", "handle", "step", "reason"),
    [
        pytest.param(words([0], [50]), 0, 1, "INPUT_INVALID", id="token beyond the vocabulary"),
        pytest.param(words([0], [-1], [1]), 0, 1, "INPUT_INVALID", id="negative token"),
        pytest.param(values([1], [np.inf]), 1, 1, "INPUT_INVALID", id="infinite value"),
        pytest.param(values([1], [1e300]), 1, 1, "INPUT_INVALID", id="value beyond what a state can hold"),
        pytest.param(values([2], [[1.0, -np.inf]], [1]), 2, 1, "INPUT_INVALID", id="infinite in one column"),
        pytest.param(values([0], [1.0]), 0, 1, "INPUT_INVALID", id="values for words"),
        pytest.param(words([1], [1]), 1, 1, "INPUT_INVALID", id="tokens for values"),
        pytest.param(texts([1], ["the"], [1]), 1, 1, "INPUT_INVALID", id="words for values"),
        pytest.param(values([1], [[1.0, 2.0]]), 1, 1, "INPUT_INVALID", id="too many columns"),
        pytest.param(values([2], [1.0]), 2, 1, "INPUT_INVALID", id="too few columns"),
        pytest.param(words([9], [1], [4]), 9, 4, "HANDLE_UNKNOWN", id="handle of another stream"),
        pytest.param(words([4_000_000_000], [1]), 4_000_000_000, 0, "HANDLE_UNKNOWN", id="huge handle"),
        pytest.param(peek([9]), 9, 0, "HANDLE_UNKNOWN", id="peek at an unknown handle"),
        pytest.param(close([9]), 9, 0, "HANDLE_UNKNOWN", id="close of an unknown handle"),
        pytest.param(heartbeat([9]), 9, 0, "HANDLE_UNKNOWN", id="heartbeat of an unknown handle"),
        pytest.param(words([0], [1], [3]), 0, 3, "STEP_GAP", id="skipped step"),
        pytest.param(words([0], [1], [2**64 - 1]), 0, 0, "STEP_GAP", id="absurd step"),
        pytest.param(words([0], [1], [0]), 0, 0, "STEP_ALREADY_APPLIED", id="step zero"),
        pytest.param(opening([0], "next-word"), 0, 0, "HANDLE_IN_USE", id="handle open already"),
        pytest.param(opening([65_536], "next-word"), 65_536, 0, "HANDLE_IN_USE", id="handle out of range"),
        pytest.param(opening([7], "next-word", ids=["ü"]), 7, 0, "INPUT_INVALID", id="id with other characters"),
        pytest.param(opening([7], "next-word", ids=["x" * 129]), 7, 0, "INPUT_INVALID", id="id too long"),
        pytest.param(opening([7], "next-word", lease=-1), None, 0, "INPUT_INVALID", id="negative lease"),
        pytest.param(opening([7], "no-such-model"), 7, 0, "MODEL_NOT_FOUND", id="unknown model"),
        pytest.param(opening([], "next-word"), None, 0, "FRAME_INVALID", id="open of nothing"),
        pytest.param(opening([7, 8], "next-word", ids=["x"]), None, 0, "FRAME_INVALID", id="ids for some"),
        pytest.param(pb.StreamRequest(), None, 0, "FRAME_INVALID", id="empty frame"),
        pytest.param(observe(handles=u4([0])), None, 0, "FRAME_INVALID", id="no input"),
        pytest.param(observe(tokens=b"\0" * 4), None, 0, "FRAME_INVALID", id="no handles"),
        pytest.param(observe(handles=b"\0\0\0", tokens=b"\0" * 4), None, 0, "FRAME_INVALID", id="torn handles"),
        pytest.param(observe(handles=u4([0]), tokens=b"\0" * 8), None, 0, "FRAME_INVALID", id="int64 tokens"),
        pytest.param(observe(handles=u4([1]), values=b"\0" * 4), None, 0, "FRAME_INVALID", id="float32 values"),
        pytest.param(
            observe(handles=u4([0]), tokens=b"\0" * 4, steps=u8([1, 2])), None, 0, "FRAME_INVALID", id="too many steps"
        ),
        pytest.param(texts([0], ["a", "b"]), None, 0, "FRAME_INVALID", id="too many words"),
        pytest.param(words([0] * 16_385, [1] * 16_385), None, 0, "FRAME_INVALID", id="too many rows"),
    ],
)
async def test_refused(wire: Wire, frame: pb.StreamRequest, handle: int | None, step: int, reason: str) -> None:
    await wire.send(frame)
    await wire.until(lambda wire: wire.faults)
    fault = wire.faults[0]
    assert (fault.handle, fault.step, fault.reason) == (handle, step, reason)
    assert fault.message
    # The same stream and sessions go on.
    await wire.send(words([0], [3], [1]), values([1], [3.0], [1]), values([2], [[3.0, 4.0]], [1]))
    await wire.until(lambda wire: len(wire.observed) == 3)
    assert len(wire.faults) == 1


async def test_only_the_bad_rows_of_a_frame_are_refused(wire: Wire) -> None:
    await wire.open(range(10, 20), "next-value")
    column = np.arange(10.0)
    column[4] = np.inf
    await wire.send(values(range(10, 20), column))
    await wire.until(lambda wire: len(wire.observed) == 9 and wire.faults)
    assert [fault.handle for fault in wire.faults] == [14]


async def test_gap_says_what_comes_next_and_old_step_what_was_last(wire: Wire) -> None:
    await wire.send(words([0, 0], [1, 2], [1, 2]))
    await wire.until(lambda wire: len(wire.observed) == 2)
    await wire.send(words([0], [1], [4]), words([0], [1], [1]))
    await wire.until(lambda wire: len(wire.faults) == 2)
    assert wire.faults[0].metadata == {"expected": "3"}
    assert wire.faults[1].metadata == {"step": "2"}


async def test_closed_session(wire: Wire) -> None:
    await wire.send(close([0]))
    await wire.until(lambda wire: wire.closed)
    await wire.send(words([0], [1]), peek([0]), close([0]))
    await wire.until(lambda wire: len(wire.faults) == 3)
    assert set(wire.reasons) == {"SESSION_CLOSED"}


async def test_live_id_is_refused(serving: Serving, wire: Wire) -> None:
    await wire.open([5], "next-word", ids=["mine"])
    other = serving.wire()
    await other.send(opening([0, 1, 2], "next-word", ids=["mine", "twice", "twice"]))
    await other.until(lambda wire: len(wire.faults) == 2 and 1 in wire.opened)
    assert other.reasons == ["SESSION_EXISTS"] * 2


async def test_resume_under_another_model(wire: Wire) -> None:
    await wire.open([5], "next-word", ids=["mine"])
    await wire.send(opening([6], "weather", ids=["mine"], mode=pb.OPEN_MODE_RESUME))
    await wire.until(lambda wire: wire.faults)
    assert wire.reasons == ["SESSION_NOT_FOUND"]
    assert "next-word" in wire.faults[0].message


async def test_frame_of_ten_megabytes_ends_its_stream_only(serving: Serving, wire: Wire) -> None:
    await wire.call.write(observe(handles=u4([1]), values=b"\0" * 10_000_000))
    assert await wire.end() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await serving.settled(lambda host: len(host.streams) == 1)


async def test_bytes_that_are_no_frame_end_their_stream_only(serving: Serving, wire: Wire) -> None:
    call: Any = serving.channel.stream_stream("/hiddenstate.v1.HiddenStateService/Stream")()
    await call.write(b"GET / HTTP/1.1\xff\xff")
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no StreamRequest" in await call.details()
    await serving.settled(lambda host: len(host.streams) == 2)
    await wire.send(words([0], [3], [1]))
    await wire.until(lambda wire: wire.observed)


async def test_disconnect_in_the_middle_of_a_frame(serving: Serving, wire: Wire) -> None:
    await wire.send(words([0] * 10_000, [3] * 10_000))
    await wire.until(lambda wire: wire.observed)
    await wire.cancel()
    await serving.settled(lambda host: len(host.streams) == 1)
    serving.host.check_integrity()
    assert not any(len(model.scheduler) for model in serving.host.models)


async def test_five_thousand_sessions_opened_and_dropped(serving: Serving) -> None:
    before = len(serving.host.directory)
    wire = serving.wire()
    await wire.open(range(5000), "next-word")
    assert len(serving.host.directory) == before + 5000
    await wire.send(words(range(5000), [3] * 5000))
    await wire.cancel()
    await serving.settled(lambda host: len(host.streams) == 1)
    detached = serving.host.limits.detach_timeout
    clock = serving.host.clock
    serving.host.clock = lambda: clock() + detached
    await serving.settled(lambda host: len(host.directory) == before)
    serving.host.clock = clock
    serving.host.check_integrity()
