"""Sessions as sealed bytes: what comes back is what went out, and nothing else is let in."""

from __future__ import annotations

import hmac
import json
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.conftest import Serve, Serving
from tests.server.test_service import alone, assert_same, reason_of
from tests.server.wire import Wire, close, export, opening, peek, rewind, u4, values, words

from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import SnapshotInvalid, StartError
from hiddenstate_server.sessions.snapshots import Sealer, Snapshot, snapshot_key
from hiddenstate_server.versions.repository import LoadedModel

KEY = b"k" * 32
SNAPSHOT = Snapshot("someone", "next-word", "1", "d" * 64, 7, 600.0, '{"app":"ä"}', bytes(range(200)))
RESTORE = pb.OPEN_MODE_RESTORE
TOKENS = [4, 5, 6, 7, 8]


# Sealing.


@given(
    names=st.tuples(st.text(), st.text(), st.text(), st.text()),
    step=st.integers(0, 2**62),
    lease=st.floats(0, 1e9),
    labels=st.text(),
    body=st.binary(max_size=5000),
)
def test_what_was_sealed_is_opened(
    names: tuple[str, str, str, str], step: int, lease: float, labels: str, body: bytes
) -> None:
    snapshot = Snapshot(*names, step, lease, labels, body)
    assert Sealer(KEY).open(Sealer(KEY).seal(snapshot)) == snapshot


def test_every_bit_counts() -> None:
    sealed = bytearray(Sealer(KEY).seal(SNAPSHOT))
    for bit in range(8 * len(sealed)):
        sealed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotInvalid):
            Sealer(KEY).open(bytes(sealed))
        sealed[bit // 8] ^= 1 << bit % 8
    assert Sealer(KEY).open(bytes(sealed)) == SNAPSHOT


def test_every_truncation_is_found() -> None:
    sealed = Sealer(KEY).seal(SNAPSHOT)
    for length in range(len(sealed)):
        for torn in (sealed[:length], sealed[-length:] if length else b""):
            with pytest.raises(SnapshotInvalid):
                Sealer(KEY).open(torn)


@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        Sealer(KEY).open(data)


def test_another_key() -> None:
    with pytest.raises(SnapshotInvalid, match="key"):
        Sealer(KEY).open(Sealer(b"x" * 32).seal(SNAPSHOT))


def signed(data: bytes) -> bytes:
    return data + hmac.digest(KEY, data, "sha256")


def test_another_format_and_too_much_of_it() -> None:
    start = Sealer(KEY).seal(SNAPSHOT)[:8]
    with pytest.raises(SnapshotInvalid, match="format"):
        Sealer(KEY).open(signed(start[:7] + b"\2" + zlib.compress(b"")))
    with pytest.raises(SnapshotInvalid, match="limit"):
        Sealer(KEY).open(signed(start + zlib.compress(bytes(65 * 2**20))))
    header = json.dumps(dict(zip(Snapshot._fields[:-1], SNAPSHOT[:-1], strict=True))).encode()
    content = struct.pack("<I", len(header)) + header + SNAPSHOT.body
    assert Sealer(KEY).open(signed(start + zlib.compress(content))) == SNAPSHOT


# The key.


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    key = snapshot_key(None, folder)
    assert len(key) == 64
    assert snapshot_key(None, folder) == key
    assert [path.name for path in folder.iterdir()] == ["snapshot.key"]
    assert stat.S_IMODE((folder / "snapshot.key").stat().st_mode) == 0o600
    assert snapshot_key(None, tmp_path / "other") != key


def test_a_key_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("f" * 32 + "\n")
    monkeypatch.setenv("HIDDENSTATE_SNAPSHOT_KEY", "e" * 40)
    assert snapshot_key(file, tmp_path) == b"f" * 32
    assert snapshot_key(None, tmp_path) == b"e" * 40
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_keys_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, binary = tmp_path / "short", tmp_path / "binary"
    short.write_text("f" * 31)
    binary.write_bytes(b"\xff" * 40)
    with pytest.raises(StartError, match="too short") as raised:
        snapshot_key(short, tmp_path)
    assert "fff" not in str(raised.value)
    for path in (binary, tmp_path / "absent", tmp_path):
        with pytest.raises(StartError, match="cannot read"):
            snapshot_key(path, tmp_path)
    with pytest.raises(StartError, match="--state-folder"):
        snapshot_key(None, short)
    monkeypatch.setenv("HIDDENSTATE_SNAPSHOT_KEY", "secret")
    with pytest.raises(StartError, match="too short") as raised:
        snapshot_key(None, tmp_path)
    assert "secret" not in str(raised.value)


# Over a stream.


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    return await serve()


@pytest.fixture
async def wire(serving: Serving) -> Wire:
    """A stream with a labelled session of words, 0, that has observed TOKENS."""
    wire = serving.wire()
    await wire.open([0], "next-word", version="1", ids=["s"], labels={"app": "x"}, lease=300)
    await wire.send(words([0] * len(TOKENS), TOKENS))
    await wire.answered(len(TOKENS))
    return wire


async def snapshot_of(wire: Wire, handle: int = 0) -> bytes:
    before = len(wire.exported)
    await wire.send(export([handle]))
    await wire.until(lambda wire: len(wire.exported) > before)
    assert wire.exported[-1].handle == handle
    return wire.exported[-1].snapshot


async def test_there_and_back(serving: Serving, wire: Wire, loaded: list[LoadedModel]) -> None:
    snapshot = await snapshot_of(wire)
    await wire.send(words([0], [9]))
    await wire.open([1], "", ids=["copy"], mode=RESTORE, snapshots=[snapshot])
    assert wire.opened[1] == ("copy", 5)
    await wire.send(peek([1]), words([1], [3], [6]), rewind([1], [2]), words([1], [9], [3]))
    await wire.until(lambda wire: len(wire.of(1)) == 2)
    expected = alone(loaded, "next-word", [*TOKENS, 3])
    assert_same(wire.peeked[0].columns, expected[5])
    assert_same(wire.of(1)[0].columns, expected[6])
    assert_same(wire.rewound[0].columns, expected[2])
    assert_same(wire.of(1)[1].columns, alone(loaded, "next-word", [4, 5, 9])[-1])
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id="copy"))).session
    assert (dict(session.labels), session.idle_timeout.ToSeconds()) == ({"app": "x"}, 300)
    await wire.open([2], "", mode=RESTORE, snapshots=[snapshot], labels={"app": "y"}, lease=200)
    session = (await serving.stub.GetSession(pb.GetSessionRequest(id=wire.opened[2][0]))).session
    assert (dict(session.labels), session.idle_timeout.ToSeconds()) == ({"app": "y"}, 200)


async def test_exports_keep_their_place(wire: Wire) -> None:
    await wire.send(export([0]), words([0], [3]), export([0]), rewind([0], [2]), export([0]), close([0]))
    await wire.until(lambda wire: wire.closed)
    assert [exported.step for exported in wire.exported] == [5, 6, 2]
    for handle, exported in enumerate(wire.exported):
        await wire.open([handle + 1], "next-word", version="1", mode=RESTORE, snapshots=[exported.snapshot])
    assert [wire.opened[handle][1] for handle in (1, 2, 3)] == [5, 6, 2]


async def test_on_a_replica_with_the_same_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, loaded: list[LoadedModel]
) -> None:
    monkeypatch.setenv("HIDDENSTATE_SNAPSHOT_KEY", "e" * 32)
    here, there = (await serve()).wire(), (await serve(rewind_steps=3, max_idle_timeout=500, idle_timeout=400)).wire()
    await here.open([0], "weather")
    series = np.random.default_rng(0).normal(20, 5, (7, 2))
    await here.send(values([0] * 6, series[:6]))
    await there.open([0], "", mode=RESTORE, snapshots=[await snapshot_of(here)])
    assert there.frames[0].opened[0].idle_timeout.ToSeconds() == 500
    await there.send(values([0], series[6:], [7]), rewind([0], [6]), rewind([0], [5]))
    await there.until(lambda wire: wire.observed and wire.faults)
    assert_same(there.observed[0].columns, alone(loaded, "weather", list(series))[7])
    # It keeps other histories, so this one stayed behind.
    assert there.reasons == ["REWIND_LIMIT"] * len(there.reasons)
    monkeypatch.setenv("HIDDENSTATE_SNAPSHOT_KEY", "f" * 32)
    elsewhere = (await serve()).wire()
    await elsewhere.send(opening([0], "", mode=RESTORE, snapshots=[here.exported[0].snapshot]))
    await elsewhere.until(lambda wire: wire.faults)
    assert elsewhere.reasons == ["SNAPSHOT_INVALID"]


async def test_another_bundle_of_the_same_name(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIDDENSTATE_SNAPSHOT_KEY", "e" * 32)
    here = (await serve()).wire()
    await here.open([0], "next-word", version="2")
    snapshot = await snapshot_of(here)
    random_bundle(tmp_path / "other", "next-word", version=2, seed=77)
    there = (await serve(models=tmp_path / "other")).wire()
    await there.send(opening([0], "", mode=RESTORE, snapshots=[snapshot]))
    random_bundle(tmp_path / "none", "next-word", version=3, seed=2)
    nowhere = (await serve(models=tmp_path / "none")).wire()
    await nowhere.send(opening([0], "", mode=RESTORE, snapshots=[snapshot]))
    for asked, reason in ((there, "SNAPSHOT_INVALID"), (nowhere, "MODEL_NOT_FOUND")):
        await asked.until(lambda wire: wire.faults)
        assert [(fault.handle, fault.reason) for fault in asked.faults] == [(0, reason)]
    assert "another model" in there.faults[0].message


async def test_each_of_a_frame_for_itself(serving: Serving, wire: Wire) -> None:
    await wire.open([10], "next-value")
    await wire.open([11], "next-word")
    snapshots = [await snapshot_of(wire), b"", await snapshot_of(wire, 10), b"x" * 500, await snapshot_of(wire, 11)]
    ids = ["a", "b", "s", "d", "s2"]
    await wire.send(opening([1, 2, 3, 4, 5], "", mode=RESTORE, snapshots=snapshots, ids=ids))
    await wire.until(lambda wire: {1, 5} <= set(wire.opened) and len(wire.faults) == 3)
    assert {(fault.handle, fault.reason) for fault in wire.faults} == {
        (2, "SNAPSHOT_INVALID"),
        (3, "SESSION_EXISTS"),
        (4, "SNAPSHOT_INVALID"),
    }
    assert sorted(name for name in ids if serving.host.directory.get(f"/{name}")) == ["a", "s", "s2"]


@pytest.mark.parametrize(
    ("fields", "handle", "reason"),
    [
        pytest.param({"handles": [0]}, 0, "HANDLE_IN_USE", id="handle open already"),
        pytest.param({"handles": [70_000]}, 70_000, "HANDLE_IN_USE", id="handle out of range"),
        pytest.param({"ids": ["ü"]}, 1, "INPUT_INVALID", id="id with other characters"),
        pytest.param({"model": "weather"}, 1, "SNAPSHOT_INVALID", id="under another model"),
        pytest.param({"model": "next-word", "version": "2"}, 1, "SNAPSHOT_INVALID", id="under another version"),
        pytest.param({"labels": {"": "x"}}, None, "INPUT_INVALID", id="bad labels"),
        pytest.param({"lease": -1}, None, "INPUT_INVALID", id="negative lease"),
        pytest.param({"snapshots": []}, None, "FRAME_INVALID", id="no snapshot"),
        pytest.param({"handles": [], "snapshots": []}, None, "FRAME_INVALID", id="nothing"),
    ],
)
async def test_refused(wire: Wire, fields: dict[str, Any], handle: int | None, reason: str) -> None:
    frame: dict[str, Any] = {"handles": [1], "model": "", "mode": RESTORE, "snapshots": [await snapshot_of(wire)]}
    await wire.send(opening(**(frame | fields)), words([0], [3], [6]))
    await wire.until(lambda wire: wire.faults and len(wire.observed) == 6)
    assert [(fault.handle, fault.reason) for fault in wire.faults] == [(handle, reason)]
    assert 1 not in wire.opened


@pytest.mark.parametrize(
    ("handles", "handle", "reason"),
    [([9], 9, "HANDLE_UNKNOWN"), ([], None, "FRAME_INVALID"), ([0] * 1025, None, "FRAME_INVALID")],
)
async def test_exports_refused(wire: Wire, handles: list[int], handle: int | None, reason: str) -> None:
    await wire.send(pb.StreamRequest(export=pb.Export(handles=u4(handles))))
    await wire.until(lambda wire: wire.faults)
    assert [(fault.handle, fault.reason) for fault in wire.faults] == [(handle, reason)]


async def test_export_of_a_closing_session(wire: Wire) -> None:
    await wire.send(words([0] * 500, [1] * 500), close([0]), export([0]))
    await wire.until(lambda wire: wire.closed and wire.faults)
    assert wire.reasons == ["SESSION_CLOSED"]


async def test_half_closing_lets_exports_and_restores_finish(serving: Serving, wire: Wire) -> None:
    snapshot = await snapshot_of(wire)
    await wire.send(
        words([0] * 300, [3] * 300), export([0] * 500), opening([1], "", mode=RESTORE, snapshots=[snapshot])
    )
    assert await wire.finish() is grpc.StatusCode.OK
    assert len(wire.exported) == 501
    assert wire.opened[1][1] == 5
    await serving.settled(lambda host: not host.streams)


async def test_no_more_room_than_there_is(serve: Serve) -> None:
    wire = (await serve(max_sessions=3, store="none")).wire()
    await wire.open([0], "next-word")
    await wire.send(opening([1, 2, 3, 4], "", mode=RESTORE, snapshots=[await snapshot_of(wire)] * 4))
    await wire.until(lambda wire: len(wire.faults) == 2 and {1, 2} <= set(wire.opened))
    assert wire.reasons == ["SESSION_LIMIT"] * 2


async def test_tenants_are_kept_apart(serving: Serving) -> None:
    mine, other = serving.wire(("hiddenstate-tenant", "me")), serving.wire(("hiddenstate-tenant", "you"))
    await mine.open([0], "next-word")
    await other.send(opening([0], "", mode=RESTORE, snapshots=[await snapshot_of(mine)]))
    await other.until(lambda wire: wire.faults)
    assert other.reasons == ["SNAPSHOT_INVALID"]


# The calls.


async def test_calls(serving: Serving, wire: Wire, loaded: list[LoadedModel]) -> None:
    exported = await serving.stub.ExportSession(pb.ExportSessionRequest(id="s"))
    assert (exported.session.id, exported.session.step, exported.session.attached) == ("s", 5, True)
    request = pb.RestoreSessionRequest(snapshot=exported.snapshot)
    made = (await serving.stub.RestoreSession(request)).session
    assert (len(made.id), made.step, made.attached, dict(made.labels)) == (32, 5, False, {"app": "x"})
    request.id = "mine"
    assert (await serving.stub.RestoreSession(request)).session.id == "mine"
    await wire.open([1], "", ids=["mine"], mode=pb.OPEN_MODE_RESUME)
    await wire.send(words([1], [3], [6]))
    await wire.until(lambda wire: wire.of(1))
    assert_same(wire.of(1)[0].columns, alone(loaded, "next-word", [*TOKENS, 3])[-1])


async def reason_for(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return reason_of(raised.value)


@pytest.mark.usefixtures("wire")
async def test_calls_refused(serving: Serving) -> None:
    stub, live = serving.stub, len(serving.host.directory)
    good = (await stub.ExportSession(pb.ExportSessionRequest(id="s"))).snapshot
    assert await reason_for(stub.ExportSession(pb.ExportSessionRequest(id="nobody"))) == "SESSION_NOT_FOUND"
    for fields, reason in (
        ({"snapshot": good, "id": "s"}, "SESSION_EXISTS"),
        ({"snapshot": good, "id": "ü"}, "INPUT_INVALID"),
        ({"snapshot": good[:-1]}, "SNAPSHOT_INVALID"),
        ({"snapshot": os.urandom(1000)}, "SNAPSHOT_INVALID"),
        ({}, "SNAPSHOT_INVALID"),
    ):
        request = pb.RestoreSessionRequest(**fields)
        assert await reason_for(stub.RestoreSession(request)) == reason
    assert len(serving.host.directory) == live


async def test_damage_over_the_wire(serving: Serving, wire: Wire) -> None:
    """SNAPSHOT_INVALID and nothing else, and the server goes on."""
    good = await snapshot_of(wire)
    rng = np.random.default_rng(0)
    damaged = [good[:length] for length in rng.integers(0, len(good), 50).tolist()]
    for bit in rng.integers(0, 8 * len(good), 200).tolist():
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    await wire.send(opening(range(1, 251), "", mode=RESTORE, snapshots=damaged))
    await wire.until(lambda wire: len(wire.faults) == 250)
    assert set(wire.reasons) == {"SNAPSHOT_INVALID"}
    assert len(serving.host.directory) == 1
