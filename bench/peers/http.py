"""A client with one HTTP/1.1 connection, kept alive, which carries one request at a time."""

import asyncio
import json
import uuid
from typing import Any

from bench.peers.session import Prediction


class HttpError(Exception):
    """The server answered with something else than 200."""


class HttpSession:
    """A session that the server knows by an id in every request.

    It posts JSON to /observe: an object with `session` and `token`, which is answered by one with the fields of
    Prediction.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._id = uuid.uuid4().hex

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session. Raises HttpError, or EOFError when the server hangs up."""
        return Prediction(**await self._post(self.question(token)))

    def question(self, token: int) -> Any:
        """What is posted."""
        return {"session": self._id, "token": token}

    async def _post(self, question: Any) -> Any:
        body = json.dumps(question).encode()
        head = f"POST /observe HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        self._writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        if status.split()[1] != "200":
            raise HttpError(f"{status}: {answer[:500].decode()}")
        return json.loads(answer)


async def open_sessions(port: int, count: int) -> list[HttpSession]:
    """Connects them all."""
    return [HttpSession(*await asyncio.open_connection("localhost", port)) for _ in range(count)]
