"""A client of TorchServe's gRPC service: a stream, a connection and a sequence for each session."""

import json
import sys
import tempfile
import uuid
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc

from bench.peers.session import Prediction
from bench.peers.streams import Stream

METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions2"
PROTO = "proto/inference.proto"


class TorchServeError(Exception):
    """The server refused a request."""


def messages() -> Any:
    """The module of its messages, from the .proto in its jar."""
    package = find_spec("ts")
    assert package
    assert package.origin
    folder = tempfile.mkdtemp()
    with zipfile.ZipFile(Path(package.origin).parent / "frontend" / "model-server.jar") as jar:
        jar.extract(PROTO, folder)
    sys.path.append(folder)
    return grpc.protos(PROTO)


class Session:
    """A sequence, whose id the client chooses."""

    def __init__(self, pb: Any, stream: Stream) -> None:
        self._pb = pb
        self._stream = stream
        self._request = pb.PredictionsRequest(model_name="next-word", sequence_id=uuid.uuid4().hex)

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session. Raises TorchServeError."""
        self._request.input["data"] = token.to_bytes(4, "little")
        answer = self._pb.PredictionResponse.FromString(await self._stream.ask(self._request.SerializeToString()))
        if answer.status.code:
            raise TorchServeError(answer.status.message)
        return Prediction(**json.loads(answer.prediction))


async def open_sessions(port: int, count: int) -> list[Session]:
    """Connects them all."""
    pb = messages()
    return [Session(pb, await Stream.connected(port, METHOD)) for _ in range(count)]
