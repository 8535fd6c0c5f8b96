"""Sessions over real gRPC, on ONNX bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from tests.server.conftest import Serve
from tests.server.wire import close, heartbeat, opening, peek, texts, values, words

from hiddenstate_models.bundle import Bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.versions.repository import LoadedModel


def alone(
    models: list[LoadedModel], name: str, inputs: Sequence[object], version: str = "1"
) -> list[dict[str, np.ndarray]]:
    """Outputs of the model stepped by hand from its initial row, the initial ones first."""
    runtime = next(m.runtime for m in models if (m.info.name, m.info.version) == (name, version))
    outputs, state = runtime.initial()
    seen = [outputs._asdict()]
    for value in inputs:
        outputs, state = runtime.step(np.array([value]), state)
        seen.append(outputs._asdict())
    return seen


def assert_same(columns: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    for name, column in outputs.items():
        np.testing.assert_allclose(columns[name], np.ravel(column), rtol=1e-5, atol=1e-5, err_msg=name)


async def test_words_step_by_step(serve: Serve, loaded: list[LoadedModel]) -> None:
    wire = (await serve()).wire()
    tokens = [5, 3, 3, 17, 0, 9]
    await wire.open([4], "next-word", version="1")
    for step, token in enumerate(tokens, 1):
        await wire.send(words([4], [token], [step]))
        await wire.answered(step)
    expected = alone(loaded, "next-word", list(tokens))
    assert [answer.step for answer in wire.observed] == [1, 2, 3, 4, 5, 6]
    for answer, outputs in zip(wire.observed, expected[1:], strict=True):
        assert_same(answer.columns, outputs)
        assert answer.words == []


async def test_many_sessions_in_one_frame_are_as_if_alone(serve: Serve, loaded: list[LoadedModel]) -> None:
    wire = (await serve()).wire()
    await wire.open(range(100), "next-value")
    rng = np.random.default_rng(0)
    series = rng.normal(20, 5, (4, 100))
    series[2, 7] = np.nan
    for row in series:
        await wire.send(values(range(100), row))
    await wire.until(lambda wire: len(wire.observed) == 400)
    for handle in (0, 7, 99):
        expected = alone(loaded, "next-value", [[value] for value in series[:, handle]])
        for answer, outputs in zip(wire.of(handle), expected[1:], strict=True):
            assert_same(answer.columns, outputs)


async def test_a_run_is_answered_in_order_and_in_few_frames(serve: Serve, loaded: list[LoadedModel]) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word", version="2")
    tokens = np.random.default_rng(1).integers(0, 50, 1000).tolist()
    await wire.send(words([0] * 1000, tokens, range(1, 1001)))
    await wire.until(lambda wire: len(wire.observed) == 1000)
    assert [answer.step for answer in wire.observed] == list(range(1, 1001))
    assert_same(wire.observed[-1].columns, alone(loaded, "next-word", tokens, "2")[-1])
    assert len(wire.frames) < 10


async def test_words_as_text(serve: Serve, loaded: list[LoadedModel], bundles: Path) -> None:
    wire = (await serve()).wire()
    await wire.open([0, 1], "next-word", version="1")
    await wire.send(texts([0, 1], ["THE", "nobodyknowsthis"]), peek([0], with_words=True))
    await wire.until(lambda wire: len(wire.observed) == 2 and wire.peeked)
    vocabulary = Bundle.load(bundles / "next-word" / "1").vocabulary
    the, unknown = (wire.of(handle)[0] for handle in (0, 1))
    assert_same(the.columns, alone(loaded, "next-word", [vocabulary.index("the")])[1])
    assert_same(unknown.columns, alone(loaded, "next-word", [0])[1])
    assert the.words == [vocabulary[token] for token in the.columns["top_tokens"]]
    assert wire.peeked[0].words == the.words


async def test_both_kinds_of_models_on_one_stream(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word")
    await wire.open([1], "weather")
    await wire.send(words([0], [3]), values([1], [[1.0, 2.0]]))
    await wire.until(lambda wire: len(wire.observed) == 2)
    assert set(wire.of(0)[0].columns) == {"surprises", "top_tokens", "top_probabilities"}
    assert wire.of(1)[0].columns["locations"].shape == (2,)


async def test_peek_and_close_keep_their_place(serve: Serve, loaded: list[LoadedModel]) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word", version="1")
    await wire.send(
        peek([0]), words([0, 0, 0], [2, 3, 4]), peek([0]), words([0], [5]), peek([0]), close([0]), words([0], [6])
    )
    await wire.until(lambda wire: wire.closed == [0] and len(wire.faults) == 1)
    expected = alone(loaded, "next-word", [2, 3, 4, 5])
    assert [answer.step for answer in wire.peeked] == [0, 3, 4]
    for answer in wire.peeked:
        if answer.step:
            assert_same(answer.columns, expected[answer.step])
    assert np.isnan(wire.peeked[0].columns["surprises"]).all()
    assert [answer.step for answer in wire.observed] == [1, 2, 3, 4]
    assert wire.reasons == ["SESSION_CLOSED"]


async def test_a_handle_can_be_used_again_after_its_close(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word")
    first = wire.opened.pop(0)[0]
    await wire.send(close([0]))
    await wire.until(lambda wire: wire.closed == [0])
    await wire.open([0], "next-word")
    assert wire.opened[0][0] != first


async def test_an_opened_handle_is_usable_in_the_next_frame(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.send(opening([0], "next-word"), words([0], [3]), close([0]))
    await wire.until(lambda wire: wire.closed == [0])
    assert [answer.step for answer in wire.observed] == [1]


async def test_half_closing_lets_work_finish(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.send(opening([0], "next-word"), words([0] * 2000, [3] * 2000))
    assert await wire.finish() is grpc.StatusCode.OK
    assert len(wire.observed) == 2000


async def test_repeated_step_is_answered_but_not_applied_again(serve: Serve, loaded: list[LoadedModel]) -> None:
    wire = (await serve()).wire()
    await wire.open([0], "next-word", version="1")
    await wire.send(words([0], [4], [1]))
    await wire.until(lambda wire: len(wire.observed) == 1)
    await wire.send(words([0], [4], [1]), words([0], [9], [2]))
    await wire.until(lambda wire: len(wire.observed) == 3)
    expected = alone(loaded, "next-word", [4, 9])
    assert [answer.step for answer in wire.observed] == [1, 1, 2]
    for answer in wire.observed:
        assert_same(answer.columns, expected[answer.step])


async def test_repeat_of_a_waiting_step_is_answered_once(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.send(opening([0], "next-word"), words([0] * 3, [4] * 3, [1, 2, 3]), words([0] * 2, [4] * 2, [2, 3]))
    await wire.finish()
    assert {answer.step for answer in wire.observed} == {1, 2, 3}
    assert wire.faults == [] or set(wire.reasons) == {"STEP_ALREADY_APPLIED"}


async def test_resume_continues_where_the_state_is(serve: Serve, loaded: list[LoadedModel]) -> None:
    serving = await serve()
    first = serving.wire()
    await first.open([0], "next-word", version="1", ids=["my.session"])
    await first.send(words([0, 0], [7, 8]))
    await first.until(lambda wire: len(wire.observed) == 2)
    await first.cancel()
    await serving.settled(lambda host: len(host.streams) == 0)
    second = serving.wire()
    await second.open([5], "", ids=["my.session"], mode=pb.OPEN_MODE_RESUME)
    assert second.opened[5] == ("my.session", 2)
    await second.send(words([5], [9], [3]))
    await second.until(lambda wire: wire.observed)
    assert_same(second.observed[0].columns, alone(loaded, "next-word", [7, 8, 9])[3])


async def test_taking_over_voids_the_other_handle(serve: Serve) -> None:
    serving = await serve()
    first, second = serving.wire(), serving.wire()
    await first.open([0, 1], "next-word", ids=["a", "b"])
    await second.open([0], "next-word", ids=["a"], mode=pb.OPEN_MODE_RESUME)
    await first.until(lambda wire: wire.reasons == ["SESSION_TAKEN_OVER"])
    await first.send(words([0, 1], [3, 3]))
    await first.until(lambda wire: len(wire.faults) == 2 and wire.of(1))
    assert first.faults[1].reason == "SESSION_TAKEN_OVER"
    await second.send(words([0], [3]))
    await second.until(lambda wire: wire.observed)


async def test_the_four_ways_a_session_is_not_there(serve: Serve) -> None:
    serving = await serve(max_sessions=2, store="none")
    holder, other = serving.wire(), serving.wire()
    await holder.open([0], "next-word", ids=["closed"])
    await holder.send(close([0]))
    await holder.until(lambda wire: wire.closed)
    await holder.open([1], "next-word", ids=["expired"], lease=0.01)
    await holder.until(lambda wire: "SESSION_EXPIRED" in wire.reasons)
    await holder.open([2], "next-word", ids=["evicted"])
    await holder.cancel()
    await serving.settled(lambda host: len(host.streams) == 1)
    await other.open([0, 1], "next-word")
    names = ["closed", "expired", "evicted", "never"]
    await other.send(opening([2, 3, 4, 5], "", ids=names, mode=pb.OPEN_MODE_RESUME))
    await other.until(lambda wire: len(wire.faults) == 4)
    reasons = ["SESSION_CLOSED", "SESSION_EXPIRED", "SESSION_EVICTED", "SESSION_NOT_FOUND"]
    assert [fault.reason for fault in sorted(other.faults, key=lambda fault: fault.handle or 0)] == reasons
    for name, reason in zip(names, reasons, strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await serving.stub.GetSession(pb.GetSessionRequest(id=name))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(raised.value) == reason


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.domain == "hiddenstate"
    reason: str = info.reason
    return reason


async def test_expiry_is_told_and_heartbeats_prevent_it(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.open([0, 1], "next-word", lease=1.5)
    for _ in range(4):
        await asyncio.sleep(0.5)
        await wire.send(heartbeat([0]))
    await wire.until(lambda wire: [fault.handle for fault in wire.faults] == [1])
    assert wire.reasons == ["SESSION_EXPIRED"]
    assert set(wire.leases) == {0}
    await wire.send(words([0, 1], [3, 3]))
    await wire.until(lambda wire: wire.of(0) and len(wire.faults) == 2)
    assert wire.faults[1].reason == "SESSION_EXPIRED"


async def test_a_lease_is_capped(serve: Serve) -> None:
    wire = (await serve(max_idle_timeout=700.0)).wire()
    await wire.open([0], "next-word", lease=1e6)
    assert wire.frames[0].opened[0].idle_timeout.ToSeconds() == 700


async def test_heartbeat_without_handles_renews_all(serve: Serve) -> None:
    wire = (await serve()).wire()
    await wire.open([3, 1], "next-word")
    await wire.send(heartbeat())
    await wire.until(lambda wire: sorted(wire.leases) == [1, 3])


async def test_detached_sessions_end_and_free_their_rows(serve: Serve) -> None:
    serving = await serve(detach_timeout=0.1)
    wire = serving.wire()
    await wire.open(range(50), "next-value")
    await wire.cancel()
    await serving.settled(lambda host: len(host.directory) == 0)
    serving.host.check_integrity()


async def test_models(serve: Serve, bundles: Path) -> None:
    stub = (await serve()).stub
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.name, model.version) for model in models] == [
        ("next-value", "1"), ("next-word", "1"), ("next-word", "2"), ("outlook", "1"), ("tunes", "1"), ("weather", "1")
    ]  # fmt: skip
    assert all(not model.text.vocabulary for model in models)
    newest = (await stub.GetModel(pb.GetModelRequest(name="next-word"))).model
    assert newest.version == "2"
    assert tuple(newest.text.vocabulary) == Bundle.load(bundles / "next-word" / "2").vocabulary
    assert newest.text.top_k == 5
    assert newest.state_bytes == 4 * Bundle.load(bundles / "next-word" / "2").config.state_size
    weather = (await stub.GetModel(pb.GetModelRequest(name="weather"))).model
    assert (len(weather.values.columns), list(weather.values.targets)) == (2, [0, 1])


@pytest.mark.parametrize(("name", "version"), [("nothing", ""), ("next-word", "3")])
async def test_unknown_models_are_told_what_exists(serve: Serve, name: str, version: str) -> None:
    serving = await serve()
    with pytest.raises(grpc.aio.AioRpcError, match="next-word/1, next-word/2") as raised:
        await serving.stub.GetModel(pb.GetModelRequest(name=name, version=version))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(raised.value) == "MODEL_NOT_FOUND"
    wire = serving.wire()
    await wire.send(opening([0], name, version=version))
    await wire.until(lambda wire: wire.faults)
    assert wire.faults[0].handle == 0
    assert "next-word/2" in wire.faults[0].metadata["available"]


async def test_sessions_are_listed_in_pages_oldest_first(serve: Serve) -> None:
    serving = await serve()
    wire = serving.wire()
    await wire.open(range(25), "next-word", ids=[f"w{i}" for i in range(25)])
    await wire.open([30], "next-value", ids=["v"])
    await wire.send(words([3, 3], [1, 2]))
    await wire.until(lambda wire: len(wire.observed) == 2)
    seen: list[pb.Session] = []
    sizes: list[int] = []
    token = ""
    while True:
        page = await serving.stub.ListSessions(pb.ListSessionsRequest(page_size=10, page_token=token))
        seen += page.sessions
        sizes.append(len(page.sessions))
        assert page.total_size == 26
        token = page.next_page_token
        if not token:
            break
    assert sizes == [10, 10, 6]
    assert [session.id for session in seen] == [f"w{i}" for i in range(25)] + ["v"]
    assert (seen[3].step, seen[3].attached, seen[3].version) == (2, True, "2")
    assert seen[3].expire_time.ToSeconds() - seen[3].last_use_time.ToSeconds() == 600
    only = await serving.stub.ListSessions(pb.ListSessionsRequest(model="next-value"))
    assert [session.id for session in only.sessions] == ["v"]
    one = await serving.stub.GetSession(pb.GetSessionRequest(id="w3"))
    assert one.session == seen[3]


@pytest.mark.parametrize("fields", [{"page_token": "?"}, {"page_size": 1001}])
async def test_malformed_list_requests(serve: Serve, fields: dict[str, Any]) -> None:
    request_ = pb.ListSessionsRequest(**fields)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (await serve()).stub.ListSessions(request_)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_per_model(serve: Serve) -> None:
    stub: Any = health_pb2_grpc.HealthStub((await serve()).channel)
    for service in ("", "next-word", "next-value", "hiddenstate.v1.HiddenStateService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))


async def test_reflection(serve: Serve) -> None:
    channel: Any = (await serve()).channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {"hiddenstate.v1.HiddenStateService", "grpc.health.v1.Health"}
    call.cancel()
