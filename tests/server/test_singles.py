"""Replies to single observations, encoded as fixed records, against the protobuf encoding."""

from __future__ import annotations

import numpy as np
import pytest

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.stepping.singles import SingleReplies

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
