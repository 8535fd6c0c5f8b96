"""A protocol and a fake server with a connection between them that can be cut anywhere, without any transport."""

from __future__ import annotations

import numpy as np
from tests.client.fake import Fake, Held

from hiddenstate.calls import Session, Waited, Wish
from hiddenstate.protocol import Protocol
from hiddenstate_proto import hiddenstate_pb2 as pb


class Wire:
    """Moves frames only when told."""

    def __init__(self, fake: Fake | None = None, **limits: int) -> None:
        self.protocol = Protocol(**limits)
        self.fake = fake or Fake()
        self.handles: dict[int, Held] = {}
        self.to_server: list[pb.StreamRequest] = []
        self.to_client: list[pb.StreamResponse] = []
        self.finished: list[Waited] = []
        self.now = 0.0

    def send(self) -> None:
        self.now += 1.0
        self.to_server += self.protocol.frames(self.now)

    def serve(self) -> None:
        for frame in self.to_server:
            reply = self.fake._answer(frame, self.handles)
            # over the wire and back
            self.to_client.append(pb.StreamResponse.FromString(reply.SerializeToString()))
        self.to_server.clear()

    def receive(self) -> None:
        for reply in self.to_client:
            self.finished += self.protocol.receive(reply, self.now)
        self.to_client.clear()

    def cut(self) -> None:
        """What is on its way in either direction is lost."""
        self.to_server.clear()
        self.to_client.clear()
        self.handles.clear()
        self.protocol.connection_lost()
        self.finished += self.protocol.take_finished()

    def crash(self, *, keeps_history: bool = True) -> None:
        """The server goes back to what is durable."""
        self.fake.crash(keeps_history=keeps_history)
        self.cut()

    def repeat(self) -> None:
        """Answers to observations come twice."""
        twice = []
        for reply in self.to_client:
            twice += [reply, pb.StreamResponse(observed=reply.observed)]
        self.to_client = twice

    def settle(self) -> None:
        for _ in range(40):
            self.send()
            self.serve()
            self.receive()
            if self.protocol.broken:
                self.cut()

    def open(self, *ids: str, model: str = "values") -> list[Session]:
        _, sessions = self.protocol.open(Wish(model), ids)
        self.settle()
        return sessions


def values(*numbers: float) -> np.ndarray:
    """A column of observations."""
    return np.array(numbers, float)[:, None]
