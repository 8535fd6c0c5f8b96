"""Columns made into frames for the server, cut to what a frame may hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import Kind, Session
from hiddenstate_proto import hiddenstate_pb2 as pb

Array = NDArray[Any]

MAX_FRAME_ROWS = 16_384
MAX_FRAME_BYTES = 2 * 1024 * 1024
_MOST_OPENS = 4096


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbered observations: handles [n], steps [n], inputs [n] tokens or [n, columns] values."""

    handles: Array
    steps: Array
    inputs: Array


def open_frames(sessions: Iterable[Session]) -> Iterator[pb.StreamRequest]:
    """Opens or resumes sessions."""
    for (model, version, resume, idle_timeout), group in groupby(
        sessions, key=lambda s: (s.model, s.version, s.resume, s.idle_timeout)
    ):
        alike = list(group)
        for piece in (alike[i : i + _MOST_OPENS] for i in range(0, len(alike), _MOST_OPENS)):
            frame = pb.Open(
                handles=_packed([session.handle for session in piece]),
                model=model,
                version=version,
                mode=pb.OPEN_MODE_RESUME if resume else pb.OPEN_MODE_CREATE,
                session_ids=[session.id for session in piece],
            )
            if idle_timeout is not None:
                frame.idle_timeout.FromNanoseconds(round(idle_timeout * 1e9))
            yield pb.StreamRequest(open=frame)


def observe_frames(parts: Iterable[Rows], most_rows: int) -> Iterator[pb.StreamRequest]:
    """Observations, those of one shape together."""
    by_shape: dict[tuple[int, ...], list[Rows]] = {}
    for part in parts:
        by_shape.setdefault(part.inputs.shape[1:], []).append(part)
    for shape, group in by_shape.items():
        handles = np.concatenate([part.handles for part in group]).astype("<u4")
        steps = np.concatenate([part.steps for part in group]).astype("<u8")
        inputs = np.concatenate([part.inputs for part in group])
        row_bytes = 12 + (8 * shape[0] if shape else 4)
        length = max(1, min(most_rows, MAX_FRAME_BYTES // row_bytes))
        for at in range(0, len(handles), length):
            piece = slice(at, at + length)
            frame = pb.Observe(handles=handles[piece].tobytes(), steps=steps[piece].tobytes())
            if shape:
                frame.values = inputs[piece].astype("<f8").tobytes()
            else:
                frame.tokens = inputs[piece].astype("<i4").tobytes()
            yield pb.StreamRequest(observe=frame)


def ask_frames(kind: Kind, handles: Array, most_rows: int) -> Iterator[pb.StreamRequest]:
    """Peeks, closes or heartbeats."""
    for at in range(0, len(handles), most_rows):
        packed = _packed(handles[at : at + most_rows])
        if kind is Kind.PEEK:
            yield pb.StreamRequest(peek=pb.Peek(handles=packed))
        elif kind is Kind.CLOSE:
            yield pb.StreamRequest(close=pb.Close(handles=packed))
        else:
            yield pb.StreamRequest(heartbeat=pb.Heartbeat(handles=packed))


def _packed(handles: Any) -> bytes:
    return np.asarray(handles, "<u4").tobytes()
