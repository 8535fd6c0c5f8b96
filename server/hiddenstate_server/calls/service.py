"""The gRPC face of a host: one stream handler and the unary calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hiddenstate_models.bundle import Task
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server import errors
from hiddenstate_server.calls import listing
from hiddenstate_server.calls.peers import Peers
from hiddenstate_server.calls.session_calls import SessionCalls
from hiddenstate_server.calls.tenants import Tenants, is_private
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import Keeper
from hiddenstate_server.sessions.residence import Known, is_live
from hiddenstate_server.stepping import streams
from hiddenstate_server.stepping.directory import key_of
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.versions.reloading import Reloader

StreamContext = grpc.aio.ServicerContext[bytes, bytes]
_HAND_OVER_SECONDS = 5.0
_TASKS: dict[Task, pb.Task.ValueType] = {
    "next-word": pb.TASK_NEXT_WORD,
    "next-value": pb.TASK_NEXT_VALUE,
    "classification": pb.TASK_CLASSIFICATION,
    "tagging": pb.TASK_TAGGING,
    "music": pb.TASK_MUSIC,
    "forecasting": pb.TASK_FORECASTING,
}
_SERVICE = pb.DESCRIPTOR.services_by_name["HiddenStateService"]


def _frame(data: bytes) -> pb.StreamRequest:
    """The frame, or FrameInvalid, which ends the stream: what follows bytes that are none means nothing either."""
    try:
        return pb.StreamRequest.FromString(data)
    except DecodeError as error:
        raise errors.FrameInvalid(
            "a message on the stream is no StreamRequest; is the client of this service?"
        ) from error


class HiddenStateService(SessionCalls):
    """Streams and unary calls on one host; none goes beyond the sessions of the caller's tenant."""

    def __init__(
        self,
        host: Host,
        keeper: Keeper | None,
        peers: Peers,
        tenants: Tenants,
        reloader: Reloader,
        wake_engine: Callable[[], None],
    ) -> None:
        super().__init__(host, keeper, peers, tenants)
        self._reloader = reloader
        self._wake_engine = wake_engine

    async def Stream(self, _requests: Any, context: StreamContext) -> None:  # type: ignore[override]
        """Reads frames in a task of its own; this coroutine sends."""
        tenant = self._tenants.of(context)
        if self._host.draining:
            raise errors.Draining("the server is going away; connect to another one")
        stream = self._host.connect(tenant)
        reading = asyncio.create_task(self._read(stream, context))
        try:
            await self._send(stream, context)
        finally:
            reading.cancel()
            self._host.disconnect(stream)
        if reading.done():
            reading.result()
        if stream.ending is not None and self._keeper is not None:
            # Who is sent elsewhere finds everything there.
            with contextlib.suppress(errors.StoreUnavailable):
                await self._keeper.saved(_HAND_OVER_SECONDS)
        if stream.ending is not None:
            raise stream.ending

    async def _read(self, stream: streams.Stream, context: StreamContext) -> None:
        try:
            while not isinstance(data := await context.read(), type(grpc.aio.EOF)):
                if not self._host.receive_single(stream, data):
                    await self._receive(stream, _frame(data))
                self._wake_engine()
                if stream.crowded:
                    await stream.readable()
        finally:
            stream.read_all = True
            stream.wake()

    async def _receive(self, stream: streams.Stream, request: pb.StreamRequest) -> None:
        """Has a frame applied, after whatever it needs has been fetched."""
        known = None
        if self._peers and request.open.session_ids:
            known = Known(refusals=await self._elsewhere(stream, request.open))
        if self._keeper is None:
            self._host.receive(stream, request, known)
        else:
            await self._keeper.receive(stream, request, known)

    async def _elsewhere(self, stream: streams.Stream, frame: pb.Open) -> dict[str, errors.ServerError]:
        """What peers know of the keys in an open that this process does not have.

        Where there is a store, they have written to it what they know.
        """
        keys = [key_of(stream.tenant, name) for name in frame.session_ids if name]
        foreign = [key for key in keys if not is_live(self._host, key)]
        fates = await self._peers.fates(foreign) if foreign else {}
        return fates if self._keeper is None else {}

    async def _send(self, stream: streams.Stream, context: StreamContext) -> None:
        while await stream.sendable():
            reply, parts, rows = stream.take()
            await context.write(reply)
            stream.sent(parts, rows, self._host.clock())

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Any) -> pb.ListModelsResponse:
        """Every model, without vocabularies."""
        return pb.ListModelsResponse(models=[describe(model, vocabulary=False) for model in self._host.models])

    async def GetModel(self, request: pb.GetModelRequest, _context: Any) -> pb.GetModelResponse:
        """One model, with its vocabulary."""
        return pb.GetModelResponse(model=describe(self._host.model(request.name, request.version, retired=True)))

    async def ReloadModels(self, _request: pb.ReloadModelsRequest, context: Any) -> pb.ReloadModelsResponse:
        """Brings what is served in line with the model folder, in all workers."""
        if not is_private(context):
            self._tenants.check_admin(context)
        changes = await self._reloader.reload()
        responses = [pb.ReloadModelsResponse(**changes._asdict())]
        if self._peers and not is_private(context):
            responses += await self._peers.reload()
        return pb.ReloadModelsResponse(
            loaded=sorted({name for response in responses for name in response.loaded}),
            retired=sorted({name for response in responses for name in response.retired}),
            refused={name: reason for response in responses for name, reason in response.refused.items()},
        )

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """A page of the tenant's live sessions, of all workers unless a worker asks."""
        tenant = self._tenants.of(context)
        if request.model:
            self._host.model(request.model, retired=True)
        if is_private(context):
            return listing.page(self._host, tenant, request)
        pages = []
        if self._keeper is not None:
            filters, after = listing.Filter(tenant, request).stored, listing.position(request.page_token)
            records, total = await self._keeper.page(tenant, filters, after, listing.page_size(request) + 1)
            pages.append(listing.stored_page(self._host, request, records, total))
        # After the store's, so that no session is missing because it was stored in between, or counted twice.
        pages.append(listing.page(self._host, tenant, request))
        if self._peers:
            pages += await self._peers.pages(tenant, request)
        return listing.merged(request, pages)

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        """One live session of any worker, or how it ended."""
        key = key_of(self._tenants.of(context), request.id)
        if self._keeper is not None:
            await self._keeper.confirm(key)
        place = self._host.directory.get(key)
        if place is not None:
            return pb.GetSessionResponse(session=listing.session(self._host, place))
        if self._peers and not is_private(context):
            found = await self._peers.session(key)
            if isinstance(found, pb.Session):
                return pb.GetSessionResponse(session=found)
            if found is not None and self._keeper is None:
                raise found
        if self._keeper is None or is_private(context):
            raise self._host.directory.missing(key)
        return pb.GetSessionResponse(session=listing.of_record(self._host, await self._stored(key)))


def register(service: HiddenStateService, server: grpc.aio.Server) -> None:
    """Has the server serve this; on streams there are bytes both ways."""
    pb_grpc.add_HiddenStateServiceServicer_to_server(service, server)
    stream: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(service.Stream)
    server.add_registered_method_handlers(_SERVICE.full_name, {"Stream": stream})


def describe(model: ServedModel, *, vocabulary: bool = True) -> pb.Model:
    """A model as clients see it."""
    info = model.info
    message = pb.Model(
        name=info.name,
        version=info.version,
        task=_TASKS[info.task],
        description=info.description,
        parameters=info.parameters,
        state_bytes=4 * info.state_size,
        live_sessions=model.sessions,
        runtime=model.runtime.description,
    )
    if info.text is not None:
        message.text.lowercase = info.text.lowercase
        message.text.unknown_token = info.text.unknown_token
        message.text.end_token = info.text.end_token
        message.text.word_pattern = info.text.word_pattern
        message.text.top_k = model.top_k
        message.text.spelling_suffixes.extend(info.text.spelling_suffixes)
        if vocabulary:
            message.text.vocabulary.extend(info.text.vocabulary)
        if info.labels is not None:
            message.labels.names.extend(info.labels.names)
            message.labels.look_ahead = info.labels.look_ahead
    elif info.notes is not None:
        message.notes.lowest, message.notes.count = info.notes.lowest, info.notes.count
    else:
        message.values.columns.extend(info.columns)
        message.values.targets.extend(info.targets)
        message.values.horizon = info.horizon
    return message
