"""A client of BentoML: what is batched is sent and answered as a list."""

import asyncio
from typing import Any

from bench.peers.http import HttpSession
from bench.peers.session import Prediction


class Session(HttpSession):
    """A session whose observations are lists of one."""

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session."""
        (answer,) = await self._post(self.question(token))
        return Prediction(**answer)

    def question(self, token: int) -> Any:
        """What is posted."""
        return {"observations": [super().question(token)]}


async def open_sessions(port: int, count: int) -> list[Session]:
    """Connects them all."""
    return [Session(*await asyncio.open_connection("localhost", port)) for _ in range(count)]
