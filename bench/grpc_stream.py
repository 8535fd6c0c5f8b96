"""A gRPC client for one bidirectional stream per connection, made for load and nothing else.

A Python gRPC client spends as much CPU on a message as the server it wants to load, so that one process could
never show the server's limit. This one speaks just the HTTP/2 that a single stream needs (RFC 9113) over
asyncio, for about a tenth.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
STREAM = 1
DEFAULT_WINDOW = 65_535
OUR_WINDOW = 1 << 30
LARGEST_FRAME = 16_384


class StreamEnded(Exception):
    """The server ended the stream or the connection."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(path: str) -> bytes:
    """The request's headers as HPACK literals that need no table (RFC 7541, 6.2.2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\0" + b"".join(bytes([len(word)]) + word.encode() for word in header) for header in headers.items()
    )


class GrpcStream(asyncio.Protocol):
    """One stream: `send` takes a message; `received` is called with each message that arrives."""

    def __init__(self, path: str, received: Callable[[bytes], None]) -> None:
        self.received = received
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with StreamEnded when the server ends the stream."""
        self._path = path
        self._frames = bytearray()
        self._messages = bytearray()
        self._unacknowledged = 0
        self._unsent = bytearray()
        self._stream_window = self._connection_window = self._initial_window = DEFAULT_WINDOW

    def send(self, message: bytes) -> None:
        """Sends one message, as soon as flow control lets it."""
        self._unsent += b"\0" + len(message).to_bytes(4, "big") + message
        self._send_allowed()

    def close(self) -> None:
        """Drops the connection."""
        self.ended.cancel()
        self._transport.close()

    def _send_allowed(self) -> None:
        while self._unsent:
            size = min(len(self._unsent), LARGEST_FRAME, self._stream_window, self._connection_window)
            if size <= 0:
                return
            self._transport.write(frame(DATA, 0, STREAM, bytes(self._unsent[:size])))
            del self._unsent[:size]
            self._stream_window -= size
            self._connection_window -= size

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the connection and its stream."""
        self._transport = cast(asyncio.Transport, transport)
        window = struct.pack(">HI", INITIAL_WINDOW_SIZE, OUR_WINDOW)
        more = struct.pack(">I", OUR_WINDOW - DEFAULT_WINDOW)
        self._transport.write(
            PREFACE
            + frame(SETTINGS, 0, 0, window)
            + frame(WINDOW_UPDATE, 0, 0, more)
            + frame(HEADERS, END_HEADERS, STREAM, header_block(self._path))
        )

    def data_received(self, data: bytes) -> None:
        """Takes complete frames off what has arrived."""
        frames = self._frames
        frames += data
        start = 0
        while len(frames) - start >= 9:
            end = start + 9 + int.from_bytes(frames[start : start + 3], "big")
            if len(frames) < end:
                break
            kind, flags, stream = struct.unpack_from(">BBI", frames, start + 3)
            self._frame_received(kind, flags, stream, bytes(frames[start + 9 : end]))
            start = end
        del frames[:start]

    def connection_lost(self, error: Exception | None) -> None:
        """Reports a connection that the server dropped."""
        self._end(f"the connection was lost: {error}")

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._data_received(payload)
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self._settings_received(payload)
        elif kind == WINDOW_UPDATE:
            self._window_received(stream, int.from_bytes(payload, "big"))
        elif kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            self._end(f"the server ended the stream: {payload!r}")

    def _data_received(self, payload: bytes) -> None:
        messages = self._messages
        messages += payload
        while len(messages) >= 5:
            end = 5 + int.from_bytes(messages[1:5], "big")
            if len(messages) < end:
                break
            message = bytes(messages[5:end])
            del messages[:end]
            self.received(message)
        self._unacknowledged += len(payload)
        if self._unacknowledged > OUR_WINDOW // 2:
            update = struct.pack(">I", self._unacknowledged)
            self._transport.write(frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, STREAM, update))
            self._unacknowledged = 0

    def _settings_received(self, payload: bytes) -> None:
        for setting, value in struct.iter_unpack(">HI", payload):
            if setting == INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
        self._transport.write(frame(SETTINGS, ACK, 0))
        self._send_allowed()

    def _window_received(self, stream: int, increment: int) -> None:
        if stream == STREAM:
            self._stream_window += increment
        else:
            self._connection_window += increment
        self._send_allowed()

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(StreamEnded(why))
