"""Frames and answers of one row, read and written without protobuf: there is one for each observation.

Every field of such a reply has a fixed width, so a batch of them is one array of records whose tags and
lengths never change, and encoding is one assignment a column. Frames are told by their tags and lengths too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb

_OBSERVED = pb.StreamResponse.DESCRIPTOR.fields_by_name["observed"].number
_FIELDS = pb.Predictions.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED = 2


class SingleFrame(NamedTuple):
    """`StreamRequest(observe=Observe of one row)`."""

    handle: int
    steps: bytes
    """Its step as on the wire, or empty."""
    is_token: bool
    """Whether the input is a token, not values."""
    input: bytes
    """As on the wire."""

    @staticmethod
    def read(data: bytes) -> SingleFrame | None:
        """The frame, if it is one, short, and encoded as protobuf does by itself; None leaves it to protobuf."""
        size = len(data)
        if not _LEAST <= size <= _MOST or data[0] != _OBSERVE or data[1] != size - 2 or data[2:4] != _HANDLES:
            return None
        handle, steps, at = int.from_bytes(data[4:8], "little"), b"", 8
        if data[8:10] == _STEPS:
            steps, at = data[10:18], 18
        if size < at + 2 or data[at + 1] != size - at - 2:
            return None
        field = data[at]
        if field != _TOKENS and field != _VALUES:
            return None
        return SingleFrame(handle, steps, field == _TOKENS, data[at + 2 :])


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


_OBSERVE = _header(pb.StreamRequest.DESCRIPTOR.fields_by_name["observe"].number, 0)[0]
_INPUT = pb.Observe.DESCRIPTOR.fields_by_name
_HANDLES, _STEPS = _header(_INPUT["handles"].number, 4), _header(_INPUT["steps"].number, 8)
_TOKENS, _VALUES = _header(_INPUT["tokens"].number, 0)[0], _header(_INPUT["values"].number, 0)[0]
_LEAST, _MOST = 10, 129
"""Bytes: with more, a length would take more than one."""
