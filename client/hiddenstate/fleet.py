"""Many sessions of one model: columns in and out."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from hiddenstate.calls import Call, Kind, Observing, Wish
from hiddenstate.catalog import Catalog
from hiddenstate.codec import Codec, Floats, Ids, Notes, Row, Tokens, Value, codec_of
from hiddenstate.columns import Columns
from hiddenstate.connection import Connection
from hiddenstate.errors import HiddenstateError, InvalidInput, SessionError, fresh
from hiddenstate.predictions import (
    FleetAnswers,
    FleetNotePredictions,
    FleetPredictions,
    FleetWordPredictions,
)
from hiddenstate.protocol import Protocol
from hiddenstate.session import close_after


class AsyncFleet:
    """Many sessions of one model, fed by columns. An id is anything hashable, such as a sensor's name."""

    def __init__(self, connection: Connection, catalog: Catalog, wish: Wish) -> None:
        self._connection = connection
        self._catalog = catalog
        self._wish = wish
        self._handles: dict[Hashable, int] = {}
        self._ended: dict[Hashable, HiddenstateError] = {}
        self._codec: Codec | None = None
        self._opening = asyncio.Lock()

    def __len__(self) -> int:
        """Sessions open."""
        return len(self._handles)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._handles

    @overload
    async def observe(self, ids: Ids, values: Tokens, *, timeout: float | None = None) -> FleetWordPredictions: ...
    @overload
    async def observe(
        self, ids: Ids, values: Floats | Sequence[Value] | Sequence[Row], *, timeout: float | None = None
    ) -> FleetPredictions: ...
    @overload
    async def observe(
        self, ids: Ids, values: Sequence[Notes], *, timeout: float | None = None
    ) -> FleetNotePredictions: ...
    async def observe(self, ids: Ids, values: Any, *, timeout: float | None = None) -> FleetAnswers:
        """Feeds observation `values[i]` to session `ids[i]`; an id may stand in several rows, in order.

        `values` is a column [n] or table [n, columns] for value models; words, or int tokens [n], for word
        models; frames for music models.
        What went wrong with single sessions is in `.errors` by id, their rows are NaN, and the ids start afresh
        the next time. Raises what concerns all of them.
        """
        codec = await self._known_codec(timeout)
        inputs = codec.many(values)
        names = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if len(names) != len(inputs):
            raise InvalidInput(f"there are {len(names)} ids for {len(inputs)} observations")
        handles, errors = await self._opened(names, timeout)
        columns = await self._observe(handles, inputs, names, errors, timeout)
        return codec.fleet_predictions(columns, errors)

    async def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews every session's lease without an observation."""
        await self._ask(Kind.HEARTBEAT, list(self._handles), timeout)

    async def close(self, ids: Iterable[Hashable] | None = None, *, timeout: float | None = None) -> None:
        """Ends these sessions, or all."""
        names = list(self._handles) if ids is None else [id for id in ids if id in self._handles]
        if not self._connection.closed:
            await self._ask(Kind.CLOSE, names, timeout)
        for id in names:
            self._ended.pop(id, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_after(self.close, error)

    async def _known_codec(self, timeout: float | None) -> Codec:
        self._connection.require_open()
        if self._codec is None:
            model = await self._catalog.known(self._wish.model, self._wish.version, timeout)
            self._wish = replace(self._wish, version=model.version)
            self._codec = codec_of(model)
        return self._codec

    async def _opened(
        self, names: list[Any], timeout: float | None
    ) -> tuple[NDArray[np.int64], dict[Any, HiddenstateError]]:
        """Handles int64 [n] of open sessions, -1 where there is none, and why."""
        handles = self._lookup(names)
        errors: dict[Any, HiddenstateError] = {}
        if (handles >= 0).all():
            return handles, errors
        async with self._opening:
            missing = dict.fromkeys(name for name, handle in zip(names, handles.tolist(), strict=True) if handle < 0)
            for name in missing:
                if name in self._ended:
                    errors[name] = self._ended.pop(name)
            new = [name for name in missing if name not in errors and name not in self._handles]
            if new:
                errors |= await self._open(new, timeout)
        return self._lookup(names), errors

    def _lookup(self, names: list[Any]) -> NDArray[np.int64]:
        return np.fromiter(map(self._handles.get, names, repeat(-1)), np.int64, len(names))

    async def _open(self, names: list[Any], timeout: float | None) -> dict[Any, HiddenstateError]:
        call, states = self._connection.protocol.open(self._wish, [""] * len(names))
        await self._connection.wait(call, timeout)
        errors: dict[Any, HiddenstateError] = {}
        for name, state in zip(names, states, strict=True):
            if state.error is not None:
                errors[name] = fresh(state.error)
            else:
                self._handles[name] = state.handle
                state.on_end = partial(self._forget, name)
        _raise_common(errors, len(names))
        return errors

    def _forget(self, name: Hashable, error: HiddenstateError) -> None:
        del self._handles[name]
        self._ended[name] = error

    async def _observe(
        self,
        handles: NDArray[np.int64],
        inputs: NDArray[Any],
        names: list[Any],
        errors: dict[Any, HiddenstateError],
        timeout: float | None,
    ) -> Columns:
        protocol = self._connection.protocol
        rows = np.flatnonzero(handles >= 0)
        size = protocol.max_frame_rows
        under_way: deque[tuple[Observing, NDArray[Any]]] = deque()
        answers: list[Columns] = []
        order: list[NDArray[Any]] = []
        async with _giving_up(protocol, under_way):
            for at in [*range(0, len(rows), size), None, None]:
                if at is not None:
                    piece = rows[at : at + size]
                    await self._connection.make_room(len(piece), timeout)
                    call, shuffled = protocol.observe_rows(handles[piece], inputs[piece])
                    under_way.append((call, piece if shuffled is None else piece[shuffled]))
                    self._connection.wake()
                if under_way and (at is None or len(under_way) > 1):
                    call, piece = under_way[0]
                    await self._connection.wait(call, timeout)
                    under_way.popleft()
                    self._note(call, handles, names, errors)
                    answers.append(call.columns())
                    order.append(piece)
        return _reordered(answers, order, len(handles))

    def _note(
        self, call: Call, handles: NDArray[np.int64], names: list[Any], errors: dict[Any, HiddenstateError]
    ) -> None:
        """Adds the call's errors under their ids."""
        if not call.errors:
            return
        _raise_common(call.errors, len(call.handles) if call.parts else 0)
        for row in np.flatnonzero(np.isin(handles, list(call.errors))).tolist():
            name = names[row]
            errors[name] = fresh(call.errors[int(handles[row])])
            self._ended.pop(name, None)

    async def _ask(self, kind: Kind, names: list[Any], timeout: float | None) -> None:
        if not names:
            return
        protocol = self._connection.protocol
        call = protocol.ask(kind, [protocol.session(self._handles[name]) for name in names])
        await self._connection.wait(call, timeout)


@asynccontextmanager
async def _giving_up(protocol: Protocol, under_way: deque[tuple[Observing, NDArray[Any]]]) -> AsyncIterator[None]:
    """Whatever is still under way when the block is left, is given up."""
    try:
        yield
    finally:
        for call, _ in under_way:
            protocol.abandon(call)


def _reordered(answers: list[Columns], order: list[NDArray[Any]], n: int) -> Columns:
    """Answers in the order of the `n` rows they belong to; the other rows are missing."""
    rows = np.concatenate(order) if order else np.empty(0, np.int64)
    absent = np.setdiff1d(np.arange(n), rows) if len(rows) < n else rows[:0]
    if absent.size:
        answers = [*answers, Columns.missing(answers[0] if answers else None, absent.size)]
        rows = np.concatenate([rows, absent])
    if not answers:
        return Columns.missing(None, 0)
    columns = Columns.concatenate(answers)
    if (rows[:-1] < rows[1:]).all():
        return columns
    return columns.take(np.argsort(rows))


def _raise_common(errors: Mapping[Any, HiddenstateError], n: int) -> None:
    """Raises what is no single session's fault, once it struck every one of `n`."""
    if errors and len(errors) >= n:
        error = next(iter(errors.values()))
        if not isinstance(error, SessionError):
            raise fresh(error)
