"""One session of the asyncio client."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, overload

from numpy.typing import NDArray

from hiddenstate.calls import Kind
from hiddenstate.calls import Session as SessionState
from hiddenstate.codec import Codec, Row, Value, Values, codec_of
from hiddenstate.columns import Columns
from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model
from hiddenstate.errors import HiddenstateError, fresh
from hiddenstate.predictions import (
    Prediction,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)

log = logging.getLogger(__name__)

CHUNK = 4096
"""Observations that `observe_many` lets wait at once."""


class AsyncSession:
    """One session: its state lives on the server, and every observation moves it on by one step."""

    def __init__(self, connection: Connection, state: SessionState, model: Model) -> None:
        self._connection = connection
        self._state = state
        self._codec: Codec = codec_of(model)
        self._model = model

    @property
    def id(self) -> str:
        """Names the session on the server."""
        return self._state.id

    @property
    def model(self) -> Model:
        """The model it is pinned to."""
        return self._model

    @property
    def idle_timeout(self) -> float:
        """The lease granted: seconds the session may be idle."""
        return self._state.idle_timeout or 0.0

    @property
    def step(self) -> int:
        """Observations in its state, as far as they were answered."""
        return self._connection.protocol.step(self._state)

    @overload
    async def observe(self, x: str, *, timeout: float | None = None) -> WordPrediction: ...
    @overload
    async def observe(self, x: Value | Row, *, timeout: float | None = None) -> ValuePrediction: ...
    async def observe(self, x: str | Value | Row, *, timeout: float | None = None) -> Prediction:
        """Feeds one observation and predicts what comes next.

        A word or a text (the prediction is then the one after its last word), a number (None: missing), or a row
        or mapping of the model's columns. Raises InvalidInput and everything that can happen to a session.
        """
        return self._codec.prediction(await self._observe(self._codec.one(x), timeout))

    @overload
    async def observe_many(self, xs: str | Sequence[str], *, timeout: float | None = None) -> WordPredictions: ...
    @overload
    async def observe_many(self, xs: Values, *, timeout: float | None = None) -> ValuePredictions: ...
    async def observe_many(self, xs: Any, *, timeout: float | None = None) -> WordPredictions | ValuePredictions:
        """Feeds observations in order; returns one prediction after each, as columns.

        The words of a text, a sequence of words (each looked up whole), a column of numbers, or a table
        [n, columns]. `timeout` counts for every 4096 of them.
        """
        inputs = self._codec.many(xs)
        if len(inputs) == 0:
            return self._codec.predictions(Columns.missing(None, 0))
        parts = [await self._observe(inputs[i : i + CHUNK], timeout) for i in range(0, len(inputs), CHUNK)]
        return self._codec.predictions(Columns.concatenate(parts))

    async def peek(self, *, timeout: float | None = None) -> Prediction:
        """The current prediction again; nothing changes."""
        return self._codec.prediction(await self._ask(Kind.PEEK, timeout))

    async def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews the lease without an observation."""
        await self._ask(Kind.HEARTBEAT, timeout)

    async def close(self, *, timeout: float | None = None) -> None:
        """Ends the session; the second time nothing happens."""
        if self._state.error is None and not self._connection.closed:
            await self._ask(Kind.CLOSE, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_after(self.close, error)

    async def _observe(self, inputs: NDArray[Any], timeout: float | None) -> Columns:
        self._require_usable()
        call = self._connection.protocol.observe(self._state, inputs)
        await self._connection.wait(call, timeout)
        call.raise_any()
        return call.columns()

    async def _ask(self, kind: Kind, timeout: float | None) -> Columns:
        self._require_usable()
        call = self._connection.protocol.ask(kind, [self._state])
        await self._connection.wait(call, timeout)
        call.raise_any()
        return call.columns()

    def _require_usable(self) -> None:
        self._connection.require_open()
        if self._state.error is not None:
            raise fresh(self._state.error)


class Opening:
    """A session about to be opened: await it, or enter it with `async with`."""

    def __init__(self, open: Callable[[], Awaitable[AsyncSession]]) -> None:
        self._open = open
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await close_after(self._session.close, error)


async def close_after(close: Callable[[], Awaitable[None]], error: BaseException | None) -> None:
    """Closes at the end of a block; a failure to do so must not hide the block's own error."""
    try:
        await close()
    except HiddenstateError:
        if error is None:
            raise
        log.debug("could not close after an error", exc_info=True)
