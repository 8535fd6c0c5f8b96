"""Replies to single observations, encoded as fixed records, against the protobuf encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.stepping.singles import SingleFrame, SingleReplies

ROWS = 5


def columns(top_k: int, targets: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(top_k + targets)
    found: dict[str, np.ndarray] = {
        "handles": rng.integers(0, 2**32, ROWS, np.uint32),
        "steps": rng.integers(0, 2**62, ROWS),
        "surprises": rng.normal(size=ROWS).astype(np.float32),
    }
    if top_k:
        found["top_tokens"] = rng.integers(0, 2**31, (ROWS, top_k), np.int32)
        found["top_probabilities"] = rng.random((ROWS, top_k), np.float32)
    if targets:
        found["locations"] = rng.normal(size=(ROWS, targets))
        found["scales"] = np.full((ROWS, targets), np.nan)
        found["degrees_of_freedom"] = np.full((ROWS, targets), np.inf, np.float32)
    found["durable_steps"] = rng.integers(0, 2**62, ROWS)
    return found


# Lengths of one, two and three bytes in the field, the predictions and the reply.
@pytest.mark.parametrize(("top_k", "targets"), [(1, 0), (8, 0), (40, 0), (5000, 0), (0, 1), (0, 2), (0, 300)])
def test_the_bytes_are_those_of_protobuf(top_k: int, targets: int) -> None:
    given = columns(top_k, targets)
    encoder = SingleReplies(given, limit=8)
    for count in (ROWS, 1, ROWS):
        replies = encoder.encode([column[:count] for column in given.values()])
        for row, reply in enumerate(replies):
            one = {name: column[row].tobytes() for name, column in given.items()}
            expected = pb.StreamResponse(observed=[pb.Predictions(**one)])
            assert pb.StreamResponse.FromString(reply) == expected
            assert reply == expected.SerializeToString(deterministic=True)
            assert encoder.columns(reply) == tuple(one.values())
        assert len(replies) == count


INPUTS = [{"tokens": b"\x07\x00\x00\x00"}, {"values": bytes(8)}, {"values": bytes(range(96))}, {"values": b""}]


@pytest.mark.parametrize("steps", [b"", (2**63 + 5).to_bytes(8, "little")], ids=["without step", "with step"])
@pytest.mark.parametrize("sent", INPUTS, ids=["token", "value", "values", "nothing"])
def test_frames_of_one_row_are_read(sent: dict[str, bytes], steps: bytes) -> None:
    observe = pb.Observe(handles=(2**32 - 7).to_bytes(4, "little"), steps=steps, **sent)  # type: ignore[arg-type]
    ((name, value),) = sent.items()
    found = SingleFrame.read(pb.StreamRequest(observe=observe).SerializeToString())
    assert found == SingleFrame(2**32 - 7, steps, name == "tokens", value)


OTHER_FRAMES = {
    "two rows": pb.StreamRequest(observe=pb.Observe(handles=bytes(8), tokens=bytes(8))),
    "no handle": pb.StreamRequest(observe=pb.Observe(tokens=bytes(4))),
    "no input": pb.StreamRequest(observe=pb.Observe(handles=bytes(4))),
    "a step too short": pb.StreamRequest(observe=pb.Observe(handles=bytes(4), steps=bytes(7), tokens=bytes(4))),
    "only a step": pb.StreamRequest(observe=pb.Observe(handles=bytes(4), steps=bytes(8))),
    "words": pb.StreamRequest(observe=pb.Observe(handles=bytes(4), words=pb.Words(words=["a"]))),
    "a long row": pb.StreamRequest(observe=pb.Observe(handles=bytes(4), values=bytes(704))),
    "another frame": pb.StreamRequest(peek=pb.Peek(handles=bytes(4))),
    "nothing": pb.StreamRequest(),
}


@pytest.mark.parametrize("request_", OTHER_FRAMES.values(), ids=OTHER_FRAMES)
def test_other_frames_are_left_to_protobuf(request_: pb.StreamRequest) -> None:
    assert SingleFrame.read(request_.SerializeToString()) is None


@settings(deadline=None)
@given(st.data())
def test_what_is_read_is_what_protobuf_reads(data: st.DataObject) -> None:
    observe = pb.Observe(handles=bytes(4), steps=data.draw(st.sampled_from([b"", bytes(8)])), tokens=bytes(4))
    encoded = bytearray(pb.StreamRequest(observe=observe).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    found = SingleFrame.read(bytes(encoded))
    if found is not None:
        read = pb.StreamRequest.FromString(bytes(encoded)).observe
        assert read.handles == found.handle.to_bytes(4, "little")
        assert read.steps == found.steps
        assert (read.tokens, read.values) == ((found.input, b"") if found.is_token else (b"", found.input))
