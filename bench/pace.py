"""Sessions at a steady pace, and what they notice of something that goes on at times."""

import asyncio
import time
from typing import NamedTuple

import numpy as np

from bench.report import table
from hiddenstate import AsyncClient

INTERVAL_SECONDS = 0.02


class Answer(NamedTuple):
    """One observation."""

    began: float
    seconds: float


class Span(NamedTuple):
    """When something went on, by the monotonic clock, which processes share."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


async def observe(client: AsyncClient, model: str, input: str | float, answers: list[Answer]) -> None:
    """One session that observes `input` again and again, until cancelled."""
    async with client.session(model) as session:
        while True:
            began = time.monotonic()
            await session.observe(input)
            answers.append(Answer(began, time.monotonic() - began))
            await asyncio.sleep(INTERVAL_SECONDS)


def comparison(answers: list[Answer], spans: list[Span], quiet: str, busy: str) -> str:
    """A markdown table of the answers outside (`quiet`) and inside (`busy`) the spans."""
    began, seconds = np.array([answer.began for answer in answers]), np.array([answer.seconds for answer in answers])
    inside = np.zeros(len(began), bool)
    for span in spans:
        inside |= (began + seconds >= span.began) & (began <= span.ended)
    rows = [
        [name, f"{len(some):,}", *(f"{figure * 1e3:.1f}" for figure in (*np.quantile(some, (0.5, 0.99)), some.max()))]
        for name, some in ((quiet, seconds[~inside]), (busy, seconds[inside]))
    ]
    return table(["while", "observations", "median ms", "99 % ms", "worst ms"], rows)
