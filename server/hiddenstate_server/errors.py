"""What the server can refuse or fail at, each with its gRPC code and the reason clients switch on.

ServerError
├── SessionNotFound, SessionExpired, SessionClosed, SessionEvicted      how a session is not there
├── SessionExists, SessionTakenOver, SessionElsewhere                   who holds it
├── SessionLimit, SessionBacklog, StreamBacklog, GenerationLimit,
│   StoreUnavailable, Draining                                          try again later (RetryInfo)
├── HandleUnknown, HandleInUse                                          the stream's own numbers
├── StepGap, StepAlreadyApplied, RewindLimit                            the order of observations
├── InputInvalid, FrameInvalid, RequestInvalid, SnapshotInvalid         what was sent
├── Unauthenticated, PermissionDenied                                   who sent it
├── ModelNotFound
└── InternalError
StartError: the server cannot start; its message is all the operator sees.
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "hiddenstate"


class StartError(Exception):
    """The server cannot start as configured; the message is one sentence for the operator."""


class ServerError(Exception):
    """An answer other than success: message for people, `reason` and `metadata` for programs."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    retry_after: ClassVar[float | None] = None

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {name: str(value) for name, value in metadata.items()}

    def status(self) -> status_pb2.Status:
        """The google.rpc.Status with ErrorInfo and, where waiting helps, RetryInfo (seconds)."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status = status_pb2.Status(code=self.code.value[0], message=str(self), details=[_packed(info)])
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after * 1000))
            status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class SessionNotFound(ServerError):
    """No session ever had this id, or it ended too long ago to know how."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "SESSION_NOT_FOUND"


class SessionExpired(ServerError):
    """The session's lease ran out."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "SESSION_EXPIRED"


class SessionClosed(ServerError):
    """A client closed the session."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "SESSION_CLOSED"


class SessionEvicted(ServerError):
    """The server needed the session's place."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "SESSION_EVICTED"


class SessionExists(ServerError):
    """A session with this id is live."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "SESSION_EXISTS"


class SessionTakenOver(ServerError):
    """Another stream, or another handle, resumed the session."""

    code = grpc.StatusCode.ABORTED
    reason = "SESSION_TAKEN_OVER"


class SessionElsewhere(ServerError):
    """Another worker process of this server holds the session; a new connection may reach it."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SESSION_ELSEWHERE"
    retry_after = 0.05


class SessionLimit(ServerError):
    """No place for another session."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SESSION_LIMIT"
    retry_after = 1.0


class SessionBacklog(ServerError):
    """Too many observations wait in the session."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SESSION_BACKLOG"
    retry_after = 0.1


class StreamBacklog(ServerError):
    """Too many observations wait on the stream."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STREAM_BACKLOG"
    retry_after = 0.1


class GenerationLimit(ServerError):
    """Too much is being generated at once."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "GENERATION_LIMIT"
    retry_after = 0.1


class StoreUnavailable(ServerError):
    """The state store does not answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"
    retry_after = 0.5


class Draining(ServerError):
    """The server is going away."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    retry_after = 1.0


class HandleUnknown(ServerError):
    """The handle is not open on this stream."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "HANDLE_UNKNOWN"


class HandleInUse(ServerError):
    """The handle is open already, or out of range."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "HANDLE_IN_USE"


class StepGap(ServerError):
    """A step was skipped; metadata `expected` is the one to send next."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "STEP_GAP"


class StepAlreadyApplied(ServerError):
    """An older step than the last one; metadata `step` is the last applied."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "STEP_ALREADY_APPLIED"


class RewindLimit(ServerError):
    """Further back than is kept; metadata `oldest` is the first step that can be gone back to."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "REWIND_LIMIT"


class InputInvalid(ServerError):
    """The observation, or a name in an open, cannot be used."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INPUT_INVALID"


class FrameInvalid(ServerError):
    """The frame's columns do not fit together, or there are too many rows."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FRAME_INVALID"


class RequestInvalid(ServerError):
    """A field of a unary request is malformed."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INPUT_INVALID"


class SnapshotInvalid(ServerError):
    """The snapshot is forged, truncated, of another tenant, or of another model."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "SNAPSHOT_INVALID"


class Unauthenticated(ServerError):
    """The token is missing or unknown."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(ServerError):
    """Only administrators may."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class ModelNotFound(ServerError):
    """The model or version is not served; metadata `available` lists what is."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class InternalError(ServerError):
    """A fault of the server; its log has the details."""
