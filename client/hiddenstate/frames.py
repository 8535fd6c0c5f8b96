"""Columns made into frames for the server, cut to what a frame may hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import Forking, Generating, Kind, Rewarming, Session
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
    """Opens, restores or resumes sessions, those that are alike together."""
    for _, group in groupby(sessions, key=_likeness):
        alike = list(group)
        for piece in (alike[i : i + _MOST_OPENS] for i in range(0, len(alike), _MOST_OPENS)):
            first = piece[0]
            frame = pb.Open(
                handles=_packed([session.handle for session in piece]),
                model=first.model,
                version=first.version,
                mode=pb.OPEN_MODE_RESUME if first.resume else pb.OPEN_MODE_CREATE,
                session_ids=[session.id for session in piece],
            )
            if first.wish.idle_timeout is not None:
                frame.idle_timeout.FromNanoseconds(round(first.wish.idle_timeout * 1e9))
            if not first.resume:
                frame.labels.update(first.wish.labels)
                frame.shadow_version = first.wish.shadow
                if first.wish.snapshot:
                    frame.mode = pb.OPEN_MODE_RESTORE
                    frame.snapshots.extend(session.wish.snapshot for session in piece)
            yield pb.StreamRequest(open=frame)


def _likeness(session: Session) -> tuple[Any, ...]:
    wish = session.wish
    place = (session.model, session.version, session.resume, wish.idle_timeout)
    return place if session.resume else (*place, bool(wish.snapshot), wish.shadow, sorted(wish.labels.items()))


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
    """Questions without arguments."""
    for at in range(0, len(handles), most_rows):
        packed = _packed(handles[at : at + most_rows])
        if kind is Kind.PEEK:
            yield pb.StreamRequest(peek=pb.Peek(handles=packed))
        elif kind is Kind.HEARTBEAT:
            yield pb.StreamRequest(heartbeat=pb.Heartbeat(handles=packed))
        elif kind is Kind.EXPORT:
            yield pb.StreamRequest(export=pb.Export(handles=packed))
        else:
            yield pb.StreamRequest(close=pb.Close(handles=packed))


def rewind_frame(targets: Sequence[tuple[int, int, int]]) -> pb.StreamRequest:
    """Rewinds: handle, step to go back to, and number of each."""
    handles, steps, numbers = zip(*targets, strict=True)
    return pb.StreamRequest(
        rewind=pb.Rewind(handles=_packed(handles), steps=np.asarray(steps, "<u8").tobytes(), numbers=_packed(numbers))
    )


def fork_frame(call: Forking) -> pb.StreamRequest:
    """Copies that are not made yet."""
    copies = [call.copies[position].handle for position in call.positions.tolist()]
    return pb.StreamRequest(fork=pb.Fork(handles=_packed(call.handles), new_handles=_packed(copies)))


def rewarm_frame(call: Rewarming) -> pb.StreamRequest:
    """A session's move to another version."""
    return pb.StreamRequest(rewarm=pb.Rewarm(handles=_packed(call.handles), version=call.version))


def generate_frame(call: Generating) -> pb.StreamRequest:
    """A continuation, from its beginning."""
    recipe = call.recipe
    return pb.StreamRequest(
        generate=pb.Generate(
            handle=int(call.handles[0]),
            call=call.number,
            count=recipe.count,
            temperature=recipe.temperature,
            top_k=recipe.top_k,
            top_p=recipe.top_p,
            seed=recipe.seed,
            stop_tokens=recipe.stop_tokens,
            paths=recipe.paths,
            quantiles=recipe.quantiles,
        )
    )


def cancel_frame(number: int) -> pb.StreamRequest:
    """The end of a continuation."""
    return pb.StreamRequest(cancel_generate=pb.CancelGenerate(call=number))


def _packed(handles: Any) -> bytes:
    return np.asarray(handles, "<u4").tobytes()
