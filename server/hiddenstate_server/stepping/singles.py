"""Answers of one row: all of a batch are encoded at once, each as a whole reply.

Every field of such a reply has a fixed width, so a batch of them is one array of records whose tags and
lengths never change, and encoding is one assignment a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb

_OBSERVED = pb.StreamResponse.DESCRIPTOR.fields_by_name["observed"].number
_FIELDS = pb.Predictions.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED = 2


class SingleReplies:
    """Encodes `StreamResponse(observed=[Predictions of one row])`."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], limit: int) -> None:
        """`columns` [any, ...] are of the types and widths to come, by field of Predictions; `limit` rows at most."""
        self.fields = tuple(columns)
        content, places, formats = b"", [], []
        for name, column in columns.items():
            wire, shape = column.dtype.newbyteorder("<"), column.shape[1:]
            size = wire.itemsize * math.prod(shape)
            content += _header(_FIELDS[name].number, size)
            places.append(len(content))
            formats.append((wire, shape))
            content += bytes(size)
        head = _header(_OBSERVED, len(content))
        self._size = len(head) + len(content)
        offsets = [len(head) + place for place in places]
        ends = [offset + np.dtype(kind).itemsize for offset, kind in zip(offsets, formats, strict=True)]
        self._slices = [slice(*ends) for ends in zip(offsets, ends, strict=True)]
        record = np.dtype({"names": self.fields, "formats": formats, "offsets": offsets, "itemsize": self._size})
        self._bytes = np.frombuffer(bytearray((head + content) * limit), np.uint8)
        records = self._bytes.view(record)
        self._columns = [records[name] for name in self.fields]

    def encode(self, columns: Sequence[NDArray[Any]]) -> list[bytes]:
        """One reply for each row of the columns [n, ...]."""
        count, size = len(columns[0]), self._size
        for target, column in zip(self._columns, columns, strict=True):
            target[:count] = column
        data = self._bytes[: count * size].tobytes()
        return [data[start : start + size] for start in range(0, count * size, size)]

    def columns(self, reply: bytes) -> tuple[bytes, ...]:
        """What each field of a reply holds."""
        return tuple(reply[place] for place in self._slices)


def _header(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited field."""
    header = bytearray([number << 3 | _LENGTH_DELIMITED])
    while size > 0x7F:
        header.append(size & 0x7F | 0x80)
        size >>= 7
    header.append(size)
    return bytes(header)
