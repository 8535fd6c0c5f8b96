"""Wire bytes to arrays and back; nothing here knows a session."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate_server.errors import FrameInvalid

_U4, _U8, _I4, _F8 = (np.dtype(code) for code in ("<u4", "<u8", "<i4", "<f8"))


def handles_of(data: bytes, limit: int) -> NDArray[np.uint32]:
    """A frame's handle column, uint32 [n] with 1 <= n <= limit; else FrameInvalid."""
    count, rest = divmod(len(data), 4)
    if rest:
        raise FrameInvalid(f"handles has {len(data)} bytes, which is no whole number of uint32; pack 4 bytes each")
    if not count:
        raise FrameInvalid("the frame has no rows; send at least one handle")
    if count > limit:
        raise FrameInvalid(f"the frame has {count} rows, the limit is {limit}; send several frames", limit=limit)
    return np.frombuffer(data, _U4)


def steps_of(data: bytes, count: int) -> NDArray[np.int64] | None:
    """The step column as int64 [count] (huge steps turn negative), None if left out; else FrameInvalid."""
    if not data:
        return None
    return _column("steps", data, _U8, count).view(np.int64)


def numbers_of(data: bytes, count: int) -> NDArray[np.uint32] | None:
    """The number column as uint32 [count], None if left out; else FrameInvalid."""
    return _column("numbers", data, _U4, count) if data else None


def tokens_of(data: bytes, count: int) -> NDArray[np.int64]:
    """The token column as int64 [count]; else FrameInvalid."""
    return _column("tokens", data, _I4, count).astype(np.int64)


def values_of(data: bytes, count: int) -> NDArray[np.float64]:
    """The value columns, float64 [count, columns]; else FrameInvalid."""
    if not data or len(data) % (8 * count):
        raise FrameInvalid(
            f"values has {len(data)} bytes for {count} handles; pack one float64 per handle and column, row-major"
        )
    return np.frombuffer(data, _F8).reshape(count, -1)


def _column(name: str, data: bytes, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(data) != count * dtype.itemsize:
        raise FrameInvalid(
            f"{name} has {len(data)} bytes for {count} handles; pack {dtype.itemsize} bytes ({dtype.name}) per handle"
        )
    return np.frombuffer(data, dtype)


def handle_bytes(handles: NDArray[Any]) -> bytes:
    """Packs handles as uint32."""
    return handles.astype(_U4, copy=False).tobytes()


def step_bytes(steps: NDArray[np.int64]) -> bytes:
    """Packs steps as uint64."""
    return steps.astype(_U8, copy=False).tobytes()
