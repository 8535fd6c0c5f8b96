"""The lead: HTTP/2 frames read off whole socket buffers on uvloop, and all answers to them sent in one write.

It speaks no more of HTTP/2 than this load needs, and checks nothing: no flow control towards the client, no limits, no
TLS. What it takes is what a server below gRPC could come near to. `python loop_echo.py PORT REPLIES`.
"""

import asyncio
import base64
import json
import struct
import sys
from pathlib import Path
from typing import cast

import uvloop

PREFACE = 24
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
ACK, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


class Echo(asyncio.Protocol):
    """One connection."""

    def __init__(self, replies: list[bytes]) -> None:
        messages = b"".join(b"\0" + len(reply).to_bytes(4, "big") + reply for reply in replies)
        parts = [messages[at : at + 16_384] for at in range(0, len(messages), 16_384)]
        self._answer = b"".join(frame(DATA, 0, 1, part) for part in parts)
        self._buffer = bytearray()
        self._greeted = False
        self._message = 0  # bytes of a message that are still to come
        self._unacknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(frame(SETTINGS, 0, 0))

    def data_received(self, data: bytes) -> None:
        """Answers every whole message in what has come, in one write."""
        buffer = self._buffer
        buffer += data
        at = 0
        if not self._greeted:
            if len(buffer) < PREFACE:
                return
            self._greeted, at = True, PREFACE
        out = []
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            payload = bytes(buffer[at + 9 : at + 9 + size])
            at += 9 + size
            if kind == DATA:
                out += [self._answer] * self._messages(payload)
                self._unacknowledged += size
            elif kind == HEADERS:
                # 0x88 is ":status: 200" of HPACK's static table; then a literal.
                out.append(frame(HEADERS, END_HEADERS, 1, b"\x88\0\x0ccontent-type\x10application/grpc"))
            elif kind == SETTINGS and not flags & ACK:
                out.append(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                out.append(frame(PING, ACK, 0, payload))
        del buffer[:at]
        if self._unacknowledged > 16_384:
            update = struct.pack(">I", self._unacknowledged)
            out += [frame(8, 0, 0, update), frame(8, 0, 1, update)]
            self._unacknowledged = 0
        if out:
            self._transport.write(b"".join(out))

    def _messages(self, payload: bytes) -> int:
        """How many messages end in it."""
        ended, at = 0, 0
        while at < len(payload):
            if not self._message:
                self._message = 5 + int.from_bytes(payload[at + 1 : at + 5], "big")
            taken = min(self._message, len(payload) - at)
            self._message -= taken
            at += taken
            ended += not self._message
        return ended


async def serve(port: int, replies: list[bytes]) -> None:
    """Until killed."""
    await asyncio.get_running_loop().create_server(lambda: Echo(replies), "localhost", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), [base64.b64decode(one) for one in json.loads(Path(sys.argv[2]).read_text())]))
