"""Following the predictions of a session that another client feeds."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

from hiddenstate.catalog import Catalog
from hiddenstate.codec import codec_of
from hiddenstate.columns import Columns
from hiddenstate.connection import Connection, Patience
from hiddenstate.descriptions import Model
from hiddenstate.predictions import Prediction
from hiddenstate_proto import hiddenstate_pb2 as pb


class AsyncWatch(AsyncIterator[Prediction]):
    """An iterator over a session's predictions, the current one first; it ends with the session.

    A broken connection is made anew within the timeout.
    """

    def __init__(self, connection: Connection, catalog: Catalog, id: str, model: Model, timeout: float | None) -> None:
        self.skipped = 0
        """Predictions that were left out, because they were taken too slowly or while there was no connection."""
        self._connection = connection
        self._request = pb.WatchSessionRequest(id=id)
        self._catalog = catalog
        self._model = model
        self._codec = codec_of(model)
        self._timeout = timeout
        self._stream: Any = None
        self._ready: deque[Prediction] = deque()
        self._last: Prediction | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Prediction:
        from grpc.aio import EOF, AioRpcError

        patience: Patience | None = None
        while not self._ready:
            try:
                anew = self._stream is None
                if anew:
                    self._stream = self._connection.stub().WatchSession(
                        self._request, metadata=self._connection.metadata
                    )
                answer = await self._stream.read()
            except AioRpcError as failure:
                self._stream = None
                patience = patience or self._connection.patience(self._timeout)
                await patience.after(failure)
                continue
            if answer is EOF:
                raise StopAsyncIteration
            self._connection.reached = True
            if answer.version != self._model.version:  # it has moved to another one
                self._model = await self._catalog.known(self._model.name, answer.version, self._timeout)
                self._codec = codec_of(self._model)
            self._take(answer, anew)
        self._last = self._ready.popleft()
        return self._last

    async def close(self) -> None:
        """Stops following."""
        if self._stream is not None:
            self._stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _take(self, answer: pb.WatchSessionResponse, anew: bool) -> None:
        _, columns = Columns.parse(answer.predictions)
        predictions: list[Prediction] = [
            self._codec.prediction(columns.take(slice(row, row + 1))) for row in range(len(columns))
        ]
        self.skipped += answer.skipped
        if anew and self._last is not None:  # the current prediction, which was seen or comes after some that were not
            missed = predictions[0].step - self._last.step
            if missed == 0:
                del predictions[0]
            self.skipped += max(0, missed - 1)
        self._ready.extend(predictions)
