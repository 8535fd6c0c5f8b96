"""The other worker processes of this server: what they hold, asked over private Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc
from hiddenstate_server import errors
from hiddenstate_server.calls.tenants import TENANT_HEADER, is_private
from hiddenstate_server.sessions import residence
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.sessions.keeper import Keeper
from hiddenstate_server.stepping.directory import Ended, id_of, tenant_of

_SERVICE = "hiddenstate.internal.Peers"
_LIVE = "LIVE"
_TIMEOUT = 5.0
_RELOAD_TIMEOUT = 300.0


def socket_address(folder: Path, worker: int) -> str:
    """Where a worker listens for its peers."""
    return f"unix:{folder / f'worker-{worker}.sock'}"


class Peers:
    """Asks peers; one that is down holds nothing, so it is left out of the answer."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._channels = [grpc.aio.insecure_channel(address) for address in addresses]
        self._services = [pb_grpc.HiddenStateServiceStub(channel) for channel in self._channels]
        self._lookups = [channel.unary_unary(f"/{_SERVICE}/Lookup", _encoded, json.loads) for channel in self._channels]

    def __bool__(self) -> bool:
        return bool(self._channels)

    async def pages(self, tenant: str, request: pb.ListSessionsRequest) -> list[pb.ListSessionsResponse]:
        """Their pages of a tenant's sessions."""
        metadata = _metadata(tenant)
        calls = (service.ListSessions(request, timeout=_TIMEOUT, metadata=metadata) for service in self._services)
        return await _answers(calls)

    async def session(self, key: str) -> pb.Session | errors.ServerError | None:
        """Their live session of this key, else how it ended, else None."""
        fates = await self.fates([key])
        if not isinstance(fates.get(key), errors.SessionElsewhere):
            return fates.get(key)
        request, metadata = pb.GetSessionRequest(id=id_of(key)), _metadata(tenant_of(key))
        calls = (service.GetSession(request, timeout=_TIMEOUT, metadata=metadata) for service in self._services)
        found = await _answers(calls, ignore=(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND))
        return found[0].session if found else None

    async def close_sessions(self, tenant: str, request: pb.CloseSessionsRequest) -> int:
        """Has them end a tenant's sessions; how many they did."""
        metadata = _metadata(tenant)
        calls = (service.CloseSessions(request, timeout=_TIMEOUT, metadata=metadata) for service in self._services)
        return sum(answer.closed for answer in await _answers(calls))

    async def fates(self, keys: Sequence[str]) -> dict[str, errors.ServerError]:
        """For keys they know: SessionElsewhere for a live one, else how it ended."""
        known: dict[str, errors.ServerError] = {}
        for answer in await _answers(lookup(list(keys), timeout=_TIMEOUT) for lookup in self._lookups):
            for key, fate in answer.items():
                if fate == _LIVE:
                    known[key] = errors.SessionElsewhere(
                        f"another worker of this server holds session {id_of(key)!r}; connect again to reach it"
                    )
                elif not isinstance(known.get(key), errors.SessionElsewhere):
                    known[key] = Ended[fate].error()
        return known

    async def reload(self) -> list[pb.ReloadModelsResponse]:
        """Has them look at the model folder now."""
        request = pb.ReloadModelsRequest()
        return await _answers(service.ReloadModels(request, timeout=_RELOAD_TIMEOUT) for service in self._services)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


def _metadata(tenant: str) -> list[tuple[str, str]]:
    return [(TENANT_HEADER, tenant)] if tenant else []


async def _answers(
    calls: Iterable[Any], ignore: Sequence[grpc.StatusCode] = (grpc.StatusCode.UNAVAILABLE,)
) -> list[Any]:
    answers = []
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, grpc.RpcError) and answer.code() in ignore:
            continue
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


def lookup_handler(host: Host, keeper: Keeper | None = None) -> grpc.GenericRpcHandler:
    """Answers peers' look-ups: {key: LIVE or how it ended} for the keys this process knows.

    With a keeper, what is known of them is in the store afterwards.
    """

    async def lookup(keys: list[str], context: Any) -> dict[str, str]:
        if not is_private(context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "for the workers of one server only")
        fates = {}
        for key in keys:
            if residence.is_live(host, key):
                fates[key] = _LIVE
            elif (ending := host.directory.ending(key)) is not None:
                fates[key] = ending.name
        if keeper is not None and fates:
            with contextlib.suppress(errors.StoreUnavailable):
                await keeper.saved(_TIMEOUT / 2)
        return fates

    handler = grpc.unary_unary_rpc_method_handler(lookup, json.loads, _encoded)
    return grpc.method_handlers_generic_handler(_SERVICE, {"Lookup": handler})


def _encoded(message: object) -> bytes:
    return json.dumps(message).encode()
