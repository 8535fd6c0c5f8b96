"""What the store is for: sessions outlive servers, and there may be more of them than rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.server.conftest import Serve, Serving
from tests.server.wire import Answer, heartbeat, opening, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.repository import LoadedModel

RESUME = pb.OPEN_MODE_RESUME


class Alone:
    """What a lone session of a model predicts after each of its observations."""

    def __init__(self, loaded: Sequence[LoadedModel], name: str = "next-word", version: str = "2") -> None:
        found = [model for model in loaded if (model.info.name, model.info.version) == (name, version)]
        self._runtime = found[0].runtime

    def after(self, inputs: Sequence[int]) -> dict[str, NDArray[Any]]:
        outputs, state = self._runtime.initial()
        for value in inputs:
            outputs, state = self._runtime.step(np.array([value]), state)
        return outputs._asdict()

    def check(self, answer: Answer, inputs: Sequence[int]) -> None:
        assert answer.step == len(inputs)
        for name, column in self.after(inputs).items():
            np.testing.assert_allclose(answer.columns[name], np.ravel(column), rtol=1e-5, atol=1e-5)


@pytest.fixture
def alone(loaded: list[LoadedModel]) -> Alone:
    return Alone(loaded)


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'sessions.db'}"


async def durable(serving: Serving, step: int, count: int = 1) -> None:
    """Waits until so many sessions are in the store up to a step."""
    await serving.settled(
        lambda host: sum(int((model.table.durable[model.table.live()] >= step).sum()) for model in host.models) >= count
    )


async def test_a_session_outlives_its_server(serve: Serve, tmp_path: Path, alone: Alone) -> None:
    first = await serve(store=store_in(tmp_path))
    wire = first.wire()
    await wire.open([0], "next-word", ids=["kept"])
    await wire.send(words([0, 0, 0], [3, 4, 5]))
    await wire.answered(3)
    await first.stop()
    second = (await serve(store=store_in(tmp_path))).wire()
    await second.open([7], "", ids=["kept"], mode=RESUME)
    assert second.opened[7] == ("kept", 3)
    await second.send(words([7], [6], [4]))
    await second.answered(1)
    alone.check(second.observed[-1], [3, 4, 5, 6])


async def test_fifty_sessions_in_two_rows(serve: Serve, alone: Alone) -> None:
    serving = await serve(max_sessions=2)
    wire = serving.wire()
    await wire.open(range(50), "next-word")
    fed: dict[int, list[int]] = {handle: [] for handle in range(50)}
    rng = np.random.default_rng(0)
    for _ in range(30):
        before = len(wire.observed)
        handles = rng.integers(0, 50, 12).tolist()
        tokens = rng.integers(0, 20, 12).tolist()
        for handle, token in zip(handles, tokens, strict=True):
            fed[handle].append(token)
        await wire.send(words(handles, tokens))
        await wire.answered(before + 12)
        for answer in wire.observed[before:]:
            alone.check(answer, fed[answer.handle][: answer.step])
    await serving.settled(lambda host: host.model("next-word").arena.used <= 2)
    assert not wire.faults
    await wire.send(heartbeat())
    await wire.until(lambda wire: len(wire.leases) == 50)


async def test_stored_sessions_are_listed_described_copied_and_closed(
    serve: Serve, tmp_path: Path, alone: Alone
) -> None:
    first = await serve(store=store_in(tmp_path))
    wire = first.wire()
    await wire.open(range(5), "next-word", ids=[f"s{i}" for i in range(5)], labels={"kind": "kept"})
    await wire.send(words(range(5), [3, 4, 5, 6, 7]))
    await wire.answered(5)
    await first.stop()
    serving = await serve(store=store_in(tmp_path))
    stub, wire = serving.stub, serving.wire()
    await wire.open([0], "next-word", ids=["fresh"])
    await wire.open([1], "", ids=["s1"], mode=RESUME)
    seen: list[pb.Session] = []
    request = pb.ListSessionsRequest(page_size=2)
    while not seen or request.page_token:
        page = await stub.ListSessions(request)
        seen += page.sessions
        request.page_token = page.next_page_token
        assert page.total_size == 6
    assert [session.id for session in seen] == [*(f"s{i}" for i in range(5)), "fresh"]
    assert [session.step for session in seen] == [1] * 5 + [0]
    assert {session.place for session in seen[2:5]} == {pb.PLACE_STORE}
    assert [session.attached for session in seen] == [False, True, False, False, False, True]
    labelled = await stub.ListSessions(pb.ListSessionsRequest(labels={"kind": "kept"}))
    assert labelled.total_size == len(labelled.sessions) == 5
    described = (await stub.GetSession(pb.GetSessionRequest(id="s2"))).session
    assert (described.step, described.durable_step, described.place) == (1, 1, pb.PLACE_STORE)
    copy = (await stub.ForkSession(pb.ForkSessionRequest(id="s2"))).sessions[0]
    snapshot = (await stub.ExportSession(pb.ExportSessionRequest(id="s3"))).snapshot
    restored = (await stub.RestoreSession(pb.RestoreSessionRequest(snapshot=snapshot))).session
    await wire.open([2, 3], "", ids=[copy.id, restored.id], mode=RESUME)
    await wire.send(words([2, 3], [8, 9], [2, 2]))
    await wire.answered(2)
    alone.check(wire.of(2)[0], [5, 8])
    alone.check(wire.of(3)[0], [6, 9])
    assert (await stub.CloseSessions(pb.CloseSessionsRequest(ids=["s0", "never"]))).closed == 1
    assert (await stub.CloseSessions(pb.CloseSessionsRequest(labels={"kind": "kept"}))).closed == 6
    assert (await stub.ListSessions(pb.ListSessionsRequest())).total_size == 1
    await wire.send(opening([4], "", ids=["s0"], mode=RESUME))
    await wire.until(lambda wire: any(fault.handle == 4 for fault in wire.faults))
    assert wire.faults[-1].reason == "SESSION_CLOSED"
