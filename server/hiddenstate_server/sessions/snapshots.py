"""Sessions as bytes that only this server, or one with the same key, can make: snapshots.

    magic, format version                       8 bytes
    header as JSON, its length before it; body  compressed
    HMAC-SHA256 of all before it                32 bytes

Nothing is looked at before the HMAC is found right. What a snapshot is of (tenant, model, version, bundle) stands in
the header, for whoever restores it to compare.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

from hiddenstate_server.errors import SnapshotInvalid, StartError

FORMAT = 1
_MAGIC = b"HSSNAP\0"
_MAC_SIZE = 32
_LENGTH = struct.Struct("<I")
_SMALLEST = len(_MAGIC) + 1 + _MAC_SIZE
_LARGEST = 64 * 2**20
_SHORTEST_KEY = 32
_KEY_VARIABLE = "HIDDENSTATE_SNAPSHOT_KEY"
_FAST = 1


class Snapshot(NamedTuple):
    """A session as it was."""

    tenant: str
    model: str
    version: str
    bundle: str
    """Digest of the bundle that the state belongs to."""
    step: int
    lease: float
    """Seconds."""
    labels: str
    """Packed."""
    body: bytes
    """State, outputs and history, packed."""


class Sealer:
    """Makes and reads snapshots with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, snapshot: Snapshot) -> bytes:
        """The bytes for the client."""
        header = json.dumps(dict(zip(Snapshot._fields[:-1], snapshot[:-1], strict=True))).encode()
        content = _LENGTH.pack(len(header)) + header + snapshot.body
        data = _MAGIC + bytes([FORMAT]) + zlib.compress(content, _FAST)
        return data + self._mac(data)

    def open(self, data: bytes) -> Snapshot:
        """What was sealed; SnapshotInvalid."""
        sealed, mac = data[:-_MAC_SIZE], data[-_MAC_SIZE:]
        if len(data) < _SMALLEST or not hmac.compare_digest(mac, self._mac(sealed)):
            raise SnapshotInvalid("the snapshot is damaged, or was not made with this server's key")
        if not sealed.startswith(_MAGIC) or sealed[len(_MAGIC)] != FORMAT:
            raise SnapshotInvalid(f"the snapshot is of another format than {FORMAT}, the one this server reads")
        inflating = zlib.decompressobj()
        content = inflating.decompress(sealed[len(_MAGIC) + 1 :], _LARGEST)
        if not inflating.eof:
            raise SnapshotInvalid(f"the snapshot holds more than {_LARGEST} bytes, the limit")
        (size,) = _LENGTH.unpack_from(content)
        end = _LENGTH.size + size
        return Snapshot(**json.loads(content[_LENGTH.size : end]), body=content[end:])

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, hashlib.sha256)


def snapshot_key(file: Path | None, state_folder: Path) -> bytes:
    """The server's key: from the file, the environment, or one of its own, made once; StartError."""
    if file is not None:
        return _read(file)
    if _KEY_VARIABLE in os.environ:
        return _checked(os.environ[_KEY_VARIABLE], _KEY_VARIABLE)
    path = state_folder / "snapshot.key"
    if not path.exists():
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Writes a new key unless another process does so first; nobody sees half of one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            # Readable by the owner alone, as temporary files are.
            file.write(secrets.token_hex(_SHORTEST_KEY) + "\n")
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(file.name)
    except OSError as error:
        raise StartError(
            f"cannot keep a key for snapshots in {path}: {error.strerror}; choose another --state-folder, "
            f"or set --snapshot-key-file or {_KEY_VARIABLE}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return _checked(path.read_text(), str(path))
    except OSError as error:
        raise StartError(f"cannot read the key for snapshots in {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        # Its message would hold a part of the key.
        raise StartError(f"cannot read the key for snapshots in {path}: it is no text") from None


def _checked(text: str, source: str) -> bytes:
    key = text.strip().encode()
    if len(key) < _SHORTEST_KEY:
        raise StartError(
            f"the key for snapshots in {source} is too short: make one of {_SHORTEST_KEY} characters or more, "
            "for instance with openssl rand -hex 32"
        )
    return key
