"""A small server of the wire contract in Python objects, with faults on demand: what a real one does rarely."""
# ruff: noqa: ARG002  (the generated base class names the arguments)

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_proto import hiddenstate_pb2_grpc as pb_grpc

WORDS = ["<unk>", "<eos>", "the", "cat", "sat", "on", "mat", "."]
MODELS = {
    "words": pb.Model(
        name="words",
        version="1",
        task=pb.TASK_NEXT_WORD,
        text=pb.Text(
            vocabulary=WORDS, lowercase=True, unknown_token=0, end_token=1, word_pattern=r"[a-z]+|[.]", top_k=2
        ),
    ),
    "values": pb.Model(
        name="values", version="3", task=pb.TASK_NEXT_VALUE, values=pb.Values(columns=["value"], targets=[0])
    ),
    "pairs": pb.Model(
        name="pairs", version="1", task=pb.TASK_NEXT_VALUE, values=pb.Values(columns=["a", "b"], targets=[0, 1])
    ),
}


def status(reason: str, code: int, *, retry_after: float | None = None, **metadata: str) -> status_pb2.Status:
    """A rich error as the contract has them."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="hiddenstate", metadata=metadata)]
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after * 1e9))
        details.append(retry)
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=f"{reason} happened", details=packed)


@dataclass
class Held:
    """A session on the server: its state is the sum of what it observed."""

    id: str
    model: str
    step: int = 0
    total: float = 0.0
    last: float = 0.0
    applied: list[float] = field(default_factory=list)


class Fake(pb_grpc.HiddenStateServiceServicer):
    """Answers observation x in a session with location = sum of its observations, scale = 1, surprise = step.

    `refusals` are statuses that the next observations get instead; `answers` may be cleared to hold replies back.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Held] = {}
        self.frames: list[str] = []
        self.rows: list[int] = []
        """Rows of each observe frame."""
        self.refusals: list[status_pb2.Status] = []
        self.open_refusals: list[status_pb2.Status] = []
        self.streams: set[asyncio.Queue[pb.StreamResponse | None]] = set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.metadata: dict[str, Any] = {}
        self.gets = 0
        self.ids = itertools.count()
        self.ended: dict[str, str] = {}

    # unary

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=MODELS.values())

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self.gets += 1
        if request.name not in MODELS:
            rich = status("MODEL_NOT_FOUND", code_pb2.NOT_FOUND, available=", ".join(MODELS))
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                rich.message,
                (("grpc-status-details-bin", rich.SerializeToString()),),
            )
        return pb.GetModelResponse(model=MODELS[request.name])

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """Pages of two, so that there are several."""
        held = list(self.sessions.values())
        at = int(request.page_token or 0)
        page = [pb.Session(id=s.id, model=s.model, version="1", step=s.step) for s in held[at : at + 2]]
        more = str(at + 2) if at + 2 < len(held) else ""
        return pb.ListSessionsResponse(sessions=page, next_page_token=more, total_size=len(held))

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        held = self.sessions[request.id]
        return pb.GetSessionResponse(session=pb.Session(id=held.id, model=held.model, step=held.step))

    # the stream

    async def Stream(self, requests: Any, context: Any) -> AsyncIterator[pb.StreamResponse]:
        replies: asyncio.Queue[pb.StreamResponse | None] = asyncio.Queue()
        self.streams.add(replies)
        self.metadata = dict(context.invocation_metadata())
        reading = asyncio.create_task(self._read(requests, replies))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was dropped")
        finally:
            reading.cancel()
            self.streams.discard(replies)

    async def _read(self, requests: Any, replies: asyncio.Queue[pb.StreamResponse | None]) -> None:
        handles: dict[int, Held] = {}
        async for request in requests:
            reply = self._answer(request, handles)
            await self.answering.wait()
            if reply.ByteSize():
                replies.put_nowait(reply)

    def drop_streams(self) -> None:
        """Breaks every connection's stream."""
        for replies in self.streams:
            replies.put_nowait(None)

    def _answer(self, request: pb.StreamRequest, handles: dict[int, Held]) -> pb.StreamResponse:
        kind = request.WhichOneof("frame") or ""
        self.frames.append(kind)
        response = pb.StreamResponse()
        if kind == "open":
            self._open(request.open, handles, response)
        elif kind == "observe":
            self._observe(request.observe, handles, response)
        elif kind == "peek":
            held = [(h, handles[h]) for h in _handles(request.peek)]
            response.peeked.append(_predictions([(h, s.step, s) for h, s in held]))
        elif kind == "close":
            response.closed = request.close.handles
            for handle in _handles(request.close):
                del self.sessions[handles.pop(handle).id]
        elif kind == "heartbeat":
            response.leases.handles = request.heartbeat.handles
        return response

    def _open(self, open: pb.Open, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        opened = pb.Opened(model=open.model, version=MODELS[open.model].version)
        opened.idle_timeout.seconds = open.idle_timeout.seconds or 600
        got, steps = [], []
        for handle, id in zip(_handles(open), open.session_ids, strict=True):
            if self.open_refusals:
                response.faults.append(pb.Fault(handle=handle, status=self.open_refusals.pop(0)))
                continue
            if open.mode == pb.OPEN_MODE_RESUME:
                if id not in self.sessions:
                    reason = self.ended.get(id, "SESSION_NOT_FOUND")
                    response.faults.append(pb.Fault(handle=handle, status=status(reason, code_pb2.NOT_FOUND)))
                    continue
                held = self.sessions[id]
            elif id in self.sessions:
                refusal = status("SESSION_EXISTS", code_pb2.ALREADY_EXISTS)
                response.faults.append(pb.Fault(handle=handle, status=refusal))
                continue
            else:
                held = Held(id or f"made-{next(self.ids)}", open.model)
                self.sessions[held.id] = held
            handles[handle] = held
            got.append(handle)
            steps.append(held.step)
            opened.session_ids.append(held.id)
        opened.handles = np.array(got, "<u4").tobytes()
        opened.steps = np.array(steps, "<u8").tobytes()
        if got:
            response.opened.append(opened)

    def _observe(self, observe: pb.Observe, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        if observe.WhichOneof("input") == "tokens":
            inputs = np.frombuffer(observe.tokens, "<i4").astype(float)
        else:
            numbers = np.frombuffer(observe.values, "<f8")
            inputs = numbers.reshape(len(_handles(observe)), -1)[:, 0]
        rows = []
        steps = np.frombuffer(observe.steps, "<u8").tolist()
        self.rows.append(len(steps))
        for handle, step, x in zip(_handles(observe), steps, inputs.tolist(), strict=True):
            held = handles.get(handle)
            refusal: status_pb2.Status | None = None
            if held is None:
                refusal = status("HANDLE_UNKNOWN", code_pb2.INVALID_ARGUMENT)
            elif held.id not in self.sessions:
                refusal = status(self.ended[held.id], code_pb2.NOT_FOUND)
            elif step > held.step + 1:
                refusal = status("STEP_GAP", code_pb2.OUT_OF_RANGE, expected=str(held.step + 1))
            elif step < held.step:
                refusal = status("STEP_ALREADY_APPLIED", code_pb2.ALREADY_EXISTS, step=str(held.step))
            elif self.refusals and step == held.step + 1:  # a repeat is answered, not refused
                refusal = self.refusals.pop(0)
            if refusal is not None:
                response.faults.append(pb.Fault(handle=handle, step=step, status=refusal))
                continue
            assert held is not None
            if step == held.step + 1:
                held.step, held.last = step, x
                held.total += 0.0 if np.isnan(x) else x
                held.applied.append(x)
            rows.append((handle, step, Held(held.id, held.model, held.step, held.total)))
        if rows:
            for model in {held.model for _, _, held in rows}:
                response.observed.append(_predictions([row for row in rows if row[2].model == model]))


def _handles(message: Any) -> list[int]:
    handles: list[int] = np.frombuffer(message.handles, "<u4").tolist()
    return handles


def _predictions(rows: Iterable[tuple[int, int, Held]]) -> pb.Predictions:
    rows = list(rows)
    n = len(rows)
    predictions = pb.Predictions(
        handles=np.array([handle for handle, _, _ in rows], "<u4").tobytes(),
        steps=np.array([step for _, step, _ in rows], "<u8").tobytes(),
        surprises=np.array([step for _, step, _ in rows], "<f4").tobytes(),
    )
    if rows[0][2].model == "words":
        top = [[(held.step + 2) % len(WORDS), 0] for _, _, held in rows]
        predictions.top_tokens = np.array(top, "<i4").tobytes()
        predictions.top_probabilities = np.tile(np.array([0.75, 0.25], "<f4"), n).tobytes()
    else:
        targets = len(MODELS[rows[0][2].model].values.targets)
        totals = np.array([[held.total] * targets for _, _, held in rows], "<f8")
        predictions.locations = totals.tobytes()
        predictions.scales = np.ones_like(totals).tobytes()
        predictions.degrees_of_freedom = np.full(totals.shape, np.inf, "<f4").tobytes()
    return predictions


class Serving:
    """The fake behind a real gRPC server on a free port, which can be stopped and started again there."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server()
        pb_grpc.add_HiddenStateServiceServicer_to_server(self.fake, self._server)
        self.port = self._server.add_insecure_port(f"localhost:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(None)
            self._server = None


async def main() -> None:
    """Serves in a process of its own and prints the port."""
    serving = Serving(Fake())
    await serving.start()
    print(serving.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
