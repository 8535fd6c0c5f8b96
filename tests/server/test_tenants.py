"""Who calls, and that no tenant learns anything of another's sessions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.server.conftest import Serve, Serving
from tests.server.wire import Wire, close, opening, words

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import StartError
from hiddenstate_server.tokens import digest, read_tokens

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["HiddenStateService"].methods}
ALICE, BOB = ("hiddenstate-tenant", "alice"), ("hiddenstate-tenant", "bob")
RESUME = pb.OPEN_MODE_RESUME


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A file where alice has two tokens, "one" and "two", and bob has "three"."""
    path = tmp_path / "tokens.toml"
    held = {"alice": ["one", "two"], "bob": ["three"]}
    path.write_text("\n".join(f'"{name}" = {[hashed(token) for token in own]}' for name, own in held.items()))
    return path


def hashed(token: str) -> str:
    return f"sha256:{digest(token).hex()}"


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


async def ending(serving: Serving, method: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How a call of any kind ends that sends an empty request."""
    call: Any = getattr(serving.stub, method)
    described = METHODS[method]
    request = getattr(pb, described.input_type.name)()
    try:
        if described.client_streaming:
            await call(iter([request]), metadata=metadata, timeout=10).read()
        elif described.server_streaming:
            await call(request, metadata=metadata, timeout=10).read()
        else:
            await call(request, metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


# who calls


@pytest.mark.parametrize("method", METHODS)
async def test_every_call_asks_for_a_token(serve: Serve, tokens: Path, method: str) -> None:
    serving = await serve(tokens=tokens)
    for headers in [
        (),
        (bearer("four"),),
        (bearer(""),),
        (("authorization", "one"),),
        (("authorization", "Basic one"),),
        (bearer("one"), bearer("one")),
        (ALICE,),
    ]:
        assert await ending(serving, method, *headers) == grpc.StatusCode.UNAUTHENTICATED
    assert await ending(serving, method, bearer("one")) != grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_reflection_are_open(serve: Serve, tokens: Path) -> None:
    serving = await serve(tokens=tokens)
    health: Any = health_pb2_grpc.HealthStub(serving.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    channel: Any = serving.channel
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert "hiddenstate.v1.HiddenStateService" in str(await call.read())


async def test_a_token_says_whose_sessions(serve: Serve, tokens: Path) -> None:
    serving = await serve(tokens=tokens)
    await serving.wire(bearer("one")).open([0], "next-word", ids=["mine"])
    request = pb.GetSessionRequest(id="mine")
    assert (await serving.stub.GetSession(request, metadata=[bearer("two")])).session.id == "mine"
    with pytest.raises(grpc.RpcError) as raised:
        await serving.stub.GetSession(request, metadata=[("authorization", "bearer three")])
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_token_is_good_for_its_tenant_alone(serve: Serve, tokens: Path) -> None:
    serving = await serve(tokens=tokens)
    assert await ending(serving, "ListSessions", bearer("one"), ALICE) == grpc.StatusCode.OK
    assert await ending(serving, "ListSessions", bearer("one"), BOB) == grpc.StatusCode.PERMISSION_DENIED
    assert await ending(serving, "Stream", bearer("one"), BOB) == grpc.StatusCode.PERMISSION_DENIED


async def test_models_are_reloaded_by_administrators(serve: Serve, tokens: Path) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    named, unnamed = await serve(tokens=tokens, admin_tenant="alice"), await serve(tokens=tokens)
    assert await ending(named, "ReloadModels", bearer("two")) == grpc.StatusCode.OK
    assert await ending(named, "ReloadModels", bearer("three")) == denied
    assert await ending(unnamed, "ReloadModels", bearer("one")) == denied
    believed = await serve()
    assert await ending(believed, "ReloadModels") == grpc.StatusCode.OK
    assert await ending(believed, "ReloadModels", ALICE) == denied


@pytest.mark.parametrize("method", METHODS)
async def test_a_malformed_tenant_is_refused(serve: Serve, method: str) -> None:
    serving = await serve()
    for headers in [
        (("hiddenstate-tenant", "a/b"),),
        (("hiddenstate-tenant", "x" * 65),),
        (("hiddenstate-tenant", ""),),
        (ALICE, BOB),
    ]:
        assert await ending(serving, method, *headers) == grpc.StatusCode.INVALID_ARGUMENT


# tokens


def test_a_made_token_works(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hiddenstate_server.tokens", "alice"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    path = tmp_path / "tokens.toml"
    path.write_text(made.stdout)
    token = made.stderr.strip()
    assert len(token) >= 43
    assert token not in made.stdout
    assert read_tokens(path) == {digest(token): "alice"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tokens"),
        ("alice = [", "cannot be read"),
        ('"a/b" = ["sha256:x"]', "characters"),
        ('alice = ["secret"]', "sha256"),
        ("alice = [1]", "sha256"),
        (f'alice = ["{hashed("one")}"]\nbob = ["{hashed("one")}"]', "another tenant"),
    ],
)
def test_mistakes_in_the_file_stop_the_start(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(StartError, match=message):
        read_tokens(path)


# what tenants learn of each other

Told = list[tuple[object, ...]]


async def told(serving: Serving, session_id: str, *metadata: tuple[str, str]) -> Told:
    """Everything that every call answers about an id, byte for byte."""
    answers: Told = []
    for name, method in METHODS.items():
        request = getattr(pb, method.input_type.name)()
        fields = method.input_type.fields_by_name
        if "id" in fields:
            request.id = session_id
        elif "ids" in fields:
            request.ids.append(session_id)
        elif name != "ListSessions":
            continue
        call: Any = getattr(serving.stub, name)
        try:
            answer = call(request, metadata=metadata, timeout=10)
            reply = await (answer.read() if method.server_streaming else answer)
            answers.append((name, reply.SerializeToString(deterministic=True)))
        except grpc.aio.AioRpcError as error:
            trailers = sorted((key, value) for key, value in error.trailing_metadata() if key.startswith("grpc-"))
            answers.append((name, error.code(), error.details(), *trailers))
    wire = serving.wire(*metadata)
    await wire.send(opening([0], "", ids=[session_id], mode=RESUME))
    await wire.send(opening([1], "next-value", ids=[session_id], mode=RESUME))
    await wire.until(lambda wire: len(wire.faults) == 2)
    await wire.cancel()
    faults = (fault for frame in wire.frames for fault in frame.faults)
    return [*answers, *((fault.SerializeToString(deterministic=True),) for fault in faults)]


async def attached(wire: Wire, _serving: Serving) -> None:
    await wire.send(words([0], [3]))
    await wire.until(lambda wire: wire.observed)


async def detached(wire: Wire, serving: Serving) -> None:
    await wire.cancel()
    await serving.settled(lambda host: not host.streams)


async def closed(wire: Wire, _serving: Serving) -> None:
    await wire.send(close([0]))
    await wire.until(lambda wire: wire.closed)


async def expired(wire: Wire, _serving: Serving) -> None:
    await wire.until(lambda wire: "SESSION_EXPIRED" in wire.reasons)


async def evicted(wire: Wire, serving: Serving) -> None:
    await detached(wire, serving)
    await serving.wire(ALICE).open([0, 1, 2], "next-word")


async def taken_over(wire: Wire, serving: Serving) -> None:
    await serving.wire(ALICE).open([5], "", ids=["guessed"], mode=RESUME)
    await wire.until(lambda wire: "SESSION_TAKEN_OVER" in wire.reasons)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "in memory"])
@pytest.mark.parametrize("fate", [attached, detached, closed, expired, evicted, taken_over])
async def test_a_guessed_id_is_one_that_never_was(
    serve: Serve, fate: Callable[[Wire, Serving], Awaitable[None]], kept: bool
) -> None:
    serving = await serve(max_sessions=3, store="" if kept else "none")
    never = await told(serving, "guessed", BOB)
    assert any(answer[0] == "GetSession" and answer[1] == grpc.StatusCode.NOT_FOUND for answer in never)
    wire = serving.wire(ALICE)
    lease = 0.4 if fate is expired else 600.0
    await wire.open([0], "next-word", ids=["guessed"], lease=lease)
    await fate(wire, serving)
    assert await told(serving, "guessed", BOB) == never


@pytest.mark.parametrize("fate", [detached, closed])
async def test_nor_is_it_after_a_restart(
    serve: Serve, tmp_path: Path, fate: Callable[[Wire, Serving], Awaitable[None]]
) -> None:
    before = await serve(state_folder=tmp_path)
    never = await told(before, "guessed", BOB)
    wire = before.wire(ALICE)
    await wire.open([0], "next-word", ids=["guessed"])
    await fate(wire, before)
    await before.stop()
    after = await serve(state_folder=tmp_path)
    assert await told(after, "guessed", BOB) == never
    own = after.wire(ALICE)
    await own.send(opening([0], "", ids=["guessed"], mode=RESUME))
    await own.until(lambda wire: wire.opened or wire.reasons == ["SESSION_CLOSED"])
    assert await told(after, "guessed", BOB) == never


async def test_tenants_use_the_same_ids_independently(serve: Serve) -> None:
    serving = await serve()
    wires = {name: serving.wire(*headers) for name, headers in (("a", [ALICE]), ("b", [BOB]), ("nobody", []))}
    for count, wire in enumerate(wires.values(), 1):
        await wire.open([0], "next-word", ids=["same"])
        await wire.send(words([0] * count, [3 + i for i in range(count)]))
        await wire.answered(count)
    for count, headers in enumerate(([ALICE], [BOB], []), 1):
        session = (await serving.stub.GetSession(pb.GetSessionRequest(id="same"), metadata=headers)).session
        assert session.step == count
        listed = await serving.stub.ListSessions(pb.ListSessionsRequest(), metadata=headers)
        assert (listed.total_size, [each.step for each in listed.sessions]) == (1, [count])
    await wires["a"].send(close([0]))
    await wires["a"].until(lambda wire: wire.closed)
    await wires["b"].send(opening([1], "next-word", ids=["same"]))
    await wires["b"].until(lambda wire: wire.faults)
    assert wires["b"].reasons == ["SESSION_EXISTS"]


async def test_a_page_goes_on_within_the_tenant(serve: Serve) -> None:
    serving = await serve()
    alice, bob = serving.wire(ALICE), serving.wire(BOB)
    for handle in range(6):
        for wire in (alice, bob):
            await wire.open([handle], "next-word" if handle % 2 else "next-value", ids=[f"s{handle}"])
    seen, token = [], ""
    while True:
        request = pb.ListSessionsRequest(page_size=4, page_token=token)
        page = await serving.stub.ListSessions(request, metadata=[BOB])
        assert page.total_size == 6
        seen += [session.id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"s{handle}" for handle in range(6)]
