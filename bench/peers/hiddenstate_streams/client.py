"""hiddenstate without its SDK: a stream and a connection for each session, one observation a message."""

import numpy as np

from bench.load import SERVICE, parsed
from bench.peers.session import Prediction
from bench.peers.streams import Stream
from hiddenstate_proto import hiddenstate_pb2 as pb

HANDLE = bytes(4)


class Session:
    """The one session of its stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session."""
        request = pb.StreamRequest(observe=pb.Observe(handles=HANDLE, tokens=token.to_bytes(4, "little")))
        answer = parsed(await self._stream.ask(request.SerializeToString())).observed[0]
        return Prediction(
            np.frombuffer(answer.surprises, "<f4").item(),
            np.frombuffer(answer.top_tokens, "<i4").tolist(),
            np.frombuffer(answer.top_probabilities, "<f4").tolist(),
        )


async def open_sessions(port: int, count: int) -> list[Session]:
    """Connects them all."""
    opening = pb.StreamRequest(open=pb.Open(handles=HANDLE, model="next-word", mode=pb.OPEN_MODE_CREATE))
    sessions = []
    for _ in range(count):
        stream = await Stream.connected(port, f"/{SERVICE}/Stream")
        parsed(await stream.ask(opening.SerializeToString()))
        sessions.append(Session(stream))
    return sessions
