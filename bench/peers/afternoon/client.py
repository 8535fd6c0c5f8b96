"""A client of the afternoon server: a stream and a connection for each session."""

from bench.peers.afternoon.messages import METHOD, SERVICE, decoded, request_of
from bench.peers.session import Prediction
from bench.peers.streams import Stream


class Session:
    """The session that its stream is."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session."""
        return decoded(await self._stream.ask(request_of(token)))


async def open_sessions(port: int, count: int) -> list[Session]:
    """Connects them all."""
    return [Session(await Stream.connected(port, f"/{SERVICE}/{METHOD}")) for _ in range(count)]
