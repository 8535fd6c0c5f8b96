"""Everything that can go wrong, as one tree:

    HiddenstateError
    ├── SessionError              something ended or refused one session; others go on
    │   ├── SessionNotFound       no session ever had this id (or it ended too long ago to know)
    │   │   └── SessionLost       the server no longer has a session this client was using
    │   ├── SessionExpired        it was idle for longer than its lease
    │   ├── SessionClosed         it was closed, here or by another client
    │   ├── SessionEvicted        the server needed its place
    │   ├── SessionExists         an open with an id that is live
    │   ├── SessionTakenOver      another client resumed it
    │   └── SessionMoved          it is in a version with another vocabulary now; resume it
    ├── RewindLimit               observations were to be taken back that are not kept any more
    ├── AnswersLost               observations were applied, but the connection broke before their answers came
    ├── ModelNotFound             nothing of this name and version is served
    ├── InvalidInput              an argument or an observation that cannot be taken
    │   └── SnapshotInvalid       a snapshot that is damaged, forged, or of another tenant or model
    ├── ResourceExhausted         a limit of the server or of this client; `retry_after` may say when to try again
    ├── Unavailable               no server could be reached, it is going away, or its store does not answer
    ├── DeadlineExceeded          no answer within the call's timeout
    ├── ClientClosed              the client was used after it was closed
    ├── AccessDenied              the token is missing or unknown, or does not allow this
    └── ServerError               a fault of the server, or an answer this SDK does not know

Every error carries `reason` (the server's word for it, such as ``SESSION_EXPIRED``), `metadata` (details by
name) and `retry_after` (seconds, where the server said).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "hiddenstate"
_DETAILS_KEY = "grpc-status-details-bin"


class HiddenstateError(Exception):
    """Base of every error this package raises."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


class SessionError(HiddenstateError):
    """Something ended or refused one session."""


class SessionNotFound(SessionError):
    """No session ever had this id, or it ended too long ago to know."""


class SessionLost(SessionNotFound):
    """The server no longer has a session that this client was using, for instance since it restarted."""


class SessionExpired(SessionError):
    """The session was idle for longer than its lease."""


class SessionClosed(SessionError):
    """The session was closed, here or by another client."""


class SessionEvicted(SessionError):
    """The server needed the session's place."""


class SessionExists(SessionError):
    """A session was to be opened with an id that is live; resume it or take another id."""


class SessionTakenOver(SessionError):
    """Another client resumed the session."""


class SessionMoved(SessionError):
    """The session was found in another version, to which this client's tokens mean other words; resume it."""


class RewindLimit(HiddenstateError):
    """More observations were to be taken back than are kept; `metadata["oldest"]` is the first step that is."""


class AnswersLost(HiddenstateError):
    """Observations are in the session's state, but their answers were lost with a connection.

    `metadata` has the `first` and `last` step without an answer. The session can be used on.
    """


class ModelNotFound(HiddenstateError):
    """No model of this name and version is served; `metadata["available"]` names what is."""


class InvalidInput(HiddenstateError):
    """An argument or an observation that cannot be taken."""


class SnapshotInvalid(InvalidInput):
    """A snapshot is damaged or forged, or of another tenant, another server key or another model."""


class ResourceExhausted(HiddenstateError):
    """A limit was reached, of the server or of this client."""


class Unavailable(HiddenstateError):
    """No server could be reached, or the server is going away."""


class DeadlineExceeded(HiddenstateError):
    """No answer came within the timeout. What was sent may still be applied."""


class ClientClosed(HiddenstateError):
    """The client was used after it was closed."""


class AccessDenied(HiddenstateError):
    """Credentials are missing or were refused."""


class ServerError(HiddenstateError):
    """A fault of the server, or an answer that this version of the SDK does not know."""


_BY_REASON: dict[str, type[HiddenstateError]] = {
    "SESSION_NOT_FOUND": SessionNotFound,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_CLOSED": SessionClosed,
    "SESSION_EVICTED": SessionEvicted,
    "SESSION_EXISTS": SessionExists,
    "SESSION_TAKEN_OVER": SessionTakenOver,
    "HANDLE_UNKNOWN": SessionLost,
    "MODEL_NOT_FOUND": ModelNotFound,
    "REWIND_LIMIT": RewindLimit,
    "SNAPSHOT_INVALID": SnapshotInvalid,
}

_BY_CODE: dict[int, type[HiddenstateError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidInput,
    code_pb2.RESOURCE_EXHAUSTED: ResourceExhausted,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceeded,
    code_pb2.UNAUTHENTICATED: AccessDenied,
    code_pb2.PERMISSION_DENIED: AccessDenied,
}


def fresh(error: HiddenstateError) -> HiddenstateError:
    """A copy to be raised: one error may reach several tasks, and each raise writes its own trace into it."""
    return copy.copy(error)


def from_status(status: status_pb2.Status) -> HiddenstateError:
    """The error that a google.rpc.Status means."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(status.code, ServerError)
    reason = info.reason or code_pb2.Code.Name(code_pb2.Code.ValueType(status.code))
    return kind(status.message or reason, reason=reason, metadata=info.metadata, retry_after=retry_after)


def from_trailers(code: int, message: str, trailers: Iterable[tuple[str, str | bytes]] | None) -> HiddenstateError:
    """The error of a failed call: its rich status where the server sent one, else its code and message."""
    for key, value in trailers or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    return from_status(status_pb2.Status(code=code, message=message))
