"""The echo server as an ASGI application, for servers with HTTP/2 of their own. REPLIES names its file of replies."""

import base64
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

REPLIES = [base64.b64decode(one) for one in json.loads(Path(os.environ["REPLIES"]).read_text())]
ANSWER = b"".join(b"\0" + len(reply).to_bytes(4, "big") + reply for reply in REPLIES)
PREFIX = 5
"""Bytes before a message of gRPC: whether it is compressed, and its length."""


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Answers each message of one call."""
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"application/grpc")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    buffered, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            return
        buffered += event.get("body", b"")
        more = event.get("more_body", False)
        answers = 0
        while len(buffered) >= PREFIX:
            end = PREFIX + int.from_bytes(buffered[1:PREFIX], "big")
            if len(buffered) < end:
                break
            del buffered[:end]
            answers += 1
        if answers:
            await send({"type": "http.response.body", "body": ANSWER * answers, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
