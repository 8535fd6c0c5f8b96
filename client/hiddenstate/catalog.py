"""The models a server describes, each asked for once."""
# ruff: noqa: ASYNC109  (every method takes its own timeout: the blocking client has the same ones)

from __future__ import annotations

import asyncio

from hiddenstate.connection import Connection
from hiddenstate.descriptions import Model
from hiddenstate_proto import hiddenstate_pb2 as pb


class Catalog:
    """Models by name and version."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._models: dict[tuple[str, str], Model] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[Model]] = {}

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
