"""The models a server describes, each asked for once."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio

from hiddenstate.calls import Session
from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model
from hiddenstate.errors import HiddenstateError, SessionMoved, Unavailable
from hiddenstate_proto import hiddenstate_pb2 as pb


class Catalog:
    """Models by name and version."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._models: dict[tuple[str, str], Model] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[Model]] = {}
        self._following: set[asyncio.Task[None]] = set()
        connection.protocol.on_moved = self._moved

    async def ask(self, name: str, version: str, timeout: float | None) -> Model:
        """The model as the server describes it now (empty version: the newest)."""
        request = pb.GetModelRequest(name=name, version=version)
        answer = await self._connection.unary(lambda stub: stub.GetModel, request, timeout)
        model = Model.parse(answer.model)
        self._models[name, model.version] = self._models[name, version] = model
        return model

    async def known(self, name: str, version: str, timeout: float | None) -> Model:
        """As `ask`, but only once, however many wait for it."""
        key = (name, version)
        if key in self._models:
            return self._models[key]
        if key not in self._asked:
            asking = asyncio.create_task(self.ask(name, version, timeout))
            asking.add_done_callback(lambda _: self._asked.pop(key))
            self._asked[key] = asking
        return await asyncio.shield(self._asked[key])

    def of(self, session: Session) -> Model | None:
        """What the session's observations are written for, if it was asked for."""
        return self._models.get((session.model, session.coded))

    def _moved(self, session: Session) -> None:
        task = asyncio.create_task(self._follow(session, session.version))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, session: Session, version: str) -> None:
        """Lets the session go on in another version where that reads observations alike."""
        error: HiddenstateError | None = None
        try:
            written = await self.known(session.model, session.coded, None)
            if not written.reads_like(await self.known(session.model, version, None)):
                error = SessionMoved(
                    f"session {session.id} was moved to version {version} of {session.model}, which has another "
                    "vocabulary; resume it to go on there",
                    reason="SESSION_MOVED",
                )
        except Unavailable:
            return  # it is found again on the next connection
        except HiddenstateError as unknown:
            error = unknown
        if session.version == version:
            self._connection.protocol.follow(session, error)
            self._connection.wake()
