"""Whether everything that must agree does, looked at in parts that fit between two ticks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import structlog

from hiddenstate_server.sessions import residence
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.streams import Stream

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host

log = structlog.get_logger("hiddenstate_server")

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 1 << 20
_PART_SECONDS = 0.002
_REST_SECONDS = 10.0
_DONE = object()


def checks(host: Host) -> Iterator[None]:
    """Raises AssertionError where models, streams and keys do not agree; yields after each part.

    A part is true or not by itself: anything may happen before the next.
    """
    for model in list(host.models):
        parts = _model_checks(host, model)
        # A model may be unloaded between two parts, and then has nothing left that could be checked.
        while model in host.models and next(parts, _DONE) is not _DONE:
            yield
    live = sum(len(model.table.live()) for model in host.models)
    if live != len(host.directory):
        raise AssertionError(f"{len(host.directory)} keys for {live} sessions")
    host.generating.check_integrity(host.streams.values())
    yield
    if host.ledger is not None:
        yield from residence.checks(host)
    for stream in list(host.streams.values()):
        if stream.number in host.streams:
            _check_handles(host, stream)
        yield


def _model_checks(host: Host, model: ServedModel) -> Iterator[None]:
    model.check_integrity()
    yield
    at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // model.session_bytes))
    for start in range(0, len(model.arena.returned), at_once):
        free = model.arena.returned[start : start + at_once]
        model.arena.check_empty(free)
        model.history.check_integrity(free)
        yield
    for start in range(0, len(model.table.keys), _ROWS_AT_ONCE):
        rows = start + np.flatnonzero(model.table.created[start : start + _ROWS_AT_ONCE])
        for row in rows.tolist():
            place = host.directory.get(model.table.keys[row])
            if place is None or place != (model, row):
                raise AssertionError("a session's key does not lead to its row")
        yield


def _check_handles(host: Host, stream: Stream) -> None:
    rows, handles = stream.rows(), stream.bound_handles()
    for model in host.models:
        mine = (rows >= model.base) & (rows < model.base + model.capacity)
        local, held = rows[mine] - model.base, handles[mine]
        if (model.table.stream[local] != stream.number).any() or (model.table.handle[local] != held).any():
            raise AssertionError("a stream's handle leads to a session it does not hold")
        rows, handles = rows[~mine], handles[~mine]
    if len(rows):
        raise AssertionError("a stream's handle leads to a model that is not served")


class Inspection:
    """Goes through the checks again and again while there is nothing else to do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._parts = checks(host)
        self._resting_until = 0.0

    def go_on(self) -> None:
        """Checks some more, for a few milliseconds at most; what does not agree is logged and counted."""
        now = time.monotonic()
        if now < self._resting_until:
            return
        try:
            for _ in self._parts:
                if time.monotonic() > now + _PART_SECONDS:
                    return
        except AssertionError as error:
            self._host.metrics.integrity_failures.inc()
            log.critical("the server's memory does not agree with itself", what=str(error))
        self._parts = checks(self._host)
        self._resting_until = now + _REST_SECONDS
