"""Around every call: lets in only who may call, and ends it with the rich status of what went wrong."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc_status import rpc_status

from hiddenstate_server.calls.tenants import Context, Tenants
from hiddenstate_server.errors import InternalError, ServerError

_OURS = "/hiddenstate."
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

log = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Refuses callers without a tenant; turns a ServerError into its status, anything unforeseen into INTERNAL.

    Health and reflection are left alone: they are open to all.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps this service's handlers, of whatever kind they are."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler
        wrapped = {kind: self._wrapped(getattr(handler, kind)) for kind in _KINDS if getattr(handler, kind) is not None}
        return handler._replace(**wrapped)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            try:
                self._tenants.of(context)
                return await _answered(function(request, context), context)
            except ServerError as error:
                await _abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("unforeseen error in a call")
                await _abort(context, InternalError("the server failed; its log has the details"))

        return call


async def _answered(call: Any, context: Context) -> Any:
    """What a handler's coroutine returns; of a generator's, what it yields is written."""
    if not inspect.isasyncgen(call):
        return await call
    async with aclosing(call):
        async for response in call:
            await context.write(response)
    return None


async def _abort(context: Context, error: ServerError) -> None:
    await context.abort_with_status(rpc_status.to_status(error.status()))
