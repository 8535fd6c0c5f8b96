"""Sessions in one SQLite file, which the workers of one machine share.

What costs here is not SQLite but the interpreter's lock: every step of a statement lets go of it and may wait 5 ms to
get it back from a busy event loop. So a batch is one statement of many rows, which is also its own transaction (group
commit: one fsync), and what is read comes as a single row, packed into JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from hiddenstate_server.errors import StartError
from hiddenstate_server.store import Filters, Position, Record, StoreError, sql

_BUSY = 5.0
"""Seconds to wait for another process's transaction."""
_ROWS = 2_000
"""Records in a statement; SQLite binds 32,766 values at most."""
_BODIES = 500
"""Bodies in a row; SQLite allows 2,000 columns."""
_CHECKPOINT = 8_192
"""Pages of the log that are written back to the file at once: what many batches touched is then written once."""
_LOG_LIMIT = 2**26
"""Bytes the log's file keeps after that."""
_SCARCE = 2 * _LOG_LIMIT
"""With less room on the disk the log is written back at once: one that fills the disk could never be, since the file
needs room to take it."""
_SLICE, _PATIENCE = 5_000, 0.2
"""Sessions that one transaction ends or forgets, and seconds after which the rest is left to the next call."""

_SENTENCES = {
    "SQLITE_BUSY": f"is locked by another process for more than {_BUSY:.0f} s",
    "SQLITE_FULL": "cannot grow: the disk is full",
    "SQLITE_READONLY": "cannot be written: the file or its folder is read-only",
    "SQLITE_CANTOPEN": "cannot be opened: its folder does not exist or may not be used",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_NOTADB": "is no SQLite file, or is damaged",
    "SQLITE_IOERR": "cannot be read or written",
}
"""What the primary result codes mean for the file; the rest speaks for itself."""


def from_url(parts: SplitResult) -> SQLiteStore:
    """sqlite:///relative or sqlite:////absolute; StartError where the file cannot be used."""
    path = unquote(parts.path[1:])
    if parts.netloc or not path or parts.query:
        raise StartError("a SQLite store's URL is sqlite:///FILE, with a fourth slash where the path is absolute")
    try:
        return SQLiteStore(Path(path))
    except StoreError as error:
        raise StartError(str(error)) from error


class SQLiteStore:
    """One file, opened anew after every failure; it takes as long with a million sessions as with none."""

    shared = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        with self._connection():
            pass

    def write(self, records: Sequence[Record]) -> list[str]:
        with self._connection() as connection:
            if len(records) <= _ROWS:
                refused = _write(connection, records)
            else:
                with _transaction(connection):
                    batches = (records[start : start + _ROWS] for start in range(0, len(records), _ROWS))
                    refused = [key for batch in batches for key in _write(connection, batch)]
            if shutil.disk_usage(self._path).free < _SCARCE:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return refused

    def claim(self, keys: Sequence[str], owner: str) -> dict[str, Record]:
        with self._connection() as connection, _transaction(connection):
            connection.execute(sql.CLAIM, (owner, json.dumps(keys)))
            return _found(connection, keys)

    def release(self, keys: Sequence[str], owner: str) -> None:
        with self._connection() as connection, _transaction(connection):
            connection.execute(sql.RELEASE, (owner, json.dumps(keys)))

    def find(self, keys: Sequence[str]) -> dict[str, Record]:
        with self._connection() as connection, _transaction(connection, "DEFERRED"):
            return _found(connection, keys)

    def page(
        self, tenant: str, filters: Filters, after: Position = (0, ""), limit: int = 100
    ) -> tuple[list[Record], int]:
        where: dict[str, object] = {
            "tenant": tenant,
            "model": filters.model,
            "labels": json.dumps(dict(filters.labels)),
            "used_by": time.time() - filters.idle_for if filters.idle_for else math.inf,
        }
        with self._connection() as connection:
            packed = _only(connection, sql.PAGE, where | {"created": after[0], "key": after[1], "limit": limit})
            records = [Record._make((*fields[:-1], b"", fields[-1])) for fields in json.loads(packed)]
            return records, _only(connection, sql.COUNT if filters.labels or filters.idle_for else sql.TOTAL, where)

    def live(self) -> int:
        with self._connection() as connection:
            total: int = _only(connection, sql.LIVE)
            return total

    def expire(self, now: float, grace: float) -> int:
        total, until = 0, time.monotonic() + _PATIENCE
        where = {"now": now, "grace": grace, "slice": _SLICE}
        while True:
            with self._connection() as connection, _transaction(connection):
                expired = connection.execute(sql.EXPIRE, where).rowcount
                put_off = connection.execute(sql.PUT_OFF, where).rowcount
            total += expired
            if (not expired and put_off < _SLICE) or time.monotonic() > until:
                return total

    def prune(self, before: float) -> None:
        until = time.monotonic() + _PATIENCE
        where = {"before": before, "slice": _SLICE}
        forgotten = _SLICE
        while forgotten == _SLICE and time.monotonic() < until:
            with self._connection() as connection, _transaction(connection):
                forgotten = connection.execute(sql.PRUNE, where).rowcount
                connection.execute(sql.PRUNE_TIMES, where)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The connection to the file. Whatever goes wrong closes it, which undoes what was begun."""
        try:
            if self._opened is None:
                self._opened = _connect(self._path)
                self._file = _identity(self._path)
            elif _identity(self._path) != self._file:
                raise StoreError(f"the store {self._path} was removed or replaced while in use")
            yield self._opened
        except sqlite3.DatabaseError as error:
            self.close()
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise
            name = "_".join(error.sqlite_errorname.split("_")[:2])
            raise StoreError(f"the store {self._path} {_SENTENCES.get(name, f'fails: {error}')}") from error
        except OSError as error:
            self.close()
            raise StoreError(f"the store {self._path} cannot be used: {error.strerror}") from error
        except BaseException:
            self.close()
            raise


def _connect(path: Path) -> sqlite3.Connection:
    # Nobody else may read sessions; the log and the index of the log take over these permissions.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # Statements are not kept: each batch has its own, and a kept one holds on to its values.
    connection = sqlite3.connect(
        path, timeout=_BUSY, isolation_level=None, check_same_thread=False, cached_statements=0
    )
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection, "DEFERRED"):
        application, layout = _only(connection, "PRAGMA application_id"), _only(connection, "PRAGMA user_version")
        tables = _only(connection, "SELECT count(*) FROM sqlite_schema")
    if application != sql.APPLICATION and (layout or tables):
        raise StoreError(f"{path} is the database of another program; name another file")
    if application == sql.APPLICATION and layout != sql.LAYOUT:
        raise StoreError(
            f"the store {path} has layout {layout} and this server knows {sql.LAYOUT}; use the server that made it"
        )
    if _journal_mode(connection) != "wal":
        raise StoreError(
            f"the store {path} lies where files cannot be shared memory, as on a network; name another file"
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")
    if not layout:
        connection.executescript(f"BEGIN IMMEDIATE; {sql.SCHEMA} COMMIT;")


def _journal_mode(connection: sqlite3.Connection) -> str:
    """Switches to the write-ahead log; several workers that start on a new file take turns."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            mode: str = _only(connection, "PRAGMA journal_mode = WAL")
            return mode
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    yield
    connection.execute("COMMIT")


def _write(connection: sqlite3.Connection, records: Sequence[Record]) -> list[str]:
    """One statement of at most _ROWS records; keys refused."""
    if not records:
        return []
    values = list(itertools.chain.from_iterable([record[:-1] for record in records]))
    if connection.execute(sql.upsert(len(records)), values).rowcount == len(records):
        return []
    keys = json.dumps([record.key for record in records])
    holders = {key: (fence, owner) for key, fence, owner in json.loads(_only(connection, sql.HELD_BY, (keys,)))}
    return [record.key for record in records if holders.get(record.key) != (record.fence, record.owner)]


def _found(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Record]:
    """Within a transaction: bodies come as columns of one row, since JSON would have to spell them out."""
    found: dict[str, Record] = {}
    for start in range(0, len(keys), _BODIES):
        rows = json.loads(_only(connection, sql.FIND, (json.dumps(keys[start : start + _BODIES]),)))
        if rows:
            bodies = connection.execute(sql.bodies(len(rows)), [fields[0] for fields in rows]).fetchone()
            found |= {
                fields[1]: Record._make((*fields[1:-1], body, 0)) for fields, body in zip(rows, bodies, strict=True)
            }
    return found


def _only(connection: sqlite3.Connection, query: str, values: Sequence[object] | dict[str, object] = ()) -> Any:
    """The only value of the only row."""
    return connection.execute(query, values).fetchone()[0]


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is that has this name now."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
