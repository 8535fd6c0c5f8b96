"""What can happen to a file: workers that share it, a full disk, damage, and a process that dies while it writes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from tests.server.test_store import record, sessions

from hiddenstate_server.errors import StartError
from hiddenstate_server.store import Filters, Store, StoreError, open_store, sql

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{path}")
    yield opened
    opened.close()


def test_the_file_is_nobody_elses(store: Store, path: Path) -> None:
    store.write([record()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///here%20.db").close()
    assert (tmp_path / "here .db").is_file()


def test_a_restart_keeps_everything(store: Store, path: Path) -> None:
    everything = sessions(3_000)
    store.write(everything)
    store.write([everything[0]._replace(ended="CLOSED", body=b"")])
    store.close()
    again = open_store(f"sqlite:///{path}")
    found = again.find([each.key for each in everything])
    assert found == {each.key: each for each in everything} | {
        everything[0].key: everything[0]._replace(ended="CLOSED", body=b"")
    }
    assert again.page("", Filters(), limit=1)[1] == 2_999
    again.close()


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (sql.PAGE, {"tenant": "", "model": "", "labels": "{}", "used_by": 0, "created": 0, "key": "", "limit": 9}),
        (sql.TOTAL, {"tenant": "", "model": ""}),
        (sql.FIND, ("[]",)),
        (sql.CLAIM, ("me", "[]")),
        (sql.EXPIRE, {"now": 0, "grace": 0, "slice": 9}),
        (sql.PUT_OFF, {"now": 0, "grace": 0, "slice": 9}),
        (sql.PRUNE, {"before": 0, "slice": 9}),
        (sql.PRUNE_TIMES, {"before": 0, "slice": 9}),
    ],
)
def test_nothing_looks_at_every_session(path: Path, query: str, values: Any) -> None:
    open_store(f"sqlite:///{path}").close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    scans = {step for step in plan if step.startswith("SCAN") and step.split()[1] in {"sessions", "live", "ended"}}
    assert plan
    assert not scans


def _claims(path: Path, owner: str, count: int) -> list[int]:
    store = open_store(f"sqlite:///{path}")
    fences = [store.claim(["/a"], owner)["/a"].fence for _ in range(count)]
    store.close()
    return fences


def test_processes_claim_one_after_the_other(store: Store, path: Path) -> None:
    store.write([record(fence=0)])
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        claims = [pool.submit(_claims, path, owner, 100) for owner in ("one", "two")]
        fences = [fence for each in claims for fence in each.result()]
    assert sorted(fences) == list(range(1, 201))
    assert store.find(["/a"])["/a"].fence == 200


def _opens(path: Path, owner: str) -> list[str]:
    store = open_store(f"sqlite:///{path}")
    refused = store.write([record("/mine-" + owner, owner=owner), record("/everybodys", owner=owner)])
    store.close()
    return refused


def test_workers_start_together_on_a_new_file(path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        refused = list(pool.map(_opens, [path] * 8, map(str, range(8))))
    assert sorted(refused) == [[]] + 7 * [["/everybodys"]]
    store = open_store(f"sqlite:///{path}")
    assert store.page("", Filters())[1] == 9
    store.close()


def _writes_until_killed(path: Path, batch: int, acknowledged: Connection) -> None:
    store = open_store(f"sqlite:///{path}")
    for step in itertools.count(1):
        store.write([record(f"/{n}", step=step, body=bytes(2_000)) for n in range(batch)])
        acknowledged.send(step)


@pytest.mark.parametrize("batch", [500, 4_500])  # one statement, and several
def test_a_killed_writer_leaves_whole_batches(path: Path, batch: int) -> None:
    for pause in (0.0, 0.011, 0.023, 0.05):
        here, there = SPAWN.Pipe(duplex=False)
        writer = SPAWN.Process(target=_writes_until_killed, args=(path, batch, there))
        writer.start()
        there.close()
        acknowledged = here.recv()
        time.sleep(pause)
        writer.kill()
        with contextlib.suppress(EOFError):
            while True:
                acknowledged = here.recv()
        writer.join()
        store = open_store(f"sqlite:///{path}")
        steps = [each.step for each in store.find([f"/{n}" for n in range(batch)]).values()]
        store.close()
        assert len(steps) == batch
        assert len(set(steps)) == 1
        assert steps[0] in (acknowledged, acknowledged + 1)


def _fails_and_recovers(store: Store, says: str, broken: contextlib.AbstractContextManager[object]) -> None:
    """A store that cannot write says so, changes nothing, and goes on afterwards."""
    before = [record(f"/{n}", body=b"before") for n in range(100)]
    store.write(before)
    after = [each._replace(step=1, body=os.urandom(20_000)) for each in before]
    keys = [each.key for each in before]
    with broken:
        for _ in range(2):
            with pytest.raises(StoreError, match=says):
                store.write(after)
    assert store.find(keys) == {each.key: each for each in before}
    assert store.write(after) == []
    assert store.find(keys) == {each.key: each for each in after}


@contextlib.contextmanager
def _no_file_grows(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_grow(store: Store) -> None:
    _fails_and_recovers(store, "cannot be read or written", _no_file_grows(500_000))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def _full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


def test_a_full_disk(small_disk: Path) -> None:
    store = open_store(f"sqlite:///{small_disk}/sessions.db")
    _fails_and_recovers(store, "the disk is full", _full(small_disk))
    store.close()


def test_what_is_written_again_and_again_does_not_fill_a_small_disk(small_disk: Path) -> None:
    store = open_store(f"sqlite:///{small_disk}/sessions.db")
    everything = [each._replace(body=os.urandom(4_000)) for each in sessions(100)]
    for step in range(60):  # 24 MB in all
        assert store.write([each._replace(step=step) for each in everything]) == []
    store.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_file_that_somebody_else_keeps_locked(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiddenstate_server.store.sqlite._BUSY", 0.2)
    store.close()
    _fails_and_recovers(store, "locked by another process", _locked(path))


_AS_SOMEBODY_ELSE = """
import os, sys
from hiddenstate_server.store import open_store, sqlite
os.seteuid(65534)
try:
    open_store(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become somebody else")
def test_a_file_that_may_not_be_written(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    opened = subprocess.run(
        [sys.executable, "-c", _AS_SOMEBODY_ELSE, f"sqlite:///{path}"], check=True, capture_output=True, text=True
    )
    assert opened.stdout == f"StartError the store {path} cannot be used: Permission denied\n"


def test_damage_is_told(store: Store, path: Path) -> None:
    store.write(sessions(2_000))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    with pytest.raises(StoreError, match="is damaged"):
        store.find(["/000001"])
    path.write_bytes(whole)
    assert set(store.find(["/000001"])) == {"/000001"}


def test_a_file_that_was_removed_is_told_and_made_again(store: Store, path: Path) -> None:
    store.write([record()])
    path.unlink()
    with pytest.raises(StoreError, match="removed or replaced"):
        store.write([record()])
    assert store.write([record()]) == []
    assert path.is_file()


def _a_folder(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text(
        "no database, and longer than the head that SQLite reads of every file it opens, which is 100 bytes"
    )


def _a_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")


def _a_newer_layout(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_a_folder, "Is a directory"),
        (_text, "is no SQLite file"),
        (_a_database, "another program"),
        (_a_newer_layout, "has layout 7 and this server knows 1"),
    ],
)
def test_files_that_are_no_store(path: Path, make: object, says: str) -> None:
    make(path)  # type: ignore[operator]
    with pytest.raises(StartError, match=says):
        open_store(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///", "sqlite:///FILE"),
        ("sqlite://file.db", "sqlite:///FILE"),
        ("sqlite:////no/such/folder/file.db", "No such file or directory"),
    ],
)
def test_urls_that_name_no_file(url: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        open_store(url)
