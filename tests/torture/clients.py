"""Many sessions that stream through the SDK, and remember everything they sent and got."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tests.torture.reference import Answer, Life, LoneModel, check

from hiddenstate import AnswersLost, AsyncClient, AsyncSession
from hiddenstate.predictions import Prediction, ValuePrediction, WordPrediction

LEASE = 3600.0
PATIENCE = 120.0
"""Seconds a call may take: a server that is down is waited for."""
LONGEST_BURST = 20
FURTHEST_REWIND = 8


class Waited(NamedTuple):
    """One call of one session."""

    session: int
    began: float
    ended: float


@dataclass(frozen=True)
class Load:
    """How the sessions behave."""

    sessions: int
    clients: int = 2
    pace: float = 0.02
    """Longest rest between two calls of a session, in seconds."""
    bursts: float = 0.2
    """Share of calls that send several observations at once."""
    rewinds: float = 0.05
    """Share of calls that take observations back."""
    lifetime: int = 400
    """About how many calls a session lives for; another then takes its place."""


@dataclass
class Crowd:
    """Sessions that stream while the block runs; at its end each is compared with a lone run.

    Raises at once what any session raises.
    """

    address: str | list[str]
    models: Mapping[str, LoneModel]
    load: Load
    seed: int
    lives: list[Life] = field(default_factory=list)
    """Finished sessions."""
    waits: list[Waited] = field(default_factory=list)
    """Every call."""
    answers_lost: int = 0
    """Calls whose observations were applied but whose answers were lost with a connection."""

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        addresses = [self.address] if isinstance(self.address, str) else self.address
        self._clients = [
            await self._stack.enter_async_context(AsyncClient(addresses[i % len(addresses)], timeout=PATIENCE))
            for i in range(self.load.clients)
        ]
        names = sorted(self.models)
        self._tasks = [
            asyncio.create_task(self._stream(number, names[number % len(names)]))
            for number in range(self.load.sessions)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        async with self._stack:
            if error is not None:
                for task in self._tasks:
                    task.cancel()
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            await asyncio.to_thread(self._check)

    async def during(self, seconds: float) -> None:
        """Lets them stream for a while; raises what a session raises."""
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def until(self, holds: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0) -> None:
        """Lets them stream until something is true."""
        give_up = time.monotonic() + seconds
        while not (await held if isinstance(held := holds(), Awaitable) else held):
            assert time.monotonic() < give_up, f"not within {seconds} s"
            await self.during(0.05)

    async def moved_on(self) -> None:
        """Waits until every session has been answered once more."""
        start = time.monotonic()
        done: set[int] = set()
        seen = 0

        def all_answered() -> bool:
            nonlocal seen
            done.update(wait.session for wait in self.waits[seen:] if wait.ended > start)
            seen = len(self.waits)
            return len(done) == self.load.sessions

        await self.until(all_answered, PATIENCE)

    @property
    def observations(self) -> int:
        """In the states of all finished sessions."""
        return sum(len(life.inputs) for life in self.lives)

    def pauses(self, moments: Sequence[float]) -> NDArray[np.float64]:
        """For each moment of disturbance and session, the longest wait that overlaps the time until the next [n]."""
        sessions, began, ended = (np.array(column) for column in zip(*self.waits, strict=True))
        longest = np.zeros((len(moments), self.load.sessions))
        for row, (start, end) in zip(longest, pairwise([*moments, np.inf]), strict=True):
            during = (began < end) & (ended >= start)
            np.maximum.at(row, sessions[during], (ended - began)[during])
        return longest.reshape(-1)

    def _check(self) -> None:
        assert len(self.lives) >= self.load.sessions
        complaints = []
        for life in self.lives:
            try:
                check(life, self.models)
            except AssertionError as complaint:
                complaints.append(str(complaint))
        assert not complaints, "\n".join(complaints)

    async def _stream(self, number: int, model: str) -> None:
        """One session after the other, until told to stop."""
        rng = np.random.default_rng([self.seed, number])
        client = self._clients[number % len(self._clients)]
        generation = 0
        while generation == 0 or not self._stop.is_set():
            # Half of them have ids of their own, half are named by the server.
            id = f"{model}-{self.seed}-{number}-{generation}" if number % 4 < 2 else None
            session = await client.session(model, id, idle_timeout=LEASE)
            life = Life(model, session.id)
            calls = int(rng.exponential(self.load.lifetime)) + 1
            while calls and not self._stop.is_set():
                await self._call(number, session, life, rng)
                await asyncio.sleep(rng.uniform(0, self.load.pace))
                calls -= 1
            prediction = await session.peek()
            life.final = prediction.step, _numbers(prediction)
            self.lives.append(life)
            await session.close()
            generation += 1

    async def _call(self, number: int, session: AsyncSession, life: Life, rng: np.random.Generator) -> None:
        """One observation, several, or some taken back."""
        before, kind, began = len(life.inputs), rng.random(), time.monotonic()
        if kind < self.load.rewinds and before:
            back = int(rng.integers(1, min(before, FURTHEST_REWIND) + 1))
            del life.inputs[before - back :]
            for step in range(before - back + 1, before + 1):
                life.answers.pop(step, None)
            prediction = await session.rewind(back)
            assert prediction.step == before - back, (prediction.step, before, back)
        else:
            count = int(rng.integers(2, LONGEST_BURST)) if kind > 1 - self.load.bursts else 1
            inputs = self._inputs(life.model, count, rng)
            life.inputs += inputs.tolist()
            try:
                predictions = await session.observe_many(inputs)
                for row in predictions:
                    life.answers[row.step] = _numbers(row)
                assert session.step == len(life.inputs)
            except AnswersLost:
                self.answers_lost += 1
        self.waits.append(Waited(number, began, time.monotonic()))

    def _inputs(self, model: str, count: int, rng: np.random.Generator) -> NDArray[Any]:
        vocabulary = self.models[model].vocabulary
        if vocabulary:
            return rng.integers(0, vocabulary, count)
        return rng.normal(20.0, 5.0, count)


def _numbers(prediction: Prediction) -> Answer:
    if isinstance(prediction, ValuePrediction):
        parts = (prediction.surprise, prediction.location, prediction.scale, prediction.degrees_of_freedom)
        return np.array(parts, np.float64)
    assert isinstance(prediction, WordPrediction)
    return np.array([prediction.surprise, *(probability for _, probability in prediction.top)])
