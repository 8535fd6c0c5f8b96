"""Rows of an arena as bytes and back: what a store keeps of a session's state, outputs and history.

All rows that are packed together are gathered into one structured array, so that a row costs no Python but a slice.
Each part carries a mark of its types and shapes. A row whose outputs or history were packed by a server with other
settings (another top_k, another number of steps to take back) keeps its state and starts without that part.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.runtimes import RowArray

FORMAT = 1

Columns = dict[str, NDArray[Any]]
"""Arrays [capacity, ...] by name."""


class RecordInvalid(Exception):
    """The bytes do not hold a state of this model; the message says why."""


_HEADER = np.dtype(
    [("format", "<u2"), ("state", "<u4"), ("outputs", "<u4"), ("history", "<u4"), ("history_at", "<u4")], align=False
)


class Packer:
    """Packs and unpacks rows of one model."""

    def __init__(self, states: NDArray[np.float32], outputs: Columns, history: Columns) -> None:
        """`states` [capacity, state_size]; `history` is empty where none is kept."""
        self._parts: tuple[Columns, ...] = ({"state": states}, outputs, history)
        fields = [list(map(_field, part, part.values())) for part in self._parts]
        self._marks = [zlib.crc32(repr(part).encode()) for part in fields]
        prefixed = [(f"{index}.{name}", *rest) for index, part in enumerate(fields) for name, *rest in part]
        self._row = np.dtype([*_HEADER.descr, *prefixed])
        self._state_end = _HEADER.itemsize + np.dtype(fields[0]).itemsize
        self._history_at = self._state_end + np.dtype(fields[1]).itemsize
        self._columns = [(f"{i}.{name}", column) for i, part in enumerate(self._parts) for name, column in part.items()]

    @property
    def row_bytes(self) -> int:
        """Bytes a packed row takes."""
        return self._row.itemsize

    def pack(self, rows: RowArray) -> list[bytes]:
        """One body for each row."""
        packed = np.zeros(len(rows), self._row)
        packed["format"] = FORMAT
        packed["state"], packed["outputs"], packed["history"] = self._marks
        packed["history_at"] = self._history_at
        for name, column in self._columns:
            packed[name] = column[rows]
        data, size = packed.tobytes(), self._row.itemsize
        return [data[start : start + size] for start in range(0, len(data), size)]

    def check(self, body: bytes) -> None:
        """Raises RecordInvalid unless `unpack` can take the body."""
        if len(body) < self._state_end:
            raise RecordInvalid(f"{len(body)} bytes are too few for a state of this model")
        header = np.frombuffer(body, _HEADER, 1)[0]
        if header["format"] != FORMAT:
            raise RecordInvalid(f"format {header['format']} is not {FORMAT}, the one this server reads")
        if header["state"] != self._marks[0]:
            raise RecordInvalid("it holds a state of another size")

    def unpack(self, bodies: Sequence[bytes], rows: RowArray) -> NDArray[np.bool_]:
        """Writes bodies that were checked into rows in their initial state.

        Returns [n]: whose history was kept, too.
        """
        whole = np.zeros(len(rows), np.bool_)
        for index, (body, row) in enumerate(zip(bodies, rows.tolist(), strict=True)):
            header = np.frombuffer(body, _HEADER, 1)[0]
            self._write(row, 0, body, _HEADER.itemsize)
            if header["outputs"] == self._marks[1]:
                self._write(row, 1, body, self._state_end)
            at = int(header["history_at"])
            if header["history"] == self._marks[2] and len(body) - at == self._row.itemsize - self._history_at:
                self._write(row, 2, body, at)
                whole[index] = True
        return whole

    def _write(self, row: int, part: int, body: bytes, at: int) -> None:
        for name, column in self._parts[part].items():
            dtype, shape = self._row[f"{part}.{name}"].base, column.shape[1:]
            count = int(np.prod(shape))
            column[row] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize


def _field(name: str, column: NDArray[Any]) -> tuple[str, str, tuple[int, ...]]:
    return name, column.dtype.newbyteorder("<").str, column.shape[1:]
