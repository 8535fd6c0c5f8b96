"""hiddenstate as its SDK is used: all sessions through one AsyncClient, each observing by itself."""

import asyncio

from bench.peers.session import Prediction
from hiddenstate import AsyncClient
from hiddenstate.session import AsyncSession


class Session:
    """A session of the SDK, with words told by their tokens."""

    def __init__(self, session: AsyncSession) -> None:
        assert session.model.vocabulary
        self._words = session.model.vocabulary.words
        self._tokens = session.model.vocabulary
        self._session = session

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session."""
        answer = await self._session.observe(self._words[token])
        words, probabilities = zip(*answer.top, strict=True)
        return Prediction(answer.surprise, self._tokens.tokens(words).tolist(), probabilities)


async def open_sessions(port: int, count: int) -> list[Session]:
    """Opens them all through a client of their own."""
    client = AsyncClient(f"localhost:{port}")
    return [Session(session) for session in await asyncio.gather(*(client.session("next-word") for _ in range(count)))]
