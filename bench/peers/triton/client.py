"""A client of Triton's gRPC service: a stream, a connection and a sequence for each session."""

import secrets

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from bench.peers.session import Prediction
from bench.peers.streams import Stream

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


class TritonError(Exception):
    """The server refused a request."""


class Session:
    """A sequence, whose number the client chooses."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._request = pb.ModelInferRequest(model_name="next-word")
        self._request.parameters["sequence_id"].int64_param = secrets.randbits(62) + 1
        self._request.parameters["sequence_start"].bool_param = True
        self._request.inputs.add(name="token", datatype="INT32", shape=[1, 1])

    async def observe(self, token: int) -> Prediction:
        """See bench.peers.session. Raises TritonError."""
        self._request.raw_input_contents[:] = [token.to_bytes(4, "little")]
        answer = pb.ModelStreamInferResponse.FromString(await self._stream.ask(self._request.SerializeToString()))
        if answer.error_message:
            raise TritonError(answer.error_message)
        self._request.parameters["sequence_start"].bool_param = False
        names = [output.name for output in answer.infer_response.outputs]
        raw = dict(zip(names, answer.infer_response.raw_output_contents, strict=True))
        return Prediction(
            np.frombuffer(raw["surprise"], "<f4").item(),
            np.frombuffer(raw["top_tokens"], "<i4").tolist(),
            np.frombuffer(raw["top_probabilities"], "<f4").tolist(),
        )


async def open_sessions(port: int, count: int) -> list[Session]:
    """Connects them all."""
    return [Session(await Stream.connected(port, METHOD)) for _ in range(count)]
