"""Versions come and go in the model folder while sessions stream on, each from the version it is pinned to."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest
from tests.server.conftest import Serve, Serving
from tests.server.wire import close, opening, values, words

from hiddenstate_models.bundle import Bundle, file_facts
from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.sessions import residence
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.directory import Ended
from hiddenstate_server.versions.repository import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of a test's own, with next-word/1."""
    random_bundle(tmp_path / "models", "next-word", version=1, seed=1)
    return tmp_path / "models"


async def reload(serving: Serving) -> pb.ReloadModelsResponse:
    return await serving.stub.ReloadModels(pb.ReloadModelsRequest())


async def served(serving: Serving) -> list[str]:
    models = (await serving.stub.ListModels(pb.ListModelsRequest())).models
    return [f"{model.name}/{model.version}" for model in models]


async def opened_version(serving: Serving, *, asked: str = "") -> str:
    """The version that a new session gets."""
    wire = serving.wire()
    await wire.open([0], "next-word", version=asked)
    version: str = wire.frames[0].opened[0].version
    await wire.cancel()
    return version


def surprises(folder: Path, version: int, tokens: list[int]) -> list[float]:
    """What a lone session of this version is surprised by, token by token."""
    runtime = load_model(folder / "next-word" / str(version), Settings(max_batch=1)).runtime
    _, state = runtime.initial()
    found = []
    for token in tokens:
        outputs, state = runtime.step(np.array([token]), state)
        found.append(float(outputs.surprises[0]))
    return found


async def test_new_sessions_get_a_new_version_and_old_ones_stay(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    old = serving.wire()
    await old.open([0], "next-word", ids=["pinned"])
    random_bundle(folder, "next-word", version=2, seed=2)
    random_bundle(folder, "next-value", seed=3)
    response = await reload(serving)
    assert (list(response.loaded), list(response.retired), dict(response.refused)) == (
        ["next-value/1", "next-word/2"], [], {},
    )  # fmt: skip
    assert await opened_version(serving) == "2"
    assert await opened_version(serving, asked="1") == "1"
    tokens = [3, 4, 5, 6]
    new = serving.wire()
    await new.open([0], "next-word")
    for wire in (old, new):
        await wire.send(words([0] * len(tokens), tokens))
        await wire.answered(len(tokens))
    for wire, version in ((old, 1), (new, 2)):
        told = [answer.columns["surprises"].item() for answer in wire.observed]
        np.testing.assert_allclose(told, surprises(folder, version, tokens), rtol=1e-5)
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id="pinned"))).session
    assert (session.version, session.step) == ("1", 4)
    assert (await reload(serving)) == pb.ReloadModelsResponse()


async def test_the_folder_is_polled(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0.05)
    random_bundle(folder, "next-word", version=2, seed=2)
    await serving.settled(lambda host: len(host.models) == 2)
    shutil.rmtree(folder / "next-word" / "1")
    await serving.settled(lambda host: len(host.models) == 1)
    assert await served(serving) == ["next-word/2"]


async def test_a_retired_version_goes_with_its_last_session(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    random_bundle(folder, "next-word", version=2, seed=2)
    await reload(serving)
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["last"])
    await wire.send(words([0], [3]))
    await wire.answered(1)
    shutil.rmtree(folder / "next-word" / "1")
    assert list((await reload(serving)).retired) == ["next-word/1"]
    assert list((await reload(serving)).retired) == []

    await wire.send(opening([1], "next-word", version="1"), words([0], [4]))
    await wire.until(lambda wire: wire.faults)
    await wire.answered(2)
    assert wire.reasons == ["MODEL_NOT_FOUND"]
    assert wire.faults[0].metadata == {"available": "next-word/2"}
    described = await serving.stub.GetModel(pb.GetModelRequest(name="next-word", version="1"))
    assert described.model.live_sessions == 1
    assert await served(serving) == ["next-word/1", "next-word/2"]

    await wire.cancel()
    resumed = serving.wire()
    await resumed.open([0], "", ids=["last"], mode=pb.OPEN_MODE_RESUME)
    assert resumed.opened[0] == ("last", 2)
    model = serving.host.model("next-word", "1", retired=True)
    held = [weakref.ref(part) for part in (model, model.runtime, model.arena.states)]
    del model
    await resumed.cancel()
    closing = serving.wire()
    await closing.open([0], "", ids=["last"], mode=pb.OPEN_MODE_RESUME)
    gc.disable()
    try:
        await closing.send(close([0]))
        await serving.settled(lambda host: len(host.models) == 1)
        await asyncio.sleep(0.05)
        assert [part() for part in held] == [None] * 3, "something holds the unloaded model"
    finally:
        gc.enable()
    scraped = generate_latest(serving.host.metrics.registry).decode()
    assert 'model="next-word",version="1"' not in scraped
    assert 'model="next-word",version="2"' in scraped
    with pytest.raises(grpc.aio.AioRpcError, match="no model 'next-word/1'"):
        await serving.stub.GetModel(pb.GetModelRequest(name="next-word", version="1"))


async def test_a_retired_version_waits_for_sessions_in_the_store(serve: Serve, folder: Path) -> None:
    """They come back in the version they are pinned to; once it is gone, whoever still asks for one is told so."""
    serving = await serve(models=folder, max_sessions=2, max_idle_timeout=600.0, reload_interval=0)
    random_bundle(folder, "next-word", version=2, seed=2)
    await reload(serving)
    wire = serving.wire()
    await wire.open(range(6), "next-word", version="1", ids=[f"s{i}" for i in range(6)])
    await wire.send(words(range(6), [3] * 6))
    await wire.answered(6)
    host, old = serving.host, serving.host.model("next-word", "1")
    shutil.rmtree(folder / "next-word" / "1")
    await reload(serving)
    await serving.settled(lambda host: sum(len(stream.away) for stream in host.streams.values()) >= 4)
    old.stored_until = 0.0  # as if the server had run for longer than any lease
    await asyncio.sleep(0.6)
    assert old in host.models
    await wire.send(words(range(6), [4] * 6))
    await wire.answered(12)
    await wire.cancel()
    await serving.settled(lambda host: not host.streams and old.stored_until > host.clock() + 500)
    resumed = serving.wire()
    await resumed.open([0], "", ids=["s0"], mode=pb.OPEN_MODE_RESUME)
    assert (resumed.opened[0], resumed.frames[0].opened[0].version) == (("s0", 2), "1")
    await resumed.send(words([0], [5]), close([0]))
    await resumed.until(lambda wire: wire.closed)
    told = [answer.columns["surprises"].item() for answer in [*wire.of(0), *resumed.of(0)]]
    random_bundle(folder.parent / "again", "next-word", version=1, seed=1)
    np.testing.assert_allclose(told, surprises(folder.parent / "again", 1, [3, 4, 5]), rtol=1e-4)

    residence.park(host, old, old.table.live())
    await serving.settled(lambda _host: not old.sessions)
    old.stored_until = 0.0
    await serving.settled(lambda host: old not in host.models)
    await resumed.send(opening([1], "", ids=["s1"], mode=pb.OPEN_MODE_RESUME))
    await resumed.until(lambda wire: wire.faults)
    assert resumed.reasons == ["MODEL_NOT_FOUND"]


async def test_rows_stay_apart_when_models_come_and_go(serve: Serve, folder: Path) -> None:
    """A stream with sessions in many versions reaches each of them in one frame, whatever was unloaded between."""
    serving = await serve(models=folder, store="none", reload_interval=0, max_sessions=10)
    wire = serving.wire()
    tokens: dict[int, list[int]] = {}
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    for version in range(1, 6):
        if version > 1:
            random_bundle(folder, "next-word", version=version, seed=version)
            shutil.copytree(folder / "next-word" / str(version), kept / "next-word" / str(version))
            await reload(serving)
        await wire.open([version], "next-word")
        tokens[version] = []
        if version in (2, 4):
            shutil.rmtree(folder / "next-word" / str(version))
            await reload(serving)
            await wire.send(close([version]))
            await serving.settled(lambda host: all(not model.retired for model in host.models))
            del tokens[version]
        for token in (3 + version, 9 - version):
            await wire.send(words(list(tokens), [token] * len(tokens)))
            for sent in tokens.values():
                sent.append(token)
        await wire.answered(sum(map(len, tokens.values())))
        serving.host.check_integrity()
    assert sorted(tokens) == [1, 3, 5]
    for version, sent in tokens.items():
        told = [answer.columns["surprises"].item() for answer in wire.of(version)]
        np.testing.assert_allclose(told, surprises(kept, version, sent), rtol=1e-5)


async def test_a_session_streams_on_while_versions_come_and_go(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0.02)
    wire = serving.wire()
    await wire.open([0], "next-word")
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    changing = True

    async def stream() -> None:
        while changing:
            token = int(rng.integers(0, 20))
            tokens.append(token)
            await wire.send(words([0], [token]))
            await wire.answered(len(tokens))

    streaming = asyncio.create_task(stream())
    for version in range(2, 8):
        await asyncio.to_thread(random_bundle, folder, "next-word", version=version, seed=version)
        await serving.settled(lambda host: len(host.models) == 2)
        assert serving.host.model("next-word").info.version == str(version)
        shutil.rmtree(folder / "next-word" / str(version))
        await serving.settled(lambda host: len(host.models) == 1)
    changing = False
    await streaming
    assert len(tokens) > 50
    assert wire.faults == []
    told = [answer.columns["surprises"].item() for answer in wire.observed]
    np.testing.assert_allclose(told, surprises(folder, 1, tokens), rtol=1e-4, atol=1e-5)


def broken_weights(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"broken")


def no_config(bundle: Path) -> None:
    (bundle / "config.json").unlink()


def broken_graph(bundle: Path) -> None:
    """A graph that is no graph, listed with its right hash."""
    (bundle / "step.onnx").write_bytes(b"")
    list_anew(bundle, "step.onnx")


def endless_numbers(bundle: Path) -> None:
    """Weights that a diverged training leaves, listed with their right hash."""
    path = bundle / "model.safetensors"
    tensor = Bundle.load(bundle).tensors["cells.layers.0.weight_ih_l0"]
    data = bytearray(path.read_bytes())
    data[tensor.offset : tensor.offset + tensor.bytes] = np.full(tensor.bytes // 4, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    list_anew(bundle, path.name)


def list_anew(bundle: Path, name: str) -> None:
    config = json.loads((bundle / "config.json").read_text())
    config["files"][name] = file_facts(bundle / name).model_dump(mode="json")
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (broken_weights, "model.safetensors"),
        (no_config, "has no config.json"),
        (broken_graph, "cannot be loaded"),
        (endless_numbers, "NaN"),
    ],
)
async def test_a_broken_bundle_is_refused_until_it_is_mended(
    serve: Serve, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, reason: str
) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    good = random_bundle(tmp_path / "other", "next-word", version=2, seed=2).folder
    target = folder / "next-word" / "2"
    shutil.copytree(good, target)
    assert callable(damage)
    damage(target)
    for _ in range(3):
        response = await reload(serving)
        assert list(response.refused) == ["next-word/2"]
        assert reason in response.refused["next-word/2"]
        assert not response.loaded
        assert await opened_version(serving) == "1"
    assert capsys.readouterr().out.count("a bundle was refused") == 1
    shutil.copytree(good, target, dirs_exist_ok=True)
    response = await reload(serving)
    assert (list(response.loaded), dict(response.refused)) == (["next-word/2"], {})
    assert await opened_version(serving) == "2"


async def test_a_version_whose_files_change_is_served_as_it_was(serve: Serve, folder: Path, tmp_path: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    await reload(serving)
    other = random_bundle(tmp_path / "other", "next-word", version=1, seed=9).folder
    shutil.copytree(other, folder / "next-word" / "1", dirs_exist_ok=True)
    response = await reload(serving)
    assert "give it a version of its own" in response.refused["next-word/1"]
    assert await opened_version(serving) == "1"
    assert not (await reload(serving)).loaded


async def test_a_version_that_comes_back_is_taken_up_again(serve: Serve, folder: Path, tmp_path: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    wire = serving.wire()
    await wire.open([0], "next-word")
    shutil.move(folder / "next-word", tmp_path / "aside")
    assert list((await reload(serving)).retired) == ["next-word/1"]
    shutil.move(tmp_path / "aside", folder / "next-word")
    assert list((await reload(serving)).loaded) == ["next-word/1"]
    assert len(serving.host.models) == 1
    assert await opened_version(serving) == "1"

    shutil.rmtree(folder / "next-word")
    await reload(serving)
    random_bundle(folder, "next-word", version=1, seed=9)
    assert "served already" in (await reload(serving)).refused["next-word/1"]
    await wire.cancel()
    await serving.settled(lambda host: not host.streams)
    serving.host.end(serving.host.models[0], serving.host.models[0].table.live(), Ended.CLOSED)
    await serving.settled(lambda host: not host.models)
    assert list((await reload(serving)).loaded) == ["next-word/1"]


async def test_an_unreadable_folder_changes_nothing(serve: Serve, folder: Path, tmp_path: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    shutil.move(folder, tmp_path / "aside")
    with pytest.raises(grpc.aio.AioRpcError, match="does not exist"):
        await reload(serving)
    assert await opened_version(serving) == "1"


async def test_health_follows_by_name(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    health: Any = health_pb2_grpc.HealthStub(serving.channel)

    async def status(name: str) -> str:
        found = await health.Check(health_pb2.HealthCheckRequest(service=name))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))

    random_bundle(folder, "next-value", seed=3)
    await reload(serving)
    assert await status("next-value") == "SERVING"
    shutil.rmtree(folder / "next-word")
    await reload(serving)
    assert await status("next-word") == "NOT_SERVING"
    assert await status("") == "SERVING"
    random_bundle(folder, "next-word", version=3, seed=1)
    await reload(serving)
    assert await status("next-word") == "SERVING"


async def test_values_of_another_model_are_untouched(serve: Serve, folder: Path) -> None:
    serving = await serve(models=folder, store="none", reload_interval=0)
    random_bundle(folder, "next-value", seed=3)
    await reload(serving)
    wire = serving.wire()
    await wire.open([0], "next-value")
    shutil.rmtree(folder / "next-word")
    await reload(serving)
    await wire.send(values([0, 0], [1.0, 2.0]))
    await wire.answered(2)
