"""One session of the asyncio client."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import Call, Kind
from hiddenstate.calls import Session as SessionState
from hiddenstate.catalog import Catalog
from hiddenstate.codec import Codec, LabelCodec, Notes, Row, Value, Values, Wanted, codec_of
from hiddenstate.columns import Columns
from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model
from hiddenstate.errors import HiddenstateError, InvalidInput, fresh
from hiddenstate.generation import AsyncGeneration
from hiddenstate.predictions import (
    LabelPredictions,
    NotePrediction,
    NotePredictions,
    Prediction,
    Predictions,
    TaggedWord,
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

    def __init__(self, connection: Connection, catalog: Catalog, state: SessionState, model: Model) -> None:
        self._connection = connection
        self._catalog = catalog
        self._state = state
        self._codec: Codec = codec_of(model)
        self._model = model
        self._generation: AsyncGeneration[Any] | None = None  # the last one that is to be committed
        self._settled = asyncio.Event()  # not while it moves to another version because it was asked to
        self._settled.set()

    @property
    def id(self) -> str:
        """Names the session on the server."""
        return self._state.id

    @property
    def model(self) -> Model:
        """The model it is pinned to."""
        self._note_version()
        return self._model

    @property
    def idle_timeout(self) -> float:
        """The lease granted: seconds the session may be idle."""
        return self._state.idle_timeout or 0.0

    @property
    def step(self) -> int:
        """Observations in its state, as far as they were answered."""
        return self._connection.protocol.step(self._state)

    @property
    def durable_step(self) -> int:
        """Up to which step the server is known to have stored it; 0 where nothing is."""
        return self._connection.protocol.durable_step(self._state)

    @property
    def rewinds(self) -> int:
        """How many times it was rewound."""
        return self._connection.protocol.rewinds(self._state)

    @property
    def labels(self) -> dict[str, str]:
        """Labels given when it was opened."""
        return dict(self._state.labels)

    @overload
    async def observe(self, x: str, *, timeout: float | None = None) -> WordPrediction: ...
    @overload
    async def observe(self, x: Value | Row, *, timeout: float | None = None) -> ValuePrediction: ...
    @overload
    async def observe(self, x: Notes, *, timeout: float | None = None) -> NotePrediction: ...
    async def observe(self, x: str | Value | Row | Notes, *, timeout: float | None = None) -> Prediction:
        """Feeds one observation and predicts what comes next.

        A word or a text (the prediction is then the one after its last word), a number (None: missing), a row
        or mapping of the model's columns, or the MIDI numbers of the notes that sound. A forecasting model answers
        with a ForecastPrediction, a model of labels with a LabelPrediction (see `label`). Raises InvalidInput and
        everything that can happen to a session.
        """
        codec = self._codec if self._settled.is_set() else await self._ready()
        value = codec.plain(x)
        if value is None:
            return codec.prediction(await self._observe(codec.one(x), timeout))
        self._require_usable()
        if not self._connection.has_room():
            await self._connection.make_room(1, timeout)
        one = self._connection.protocol.observe_one(self._state, value)
        return codec.prediction_at(*await self._connection.answer(one, timeout))

    @overload
    async def observe_many(self, xs: str | Sequence[str], *, timeout: float | None = None) -> WordPredictions: ...
    @overload
    async def observe_many(self, xs: Values, *, timeout: float | None = None) -> ValuePredictions: ...
    @overload
    async def observe_many(self, xs: Sequence[Notes], *, timeout: float | None = None) -> NotePredictions: ...
    async def observe_many(self, xs: Any, *, timeout: float | None = None) -> Predictions:
        """Feeds observations in order; returns one prediction after each, as columns.

        The words of a text, a sequence of words (each looked up whole), a column of numbers, a table
        [n, columns], or frames of notes. `timeout` counts for every 4096 of them.
        """
        codec = await self._ready()
        inputs = codec.many(xs)
        if len(inputs) == 0:
            return codec.predictions(Columns.missing(None, 0))
        parts = [await self._observe(inputs[i : i + CHUNK], timeout) for i in range(0, len(inputs), CHUNK)]
        return codec.predictions(Columns.concatenate(parts))

    async def label(self, text: str | Sequence[str], *, timeout: float | None = None) -> LabelPredictions:
        """Feeds a text or words to a model of labels: what it says after each of them, as columns.

        As `observe_many`, with its type told. Raises InvalidInput where the model labels nothing.
        """
        self._labels()
        predictions = await self.observe_many(text, timeout=timeout)
        assert isinstance(predictions, LabelPredictions)
        return predictions

    async def tag(self, sentence: str | Sequence[str], *, timeout: float | None = None) -> list[TaggedWord]:
        """The label of every word of a whole sentence, a text or words.

        The session stays where it is: a copy of it reads the sentence, and where the model looks ahead its end too.
        Raises InvalidInput where the model does not tag words.
        """
        await self._ready()
        codec = self._labels()
        if self._model.task != "tagging":
            raise InvalidInput(f"{self._model.name} labels whole texts, not words; observe them")
        words, inputs = codec.sentence(sentence)
        if not words:
            return []
        async with await self.fork(timeout=timeout) as copy:
            return codec.tagged(words, await copy._observe(inputs, timeout))

    async def peek(self, *, timeout: float | None = None) -> Prediction:
        """The current prediction again; nothing changes."""
        codec = await self._ready()
        return codec.prediction(await self._ask(Kind.PEEK, timeout))

    async def rewind(self, n: int = 1, *, timeout: float | None = None) -> Prediction:
        """Takes the last `n` observations back; returns the prediction as it was before them.

        Raises RewindLimit where the server does not keep so many.
        """
        if n < 1:
            raise InvalidInput(f"at least one observation is taken back, not {n}")
        codec = await self._ready()
        self._require_usable()
        call = self._connection.protocol.rewind(self._state, n)
        return codec.prediction(await self._answered(call, timeout))

    @overload
    async def fork(self, n: None = None, *, timeout: float | None = None) -> AsyncSession: ...
    @overload
    async def fork(self, n: int, *, timeout: float | None = None) -> list[AsyncSession]: ...
    async def fork(self, n: int | None = None, *, timeout: float | None = None) -> AsyncSession | list[AsyncSession]:
        """An independent copy of the session as it is now, or a list of `n` copies. Raises ResourceExhausted."""
        if n is not None and n < 1:
            raise InvalidInput(f"at least one copy is made, not {n}")
        await self._ready()
        self._require_usable()
        call = self._connection.protocol.fork(self._state, n or 1)
        await self._answered(call, timeout)
        copies = [AsyncSession(self._connection, self._catalog, copy, self._model) for copy in call.copies]
        return copies[0] if n is None else copies

    async def export(self, *, timeout: float | None = None) -> bytes:
        """A signed snapshot of the session as it is now, for `client.restore`."""
        self._require_usable()
        call = self._connection.protocol.ask(Kind.EXPORT, [self._state])
        await self._answered(call, timeout)
        return call.snapshots[self._state.handle]

    async def rewarm(self, version: str | None = None, *, timeout: float | None = None) -> None:
        """Moves the session to another version of its model (the newest unless told).

        The new version is fed the last observations, as many as the server keeps. What is asked of the session
        meanwhile waits for the move, and means the new version. Raises ModelNotFound.
        """
        await self._ready()
        self._require_usable()
        self._settled.clear()
        try:
            await self._answered(self._connection.protocol.rewarm(self._state, version or ""), timeout)
            await self._catalog.known(self._state.model, self._state.version, timeout)
            self._note_version()
        finally:
            self._settled.set()

    @overload
    def generate(
        self,
        n: int,
        *,
        paths: int,
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> AsyncGeneration[NDArray[np.float64]]: ...
    @overload
    def generate(
        self,
        n: int,
        *,
        quantiles: Sequence[float],
        paths: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> AsyncGeneration[NDArray[np.float64]]: ...
    @overload
    def generate(
        self,
        n: int,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        commit: bool = False,
        timeout: float | None = None,
    ) -> AsyncGeneration[Any]: ...
    def generate(
        self,
        n: int,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        commit: bool = False,
        paths: int | None = None,
        quantiles: Sequence[float] | None = None,
        timeout: float | None = None,
    ) -> AsyncGeneration[Any]:
        """Lets the model run on for `n` steps from where the session is now; an iterator over what it comes up with.

        Words: each a GeneratedWord (word, probability), sampled at `temperature` (1; 0 takes the most probable) from
        the `top_k` most probable and from those that together have the probability `top_p`, until a word of `stop`.
        Values: each a float (several targets: an array [targets]), sampled at `temperature` times the scale; with
        `paths` an array [paths], with `quantiles` of that many paths (256) an array [quantiles] (or with targets as
        second axis). Notes: each a frame, a frozenset of MIDI numbers, sampled at `temperature`. The same `seed` gives
        the same. `timeout` is the longest wait for a step.

        The session stays where it is. With `commit` what is taken from the iterator is observed too: before anything
        else that is asked of the session, and at the iterator's end. Raises ResourceExhausted, and AnswersLost where
        the connection broke and the session has moved on since.
        """
        return self._generate(Wanted.of(n, temperature, top_k, top_p, seed, stop, paths, quantiles, commit), timeout)

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

    def _generate(self, wanted: Wanted, timeout: float | None) -> AsyncGeneration[Any]:
        self._require_usable()
        if not self._settled.is_set():
            raise InvalidInput("the session is moving to another version; await the rewarm before it generates")
        codec = self._codec
        call = codec.generating(self._state.handle, wanted)
        self._connection.protocol.generate(call)
        self._connection.wake()

        def observe(taken: list[Any]) -> Call:
            return self._connection.protocol.observe(self._state, codec.again(taken))

        generation = AsyncGeneration[Any](
            self._connection,
            call,
            lambda piece: codec.generated(piece, wanted),
            observe if wanted.commit else None,
            timeout,
        )
        self._generation = generation if wanted.commit else None
        return generation

    def _labels(self) -> LabelCodec:
        if not isinstance(self._codec, LabelCodec):
            raise InvalidInput(f"{self._model.name} predicts what comes next; it labels nothing")
        return self._codec

    async def _observe(self, inputs: NDArray[Any], timeout: float | None) -> Columns:
        self._require_usable()
        await self._connection.make_room(len(inputs), timeout)
        return await self._answered(self._connection.protocol.observe(self._state, inputs), timeout)

    async def _ask(self, kind: Kind, timeout: float | None) -> Columns:
        self._require_usable()
        return await self._answered(self._connection.protocol.ask(kind, [self._state]), timeout)

    async def _answered(self, call: Call, timeout: float | None) -> Columns:
        await self._connection.wait(call, timeout)
        call.raise_any()
        return call.columns()

    async def _ready(self) -> Codec:
        """What writes and reads for the version that the session is in, once a move that was asked for is done."""
        await self._settled.wait()
        return self._codec

    def _note_version(self) -> None:
        """The session may be in another version than before."""
        model = self._catalog.of(self._state)
        if model is not None and model is not self._model:
            self._model, self._codec = model, codec_of(model)

    def _require_usable(self) -> None:
        self._connection.require_open()
        if self._state.error is not None:
            raise fresh(self._state.error)
        if self._generation is not None:
            self._generation.commit()


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
