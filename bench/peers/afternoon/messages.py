"""The messages of the afternoon server: as small and as cheap to read as can be."""

import struct

from bench.peers.session import Prediction

SERVICE, METHOD = "peers.NextWord", "Observe"
_ANSWER = struct.Struct("<f5i5f")


def token_of(request: bytes) -> int:
    """What is observed."""
    return int.from_bytes(request, "little")


def request_of(token: int) -> bytes:
    """An observation."""
    return token.to_bytes(4, "little")


def encoded(prediction: Prediction) -> bytes:
    """An answer."""
    return _ANSWER.pack(prediction.surprise, *prediction.top_tokens, *prediction.top_probabilities)


def decoded(answer: bytes) -> Prediction:
    """The same, read."""
    surprise, *columns = _ANSWER.unpack(answer)
    return Prediction(surprise, columns[:5], columns[5:])
