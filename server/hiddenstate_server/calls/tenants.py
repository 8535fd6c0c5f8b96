"""Whose call it is: the bearer token says so, or, where no tokens are configured, a header does."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

import grpc

from hiddenstate_server import errors
from hiddenstate_server.tokens import digest, valid_name

TENANT_HEADER = "hiddenstate-tenant"
_AUTHORIZATION = "authorization"
_BEARER = "bearer "

Context = grpc.aio.ServicerContext[Any, Any]


def is_private(context: Context) -> bool:
    """Whether a call came from a peer: another worker of this server, over a socket in a folder of their own."""
    return context.peer().startswith("unix:")


class Tenants:
    """Finds the tenant of a call. Without tokens everybody is believed; the tenant of nobody is ""."""

    def __init__(self, tokens: Mapping[bytes, str] | None = None, admin: str = "") -> None:
        """`tokens` is the tenant by each token's digest; None leaves authentication to whoever is in front."""
        self._tokens = tokens
        self._admin = admin

    def of(self, context: Context) -> str:
        """The tenant; Unauthenticated, PermissionDenied or RequestInvalid where there is none."""
        named = _values(context, TENANT_HEADER)
        if len(named) > 1:
            raise errors.RequestInvalid(f"{TENANT_HEADER} stands {len(named)} times; send it once")
        if named and not valid_name(named[0]):
            raise errors.RequestInvalid(f"{TENANT_HEADER} has 1 to 64 characters of A-Z a-z 0-9 . _ : -")
        if self._tokens is None or is_private(context):
            return named[0] if named else ""
        tenant = self._authenticated(_values(context, _AUTHORIZATION))
        if named and named[0] != tenant:
            raise errors.PermissionDenied(f"the token is not one of {named[0]!r}; leave {TENANT_HEADER} out")
        return tenant

    def check_admin(self, context: Context) -> None:
        """PermissionDenied unless an administrator calls."""
        if self.of(context) != self._admin:
            raise errors.PermissionDenied("this is for administrators; the server's --admin-tenant names them")

    def _authenticated(self, headers: list[str]) -> str:
        assert self._tokens is not None
        if len(headers) != 1 or not headers[0].lower().startswith(_BEARER):
            raise errors.Unauthenticated("a token is needed; send it as `authorization: Bearer TOKEN`")
        presented, tenant = digest(headers[0][len(_BEARER) :].strip()), None
        # All are compared, so that the time taken tells nothing.
        for known, owner in self._tokens.items():
            if hmac.compare_digest(known, presented):
                tenant = owner
        if tenant is None:
            raise errors.Unauthenticated("the token is not known here")
        return tenant


def _values(context: Context, name: str) -> list[str]:
    metadata = context.invocation_metadata() or ()
    return [value.decode() if isinstance(value, bytes) else value for key, value in metadata if key == name]
