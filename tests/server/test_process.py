"""The real command: ready line, exit codes, drain by SIGTERM, several workers, metrics."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.server.certificates import Authority, credentials
from tests.server.test_service import reason_of
from tests.server.wire import Wire, close, opening, values, words

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc

COMMAND = str(Path(sys.executable).with_name("hiddenstate-server"))


class Process:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, metrics_port: int) -> None:
        self.process, self.port, self.metrics_port = process, port, metrics_port
        self.channels: list[grpc.aio.Channel] = []

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options))
        return self.channels[-1]

    def wire(self) -> Wire:
        """A stream on a connection of its own."""
        return Wire(pb_grpc.HiddenStateServiceStub(self.channel()))

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.exit_code()

    async def exit_code(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """What is scraped, by name and labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


Start = Callable[..., Awaitable[Process]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def start(bundles: Path) -> AsyncIterator[Start]:
    """Starts the command with flags, and ends what is left of it."""
    running: list[Process] = []

    async def run(*flags: str) -> Process:
        metrics_port = free_port()
        process = await asyncio.create_subprocess_exec(
            COMMAND, "--models", str(bundles), "--host", "127.0.0.1", "--port", "0", "--max-batch", "32",
            "--metrics-port", str(metrics_port), "--log-format", "json", *flags,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(120):
            line = (await process.stdout.readline()).decode()
        match = re.search(r"ready on 127\.0\.0\.1:(\d+), serving next-value/1 .*next-word/2", line)
        assert match, line
        running.append(Process(process, int(match[1]), metrics_port))
        return running[-1]

    yield run
    for server in running:
        for channel in server.channels:
            await channel.close()
        if server.process.returncode is None:
            server.process.kill()
            await server.process.wait()


async def test_sigterm_drains(start: Start) -> None:
    server = await start()
    health: Any = health_pb2_grpc.HealthStub(server.channel())
    check = health_pb2.HealthCheckRequest(service="next-word")
    assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
    wire, idle = server.wire(), server.wire()
    await idle.open([0], "next-word")
    rows = 16_000
    await wire.send(opening([0], "next-word"), words([0] * rows, [3] * rows))
    await wire.until(lambda wire: wire.observed)
    assert len(wire.observed) < rows
    server.process.send_signal(signal.SIGTERM)
    while (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING:
        await asyncio.sleep(0.01)
    await wire.send(opening([1], "next-word"))
    assert await idle.end() is grpc.StatusCode.UNAVAILABLE
    assert await wire.end() is grpc.StatusCode.UNAVAILABLE
    assert [answer.step for answer in wire.observed] == list(range(1, rows + 1))
    assert wire.reasons == ["DRAINING"]
    assert wire.faults[0].retry
    assert await server.exit_code() == 0


TERMINATED_AS_IT_GETS_READY = """
import signal
from hiddenstate_server import main
from hiddenstate_server.process import worker

ready_line = worker.ready_line

def terminated(*about):
    signal.raise_signal(signal.SIGTERM)
    return ready_line(*about)

worker.ready_line = terminated
main.main()
"""


def test_sigterm_drains_from_the_moment_it_is_ready(bundles: Path) -> None:
    flags = ["--models", str(bundles), "--port", "0", "--metrics-port", "0", "--max-batch", "32"]
    command = [sys.executable, "-c", TERMINATED_AS_IT_GETS_READY, *flags]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"ready on" in ended.stdout
    assert b"draining" in ended.stdout + ended.stderr


async def test_drain_ends_at_its_timeout(start: Start) -> None:
    server = await start("--drain-timeout", "200ms")
    wire = server.wire()
    await wire.send(opening([0], "next-word"))
    await wire.send(*(words([0] * 16_000, [3] * 16_000) for _ in range(4)))
    await wire.until(lambda wire: wire.observed)
    assert await server.stop() == 0


async def test_sessions_of_every_worker(start: Start) -> None:
    """A call may meet a worker that sends it elsewhere; snapshots are good anywhere, and closing is for all."""
    server = await start("--workers", "2")
    holders = [server.wire() for _ in range(8)]
    for index, wire in enumerate(holders):
        await wire.open([0], "next-word", version="1", ids=[f"s{index}"], labels={"app": "x"})
    stubs = [pb_grpc.HiddenStateServiceStub(server.channel()) for _ in range(8)]

    async def tried(call: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        answers = await asyncio.gather(*map(call, stubs), return_exceptions=True)
        refused = {reason_of(error) for error in answers if isinstance(error, grpc.aio.AioRpcError)}
        assert refused <= {"SESSION_ELSEWHERE"}
        return [answer for answer in answers if not isinstance(answer, grpc.aio.AioRpcError)]

    async def first_seen(stub: Any) -> Any:
        watching = stub.WatchSession(pb.WatchSessionRequest(id="s3"))
        seen = await watching.read()
        watching.cancel()
        return seen

    assert await tried(first_seen)
    assert await tried(lambda stub: stub.ForkSession(pb.ForkSessionRequest(id="s3")))
    exported = await tried(lambda stub: stub.ExportSession(pb.ExportSessionRequest(id="s3")))
    request = pb.RestoreSessionRequest(snapshot=exported[0].snapshot)
    assert len(await tried(lambda stub: stub.RestoreSession(request))) == len(stubs)
    everything: Any = stubs[0]
    count = (await everything.ListSessions(pb.ListSessionsRequest(labels={"app": "x"}))).total_size
    assert (await everything.CloseSessions(pb.CloseSessionsRequest(labels={"app": "x"}))).closed == count >= 17
    for wire in holders:
        await wire.until(lambda wire: wire.reasons == ["SESSION_CLOSED"])
    assert (await everything.ListSessions(pb.ListSessionsRequest())).total_size == 0
    assert await server.stop() == 0


async def test_metrics(start: Start) -> None:
    server = await start()
    wire = server.wire()
    await wire.open([0, 1, 2], "next-value", lease=3600)
    await wire.send(values([0, 1, 2], [1, 2, 3]), values([0, 9], [1, 2]))
    await wire.until(lambda wire: len(wire.observed) == 4)
    model = frozenset({("model", "next-value"), ("version", "1")})
    expected = {
        ("hiddenstate_observations_total", model): 4,
        ("hiddenstate_predictions_total", model): 4,
        ("hiddenstate_observation_latency_seconds_count", model): 4,
        ("hiddenstate_queue_wait_seconds_count", model): 4,
        ("hiddenstate_batch_size_rows_sum", model): 4,
        ("hiddenstate_frame_size_rows_sum", frozenset()): 5,
        ("hiddenstate_errors_total", frozenset({("reason", "HANDLE_UNKNOWN")})): 1,
        ("hiddenstate_sessions_opened_total", model | {("how", "created")}): 3,
        ("hiddenstate_live_sessions", model): 3,
        ("hiddenstate_arena_rows_used", model): 3,
        ("hiddenstate_arena_rows_free", model): 99_997,
    }
    async with asyncio.timeout(30):
        while not (samples := await server.samples()).items() >= expected.items():
            await asyncio.sleep(0.1)
    step_counts = [samples[name, model] for name in ("hiddenstate_step_compute_seconds_count",)]
    assert step_counts[0] == samples["hiddenstate_batch_size_rows_count", model]
    bounds = [
        float(dict(labels)["le"]) for name, labels in samples
        if name == "hiddenstate_observation_latency_seconds_bucket" and model < labels
    ]  # fmt: skip
    assert (min(bounds), sorted(bounds)[-2]) == (50e-6, 5.0)
    assert any(name == "hiddenstate_build_info" for name, _ in samples)
    assert sum(value for (name, _), value in samples.items() if name == "hiddenstate_model_info") == 6


async def test_several_workers_are_one_server(start: Start) -> None:
    server = await start("--workers", "2", "--store", "none")
    first = server.wire()
    await first.open([0], "next-word", ids=["shared"])
    await first.send(words([0], [3]))
    await first.until(lambda wire: wire.observed)
    elsewhere: Wire | None = None
    async with asyncio.timeout(60):
        while elsewhere is None:
            wire = server.wire()
            await wire.send(opening([0], "", ids=["shared"], mode=pb.OPEN_MODE_RESUME))
            await wire.until(lambda wire: wire.opened or wire.faults)
            if wire.faults:
                elsewhere = wire
                continue
            await wire.cancel()
    assert elsewhere.reasons == ["SESSION_ELSEWHERE"]
    assert elsewhere.faults[0].retry
    await elsewhere.send(opening([1, 2], "next-word", ids=["shared", "here"]))
    await elsewhere.until(lambda wire: len(wire.faults) == 2 and wire.opened)
    assert elsewhere.reasons[1] == "SESSION_EXISTS"

    stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(server.channel())
    pages = [await stub.ListSessions(pb.ListSessionsRequest(page_size=1))]
    pages.append(await stub.ListSessions(pb.ListSessionsRequest(page_size=1, page_token=pages[0].next_page_token)))
    assert [session.id for page in pages for session in page.sessions] == ["shared", "here"]
    assert [page.total_size for page in pages] == [2, 2]
    assert pages[1].next_page_token == ""
    for name, step in (("shared", 1), ("here", 0)):
        assert (await stub.GetSession(pb.GetSessionRequest(id=name))).session.step == step
    with pytest.raises(grpc.aio.AioRpcError, match="no session"):
        await stub.GetSession(pb.GetSessionRequest(id="nowhere"))

    model = frozenset({("model", "next-word"), ("version", "2")})
    async with asyncio.timeout(30):
        while (await server.samples()).get(("hiddenstate_live_sessions", model)) != 2:
            await asyncio.sleep(0.1)
    await elsewhere.cancel()
    assert await server.stop() == 0


def workers(server: Process) -> set[int]:
    """PIDs of a server's worker processes."""
    pids = map(int, Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split())
    return {pid for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()}


def runs(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_worker_that_dies_is_replaced(start: Start) -> None:
    server = await start("--workers", "2")
    before = workers(server)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    async with asyncio.timeout(60):
        while len(workers(server) - before) != 1:
            await asyncio.sleep(0.1)
        while True:
            wire = server.wire()
            await wire.open([0], "next-word")
            stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(server.channel())
            await stub.ListSessions(pb.ListSessionsRequest())
            samples = await server.samples()
            if sum(value for (name, _), value in samples.items() if name == "hiddenstate_build_info") == 2:
                break
            await asyncio.sleep(0.1)
    assert await server.stop() == 0


async def test_workers_go_when_their_supervisor_is_killed(start: Start) -> None:
    server = await start("--workers", "2")
    orphans = workers(server)
    assert len(orphans) == 2
    server.process.kill()
    async with asyncio.timeout(60):
        while any(map(runs, orphans)):
            await asyncio.sleep(0.05)
        assert server.process.stdout is not None
        await server.process.stdout.read()


async def refusal(*arguments: str, **environment: str) -> str:
    """What the command says on standard error when it refuses to start."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stderr=asyncio.subprocess.PIPE, env=dict(os.environ) | environment
    )
    async with asyncio.timeout(60):
        _, stderr = await process.communicate()
    assert process.returncode == 2
    message = stderr.decode()
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_address_in_use(bundles: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--models", str(bundles), "--host", "127.0.0.1", "--metrics-port", "0", "--workers", workers]
        assert f"cannot listen on 127.0.0.1:{port}" in await refusal(*flags, "--port", port)
        flags = [*flags[:-4], "--workers", workers]
        message = await refusal(*flags, "--port", "0", "--metrics-port", port)
        assert f"metrics on port {port}" in message


async def test_models_that_cannot_be_served(tmp_path: Path, bundles: Path) -> None:
    assert "does not exist" in await refusal("--models", str(tmp_path / "nothing"))
    assert "holds no model" in await refusal("--models", str(tmp_path))
    broken = tmp_path / "next-word" / "1"
    shutil.copytree(bundles / "next-word" / "1", broken)
    (broken / "model.safetensors").write_bytes(b"broken")
    for workers in ("1", "2"):
        message = await refusal("--models", str(tmp_path), "--port", "0", "--metrics-port", "0", "--workers", workers)
        assert "model.safetensors" in message
        assert message.count("\n") == 1
    assert "no int8 step" in await refusal("--models", str(bundles), "--precision", "int8")


async def test_bad_settings() -> None:
    assert "port" in await refusal("--port", "70000")
    assert "workers" in await refusal(HIDDENSTATE_WORKERS="many")
    assert "unrecognized" in await refusal("--prot", "1")


async def test_workers_ask_each_other_without_tls(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    files = authority.sign("server")
    flags = ("--tls-certificate", str(files.certificate), "--tls-key", str(files.key))
    server = await start("--workers", "2", *flags)
    channel = grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials(authority))
    stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(channel)
    async with channel:
        assert (await stub.ListSessions(pb.ListSessionsRequest(), timeout=10)).total_size == 0
    assert await server.stop() == 0


async def test_workers_keep_tenants_apart(start: Start) -> None:
    server = await start("--workers", "2")
    alice, bob = ("hiddenstate-tenant", "alice"), ("hiddenstate-tenant", "bob")
    stubs: list[pb_grpc.HiddenStateServiceAsyncStub] = [
        pb_grpc.HiddenStateServiceStub(server.channel()) for _ in range(8)
    ]
    wires = [Wire(stub, tenant) for stub in stubs for tenant in (alice, bob)]
    for number, wire in enumerate(wires):
        await wire.open([0], "next-word", ids=[f"{number // 2}"])
        await wire.send(words([0] * (1 + number % 2), [3] * (1 + number % 2)))
        await wire.answered(1 + number % 2)
    for stub in stubs:
        for steps, tenant in enumerate((alice, bob), 1):
            page = await stub.ListSessions(pb.ListSessionsRequest(), metadata=[tenant])
            assert (page.total_size, {session.step for session in page.sessions}) == (8, {steps})
            for number in range(8):
                found = await stub.GetSession(pb.GetSessionRequest(id=f"{number}"), metadata=[tenant])
                assert found.session.step == steps
        with pytest.raises(grpc.RpcError) as raised:
            await stub.GetSession(pb.GetSessionRequest(id="0"))
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    for wire in wires:
        await wire.cancel()
    assert await server.stop() == 0


async def served_versions(stub: pb_grpc.HiddenStateServiceAsyncStub, model: str) -> set[str]:
    """As one of the workers has them."""
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    return {served.version for served in models if served.name == model}


async def test_models_change_in_every_worker(start: Start, bundles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(bundles, folder)
    server = await start("--models", str(folder), "--workers", "2", "--reload-interval", "0", "--store", "none")
    stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(server.channel())
    wires = [server.wire() for _ in range(8)]
    for wire in wires:
        await wire.open([0], "next-word")
    random_bundle(folder, "next-word", version=3, seed=5)
    shutil.rmtree(folder / "next-word" / "2")
    (folder / "broken" / "1").mkdir(parents=True)
    response = await stub.ReloadModels(pb.ReloadModelsRequest())
    assert (list(response.loaded), list(response.retired)) == (["next-word/3"], ["next-word/2"])
    assert "no config.json" in response.refused["broken/1"]
    for wire in wires:
        await wire.send(words([0], [3]), opening([1], "next-word"), opening([2], "next-word", version="2"))
        await wire.until(lambda wire: wire.observed and 1 in wire.opened and wire.faults)
        assert [opened.version for frame in wire.frames for opened in frame.opened] == ["2", "3"]
        assert wire.reasons == ["MODEL_NOT_FOUND"]
    for wire in wires:
        await wire.send(close([0, 1]))
        await wire.until(lambda wire: len(wire.closed) == 2)
    retired = frozenset({("model", "next-word"), ("version", "2")})
    async with asyncio.timeout(30):
        while (await server.samples())["hiddenstate_arena_rows_free", retired]:
            await asyncio.sleep(0.1)
    samples = await server.samples()
    assert samples["hiddenstate_sessions_ended_total", retired | {("reason", "closed")}] == len(wires)
    async with asyncio.timeout(30):
        # Each worker lets go by itself, and any of them may answer.
        while "2" in (served := await served_versions(stub, "next-word")):
            await asyncio.sleep(0.1)
    assert served == {"1", "3"}
    assert await server.stop() == 0


async def test_killed_and_started_again(start: Start) -> None:
    """Sessions go on from where the server said they were durable, or later."""
    server = await start()
    wire = server.wire()
    await wire.open([0], "next-word", ids=["kept"])
    durable = 0
    while durable < 100:
        await wire.send(words([0] * 50, [3] * 50))
        await wire.answered(len(wire.observed) + 50)
        durable = int(np.frombuffer(wire.frames[-1].observed[-1].durable_steps, "<u8")[-1])
    server.process.kill()
    await server.exit_code()
    again = (await start()).wire()
    await again.open([5], "", ids=["kept"], mode=pb.OPEN_MODE_RESUME)
    step = again.opened[5][1]
    assert durable <= step <= len(wire.observed)
    await again.send(words([5], [4], [step + 1]))
    await again.answered(1)
    assert int(np.frombuffer(again.frames[-1].observed[-1].durable_steps, "<u8")[0]) >= step


async def test_workers_hand_sessions_over(start: Start) -> None:
    server = await start("--workers", "2", "--durability", "every-step")
    step = 0
    for turn in range(12):
        wire = server.wire()
        mode = pb.OPEN_MODE_RESUME if turn else pb.OPEN_MODE_CREATE
        await wire.open([0], "next-word", ids=["shared"], mode=mode)
        assert wire.opened[0][1] == step
        await wire.send(words([0] * 5, [3] * 5))
        await wire.answered(5)
        step += 5
        if turn % 2:
            await wire.cancel()
    stub: pb_grpc.HiddenStateServiceAsyncStub = pb_grpc.HiddenStateServiceStub(server.channel())
    assert (await stub.GetSession(pb.GetSessionRequest(id="shared"))).session.step == step
    assert [session.id for session in (await stub.ListSessions(pb.ListSessionsRequest())).sessions] == ["shared"]
    assert await server.stop() == 0


async def test_a_drain_tells_what_was_not_saved(start: Start, state_folder: Path) -> None:
    server = await start("--drain-timeout", "500ms")
    wire = server.wire()
    await wire.open([0], "next-word", ids=["kept"])
    await asyncio.to_thread(state_folder.rename, state_folder.with_name("out-of-reach"))
    await wire.send(words([0], [3]))
    await wire.answered(1)
    assert await server.stop() == 1
