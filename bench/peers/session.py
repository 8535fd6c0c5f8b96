"""What a session is to the load generator, whatever serves it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Prediction(NamedTuple):
    """The answer to one observation of a word."""

    surprise: float
    """-log p of the word under the prediction before it, in nats."""
    top_tokens: Sequence[int]
    """The most probable next words, best first."""
    top_probabilities: Sequence[float]


class Session(Protocol):
    """One session of one client; a client module makes some by `open_sessions(port, count)`."""

    async def observe(self, token: int) -> Prediction:
        """Sends one observation and waits for its answer."""
        ...
