"""A small server of the wire contract in Python objects, with faults on demand: what a real one does rarely."""
# ruff: noqa: ARG002  (the generated base class names the arguments)

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import sys
import time
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
OTHER_WORDS = [*WORDS[:2], *reversed(WORDS[2:])]
"""Of version 9; the other versions have the same words."""
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
    version: str = "1"
    step: int = 0
    total: float = 0.0
    applied: list[float] = field(default_factory=list)
    rewinds: int = 0
    durable: int = 0
    oldest: int = 0
    """The first step that can be gone back to."""
    labels: dict[str, str] = field(default_factory=dict)
    used: float = field(default_factory=time.time)

    def apply(self, x: float, limit: int) -> None:
        self.step += 1
        self.total += 0.0 if np.isnan(x) else x
        self.applied.append(x)
        self.oldest = max(self.oldest, self.step - limit)

    def rewind(self, step: int) -> None:
        """To `step`, if that is in the past."""
        if step < self.step:
            self.applied = self.applied[: len(self.applied) - (self.step - step)]
            self.step, self.total = step, float(np.nansum(self.applied))
            self.durable = min(self.durable, step)


class Fake(pb_grpc.HiddenStateServiceServicer):
    """Answers observation x in a session with location = sum of its observations, scale = 1, surprise = step.

    `refusals` are statuses that the next observations get instead; `answers` may be cleared to hold replies back.
    What is durable is what `store` was called for; `crash` loses all the rest.
    """

    def __init__(self, durability: pb.Durability.ValueType = pb.DURABILITY_NONE, rewind_limit: int = 0) -> None:
        self.durability = durability
        self.rewind_limit = rewind_limit
        self.sessions: dict[str, Held] = {}
        self.stored: dict[str, Held] = {}
        self.frames: list[str] = []
        self.rows: list[int] = []
        """Rows of each observe frame."""
        self.refusals: list[status_pb2.Status] = []
        self.open_refusals: list[status_pb2.Status] = []
        self.question_refusals: list[status_pb2.Status] = []
        self.streams: set[asyncio.Queue[pb.StreamResponse | status_pb2.Status | None]] = set()
        self.watchers: dict[str, list[asyncio.Queue[Held | None]]] = {}
        self.answering = asyncio.Event()
        self.answering.set()
        self.metadata: dict[str, Any] = {}
        self.token = ""
        """The only one that is accepted; empty: none is needed."""
        self.gets = 0
        self.ids = itertools.count()
        self.ended: dict[str, str] = {}
        self.generating: list[pb.Generate] = []
        self.pieces = 1_000
        """Pieces of a continuation that are sent before it stops without an end."""
        self.cancelled: list[int] = []

    # what lasts

    def store(self) -> None:
        """Makes everything durable."""
        for held in self.sessions.values():
            self._store(held)

    def _store(self, held: Held) -> None:
        held.durable = held.step
        self.stored[held.id] = copy.deepcopy(held)

    def crash(self, *, keeps_history: bool = True) -> None:
        """Goes back to what is durable; the streams break."""
        self.sessions = copy.deepcopy(self.stored)
        for held in self.sessions.values():
            held.oldest = held.oldest if keeps_history else held.step
        self.drop_streams()

    # unary

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        await self._authenticate(context)
        return pb.ListModelsResponse(models=MODELS.values())

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self.gets += 1
        if request.name not in MODELS:
            await _abort(context, status("MODEL_NOT_FOUND", code_pb2.NOT_FOUND, available=", ".join(MODELS)))
        model = pb.Model()
        model.CopyFrom(MODELS[request.name])
        model.version = request.version or model.version
        if model.version == "9":
            model.text.vocabulary[:] = OTHER_WORDS
        return pb.GetModelResponse(model=model)

    async def ReloadModels(self, request: pb.ReloadModelsRequest, context: Any) -> pb.ReloadModelsResponse:
        return pb.ReloadModelsResponse(loaded=["words/2"], retired=["words/1"], refused={"values/9": "it is broken"})

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """Pages of two, so that there are several."""
        held = self._matching(request.model, dict(request.labels), request.idle_for.ToTimedelta().total_seconds())
        at = int(request.page_token or 0)
        page = [self._info(s) for s in held[at : at + 2]]
        more = str(at + 2) if at + 2 < len(held) else ""
        return pb.ListSessionsResponse(sessions=page, next_page_token=more, total_size=len(held))

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        return pb.GetSessionResponse(session=self._info(await self._find(request.id, context)))

    async def CloseSessions(self, request: pb.CloseSessionsRequest, context: Any) -> pb.CloseSessionsResponse:
        found = [self.sessions[id] for id in request.ids if id in self.sessions]
        if not request.ids:
            found = self._matching(request.model, dict(request.labels), request.idle_for.ToTimedelta().total_seconds())
        for held in found:
            self._close(held)
        return pb.CloseSessionsResponse(closed=len(found))

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Any) -> pb.ForkSessionResponse:
        held = await self._find(request.id, context)
        return pb.ForkSessionResponse(sessions=[self._info(self._copy(held)) for _ in range(request.count or 1)])

    async def ExportSession(self, request: pb.ExportSessionRequest, context: Any) -> pb.ExportSessionResponse:
        held = await self._find(request.id, context)
        return pb.ExportSessionResponse(snapshot=_snapshot(held), session=self._info(held))

    async def RestoreSession(self, request: pb.RestoreSessionRequest, context: Any) -> pb.RestoreSessionResponse:
        held = self._restore(request.snapshot, request.id)
        if isinstance(held, status_pb2.Status):
            await _abort(context, held)
        return pb.RestoreSessionResponse(session=self._info(held))

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Any
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        held = await self._find(request.id, context)
        states: asyncio.Queue[Held | None] = asyncio.Queue()
        self.watchers.setdefault(held.id, []).append(states)
        states.put_nowait(copy.deepcopy(held))
        skipped = 0
        while (state := await states.get()) is not None:
            predictions = _predictions([(0, state.step, state)])
            yield pb.WatchSessionResponse(predictions=predictions, skipped=skipped, version=state.version)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the watch was dropped")

    async def _authenticate(self, context: Any) -> None:
        sent = dict(context.invocation_metadata())
        if self.token and sent.get("authorization") != f"Bearer {self.token}":
            await _abort(context, status("UNAUTHENTICATED", code_pb2.UNAUTHENTICATED))

    async def _find(self, id: str, context: Any) -> Held:
        if id not in self.sessions:
            await _abort(context, status(self.ended.get(id, "SESSION_NOT_FOUND"), code_pb2.NOT_FOUND))
        return self.sessions[id]

    def _matching(self, model: str, labels: dict[str, str], idle: float) -> list[Held]:
        return [
            held
            for held in self.sessions.values()
            if model in ("", held.model) and labels.items() <= held.labels.items() and time.time() - held.used >= idle
        ]

    def _info(self, held: Held) -> pb.Session:
        info = pb.Session(
            id=held.id, model=held.model, version=held.version, step=held.step, labels=held.labels,
            place=pb.PLACE_ARENA, durable_step=held.durable, rewinds=held.rewinds, bytes=64,
        )  # fmt: skip
        info.create_time.FromSeconds(1_700_000_000)
        info.last_use_time.FromNanoseconds(round(held.used * 1e9))
        return info

    def _close(self, held: Held) -> None:
        self.ended[held.id] = "SESSION_CLOSED"
        self.stored.pop(held.id, None)
        del self.sessions[held.id]

    def _copy(self, held: Held) -> Held:
        made = copy.deepcopy(held)
        made.id, made.rewinds = f"made-{next(self.ids)}", 0
        self._add(made)
        return made

    def _restore(self, snapshot: bytes, id: str) -> Held | status_pb2.Status:
        if not snapshot.startswith(b"snapshot:"):
            return status("SNAPSHOT_INVALID", code_pb2.INVALID_ARGUMENT)
        made = Held(**json.loads(snapshot.removeprefix(b"snapshot:")))
        made.id = id or f"made-{next(self.ids)}"
        if made.id in self.sessions:
            return status("SESSION_EXISTS", code_pb2.ALREADY_EXISTS)
        self._add(made)
        return made

    def _add(self, held: Held) -> None:
        self.sessions[held.id] = held
        if self.durability != pb.DURABILITY_NONE:
            self._store(held)

    # the stream

    async def Stream(self, requests: Any, context: Any) -> AsyncIterator[pb.StreamResponse]:
        await self._authenticate(context)
        replies: asyncio.Queue[pb.StreamResponse | status_pb2.Status | None] = asyncio.Queue()
        self.streams.add(replies)
        self.metadata = dict(context.invocation_metadata())
        reading = asyncio.create_task(self._read(requests, replies))
        try:
            while isinstance(reply := await replies.get(), pb.StreamResponse):
                yield reply
            if reply is not None:
                await _abort(context, reply)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was dropped")
        finally:
            reading.cancel()
            self.streams.discard(replies)

    async def _read(self, requests: Any, replies: asyncio.Queue[Any]) -> None:
        handles: dict[int, Held] = {}
        async for request in requests:
            reply = self._answer(request, handles)
            await self.answering.wait()
            if reply.ByteSize():
                replies.put_nowait(reply)

    def drop_streams(self, why: status_pb2.Status | None = None) -> None:
        """Breaks every connection's stream."""
        for replies in self.streams:
            replies.put_nowait(why)

    def _answer(self, request: pb.StreamRequest, handles: dict[int, Held]) -> pb.StreamResponse:
        kind = request.WhichOneof("frame") or ""
        self.frames.append(kind)
        response = pb.StreamResponse()
        handler = self._close_frame if kind == "close" else getattr(self, f"_{kind}")
        handler(getattr(request, kind), handles, response)
        for group in (response.observed, response.peeked, response.rewound):
            for predictions in group:
                if self.durability != pb.DURABILITY_NONE:
                    predictions.durable_steps = self._durable(_handles(predictions), handles)
        return response

    def _durable(self, numbers: list[int], handles: dict[int, Held]) -> bytes:
        return np.array([handles[handle].durable for handle in numbers], "<u8").tobytes()

    def _open(self, open: pb.Open, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        opened: list[tuple[int, Held]] = []
        for i, (handle, id) in enumerate(zip(_handles(open), open.session_ids, strict=True)):
            held: Held | status_pb2.Status
            if self.open_refusals:
                held = self.open_refusals.pop(0)
            elif open.mode == pb.OPEN_MODE_RESTORE:
                held = self._restore(open.snapshots[i], id)
            elif open.mode == pb.OPEN_MODE_RESUME:
                missing = status(self.ended.get(id, "SESSION_NOT_FOUND"), code_pb2.NOT_FOUND)
                held = self.sessions.get(id, missing)
            elif id in self.sessions:
                held = status("SESSION_EXISTS", code_pb2.ALREADY_EXISTS)
            else:
                version = open.version or MODELS[open.model].version
                held = Held(id or f"made-{next(self.ids)}", open.model, version, labels=dict(open.labels))
                self.sessions[held.id] = held
            if isinstance(held, status_pb2.Status):
                response.faults.append(pb.Fault(handle=handle, status=held))
                continue
            handles[handle] = held
            opened.append((handle, held))
        self._opened(opened, response, open.idle_timeout.seconds)

    def _opened(self, opened: list[tuple[int, Held]], response: pb.StreamResponse, lease: int = 0) -> None:
        for handle, held in opened:
            message = response.opened.add(
                handles=np.array([handle], "<u4").tobytes(),
                session_ids=[held.id],
                steps=np.array([held.step], "<u8").tobytes(),
                rewinds=np.array([held.rewinds], "<u4").tobytes(),
                model=held.model,
                version=held.version,
                durability=self.durability,
                rewind_limit=self.rewind_limit,
            )
            message.idle_timeout.seconds = lease or 600
            if self.durability != pb.DURABILITY_NONE:
                message.durable_steps = np.array([held.durable], "<u8").tobytes()

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
                held.apply(x, self.rewind_limit)
                held.used = time.time()
                self._tell(held)
                if self.durability == pb.DURABILITY_EVERY_STEP:
                    self._store(held)
            rows.append((handle, step, Held(held.id, held.model, step=held.step, total=held.total)))
        if rows:
            for model in {held.model for _, _, held in rows}:
                response.observed.append(_predictions([row for row in rows if row[2].model == model]))

    def _tell(self, held: Held) -> None:
        for states in self.watchers.get(held.id, ()):
            states.put_nowait(copy.deepcopy(held))

    def _peek(self, peek: pb.Peek, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        for handle in self._asked(peek, handles, response):
            response.peeked.append(_predictions([(handle, handles[handle].step, handles[handle])]))

    def _asked(self, message: Any, handles: dict[int, Held], response: pb.StreamResponse) -> list[int]:
        """Handles of what is asked and not refused."""
        asked = []
        for handle in _handles(message):
            if self.question_refusals:
                response.faults.append(pb.Fault(handle=handle, status=self.question_refusals.pop(0)))
            elif handles[handle].id not in self.sessions:
                gone = status(self.ended[handles[handle].id], code_pb2.NOT_FOUND)
                response.faults.append(pb.Fault(handle=handle, status=gone))
            else:
                asked.append(handle)
        return asked

    def _close_frame(self, close: pb.Close, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        response.closed = close.handles
        for handle in _handles(close):
            self._close(handles.pop(handle))

    def _heartbeat(self, heartbeat: pb.Heartbeat, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        response.leases.handles = heartbeat.handles
        if self.durability != pb.DURABILITY_NONE:
            response.leases.durable_steps = self._durable(_handles(heartbeat), handles)

    def _rewind(self, rewind: pb.Rewind, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        steps = np.frombuffer(rewind.steps, "<u8").tolist()
        numbers = np.frombuffer(rewind.numbers, "<u4").tolist()
        allowed = self._asked(rewind, handles, response)
        for handle, step, number in zip(_handles(rewind), steps, numbers, strict=True):
            if handle not in allowed:
                continue
            held = handles[handle]
            if number > held.rewinds and step < held.oldest:
                refusal = status("REWIND_LIMIT", code_pb2.OUT_OF_RANGE, oldest=str(held.oldest))
                response.faults.append(pb.Fault(handle=handle, status=refusal))
                continue
            if number > held.rewinds:
                held.rewind(step)
                held.rewinds = number
                self._tell(held)
            response.rewound.append(_predictions([(handle, held.step, held)]))

    def _fork(self, fork: pb.Fork, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        made = []
        new = np.frombuffer(fork.new_handles, "<u4").tolist()
        for handle, new_handle in zip(_handles(fork), new, strict=True):
            if self.question_refusals:
                response.faults.append(pb.Fault(handle=new_handle, status=self.question_refusals.pop(0)))
            else:
                made.append((new_handle, self._copy(handles[handle])))
        handles.update(made)
        self._opened(made, response)

    def _export(self, export: pb.Export, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        for handle in self._asked(export, handles, response):
            held = handles[handle]
            response.exported.add(handle=handle, step=held.step, snapshot=_snapshot(held))

    def _rewarm(self, rewarm: pb.Rewarm, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        asked = self._asked(rewarm, handles, response)
        for handle in asked:
            handles[handle].version = rewarm.version or "2"
        self._opened([(handle, handles[handle]) for handle in asked], response)

    def _generate(self, generate: pb.Generate, handles: dict[int, Held], response: pb.StreamResponse) -> None:
        """Token or value i is the sum of the session and the seed, and i; in pieces of three."""
        self.generating.append(generate)
        held = handles[generate.handle]
        if self.question_refusals:
            refusal = self.question_refusals.pop(0)
            response.faults.append(pb.Fault(handle=generate.handle, status=refusal, call=generate.call))
            return
        start = int(held.total) + generate.seed
        items = np.arange(start, start + generate.count)
        stops = np.flatnonzero(np.isin(items % len(WORDS), list(generate.stop_tokens)))
        items = items[: stops[0] + 1] if stops.size else items
        pieces = [items[i : i + 3] for i in range(0, len(items), 3)][: self.pieces]
        for piece in pieces:
            generated = response.generated.add(handle=generate.handle, call=generate.call)
            if held.model == "words":
                generated.tokens = (piece % len(WORDS)).astype("<i4").tobytes()
                generated.probabilities = np.full(len(piece), 0.5, "<f4").tobytes()
            else:
                inner = len(generate.quantiles) or generate.paths or 1
                targets = len(MODELS[held.model].values.targets)
                grid = piece[:, None, None] + np.arange(inner)[:, None] / 10 + np.arange(targets) / 100
                generated.values = grid.astype("<f8").tobytes()
        if len(pieces) < self.pieces:
            response.generated[-1].done = True

    def _cancel_generate(
        self, cancel: pb.CancelGenerate, handles: dict[int, Held], response: pb.StreamResponse
    ) -> None:
        self.cancelled.append(cancel.call)
        response.generated.add(call=cancel.call, done=True)


def _snapshot(held: Held) -> bytes:
    return b"snapshot:" + json.dumps(vars(held)).encode()


async def _abort(context: Any, rich: status_pb2.Status) -> None:
    code = next(code for code in grpc.StatusCode if code.value[0] == rich.code)
    await context.abort(code, rich.message, (("grpc-status-details-bin", rich.SerializeToString()),))


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
    """Serves in a process of its own, on the port told, and prints it."""
    serving = Serving(Fake(pb.DURABILITY_BEHIND, rewind_limit=64))
    serving.port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    await serving.start()
    print(serving.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
