"""Everything one process serves: its models, streams and sessions, and what frames do to them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.generation.generating import Generating
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import InputArray, RowArray, Runtime
from hiddenstate_server.sessions import residence, rewarming
from hiddenstate_server.sessions.forking import begin_forks, fork
from hiddenstate_server.sessions.integrity import checks
from hiddenstate_server.sessions.ledger import Ledger
from hiddenstate_server.sessions.opening import open_sessions
from hiddenstate_server.sessions.residence import Known
from hiddenstate_server.sessions.snapshots import Sealer
from hiddenstate_server.sessions.transfers import export
from hiddenstate_server.stepping import frames
from hiddenstate_server.stepping.directory import Directory, Ended, Place, id_of, tenant_of
from hiddenstate_server.stepping.model import Backlogs, ModelInfo, ServedModel
from hiddenstate_server.stepping.scheduler import CLOSE, EXPORT, FORK, GENERATE, REWARM, WORDS, Batch
from hiddenstate_server.stepping.singles import SingleFrame
from hiddenstate_server.stepping.streams import AWAY, RESERVED, Stream
from hiddenstate_server.stepping.watching import Watching

_EXPORTS_AT_ONCE = 1024

log = structlog.get_logger("hiddenstate_server.stepping.directory")


class Host:
    """Applies frames to sessions, ticks the models, ends what has expired. Knows no transport."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
        snapshot_key: bytes | None = None,
    ) -> None:
        """Without a key for snapshots there is one that nobody else has."""
        self.limits = limits
        self.metrics = metrics
        self.clock = clock
        self.ledger = ledger
        """None where no store is kept."""
        self.wall_offset = time.time_ns() - round(clock() * 1e9)
        """Nanoseconds since 1970 at the clock's zero."""
        self.models: list[ServedModel] = []
        self._slots: dict[int, ServedModel] = {}
        self.directory = Directory(self._model_of)
        self._known = Known()
        self.streams: dict[int, Stream] = {}
        self.generating = Generating(limits, metrics)
        self.watching = Watching()
        self.sealer = Sealer(os.urandom(32) if snapshot_key is None else snapshot_key)
        self.draining = False
        self._deserted: asyncio.Event | None = None
        self._last_stream = 0
        self._last_slot = -1
        # A frame's sessions have rows while they are at work, even if the arena is full; they leave soon after.
        self._model_rows = limits.max_sessions + (0 if ledger is None else limits.max_frame_rows)

    @property
    def durability(self) -> pb.Durability.ValueType:
        """What is promised."""
        if self.ledger is None:
            return pb.DURABILITY_NONE
        return pb.DURABILITY_EVERY_STEP if self.ledger.every_step else pb.DURABILITY_BEHIND

    @property
    def wall_seconds(self) -> float:
        """Seconds since 1970 at the clock's zero."""
        return self.wall_offset / 1e9

    # what is served

    def add_model(self, info: ModelInfo, runtime: Runtime, max_batch: int, max_run: int = 0) -> ServedModel:
        """Starts serving a model, with runs of up to `max_run` observations of a session."""
        # No slot is used twice, so a row that outlived its model leads nowhere.
        self._last_slot += 1
        model = ServedModel(
            info,
            runtime,
            capacity=self._model_rows,
            max_batch=max_batch,
            max_run=max_run,
            base=self._last_slot * self._model_rows,
            rewind_steps=self.limits.rewind_steps,
            streams=self.streams,
            watching=self.watching,
            backlogs=Backlogs(self.limits.max_session_backlog, self.limits.max_stream_backlog),
            metrics=self.metrics.model(info.name, info.version, info.task, runtime.description),
            stored="not" if self.ledger is None else "every-step" if self.ledger.every_step else "behind",
        )
        model.on(CLOSE, partial(self._finish_closing, model))
        model.on(GENERATE, partial(self.generating.begin, model))
        model.on(EXPORT, partial(export, self, model))
        model.on(FORK, partial(fork, self, model))
        model.on(REWARM, partial(rewarming.act, self, model))
        if self.ledger is not None:
            # Sessions that others have left in the store; none of them is known here.
            model.stored_until = self.clock() + self.limits.max_idle_timeout
        self._slots[self._last_slot] = model
        self.models.append(model)
        return model

    def model(self, name: str, version: str = "", *, retired: bool = False) -> ServedModel:
        """The model of this name and version, the newest if empty; ModelNotFound.

        With `retired`, it may be one that takes no new sessions, if there is no other.
        """
        offered = [model for model in self.models if retired or not model.retired]
        found = [model for model in offered if model.info.name == name and version in ("", model.info.version)]
        if not found:
            available = ", ".join(str(model.info) for model in self.models if not model.retired)
            wanted = f"{name}/{version}" if version else name
            raise errors.ModelNotFound(
                f"no model {wanted!r} is served; there is {available or 'none'}", available=available
            )
        return max(found, key=lambda model: (not model.retired, int(model.info.version)))

    def unload_retired(self) -> None:
        """Lets go of retired models without sessions."""
        for model in [model for model in self.models if model.retired and not self._has_sessions(model)]:
            model.give_up_twins(model.arena.used)
            self.models.remove(model)
            del self._slots[model.base // self._model_rows]
            model.unload()
            log.info("model unloaded", model=model.info.name, version=model.info.version)

    def _has_sessions(self, model: ServedModel) -> bool:
        """Whether a session of the model may be anywhere."""
        if model.sessions:
            return True
        ends = [stream.away.ends(model.base) for stream in self.streams.values() if stream.away]
        return max(model.stored_until, *ends, -np.inf) > self.clock()

    # streams

    def connect(self, tenant: str = "") -> Stream:
        """A new stream of a tenant, without sessions."""
        self._last_stream += 1
        stream = Stream(
            self._last_stream,
            tenant,
            self.limits.max_sessions_per_stream,
            max_unsent=self.limits.max_frame_rows,
            held=None if self.ledger is None else self.ledger.held,
        )
        self.streams[stream.number] = stream
        return stream

    def disconnect(self, stream: Stream) -> None:
        """Drops what is queued for the stream and leaves its sessions to be resumed."""
        now = self.clock()
        for model, rows in self._by_model(stream.rows()):
            model.drop(rows)
            model.table.detach(rows, now)
        self.generating.disconnect(stream)
        if self.ledger is not None:
            for _, key in stream.away:
                self.ledger.let_go(key)
            for model in self.models if stream.away else ():
                model.stored_until = max(model.stored_until, stream.away.ends(model.base))
            self.ledger.hurry()
        del self.streams[stream.number]
        if self._deserted is not None and not self.streams:
            self._deserted.set()

    def abandon(self) -> None:
        """Drops everything queued."""
        for model in self.models:
            model.drop(np.flatnonzero(model.scheduler.pending))

    async def deserted(self) -> None:
        """Waits until no stream is left."""
        if self.streams:
            self._deserted = asyncio.Event()
            await self._deserted.wait()

    # frames

    def receive(self, stream: Stream, request: pb.StreamRequest, known: Known | None = None) -> None:
        """Does what a frame asks for; what is wrong becomes faults on the stream.

        `known` says what other processes, and the store, know of the keys in it. Raises NeedsStore, or NeedsRoom,
        before anything is done.
        """
        self._known = known or Known()
        try:
            match request.WhichOneof("frame"):
                case "observe":
                    self._observe(stream, request.observe)
                case "peek":
                    self._peek(stream, request.peek)
                case "close":
                    self._close(stream, request.close)
                case "heartbeat":
                    self._heartbeat(stream, request.heartbeat)
                case "generate":
                    self._generate(stream, request.generate)
                case "cancel_generate":
                    self.generating.cancel(stream, request.cancel_generate.call)
                case "open":
                    open_sessions(self, stream, request.open, self._known)
                case "export":
                    self._export(stream, request.export)
                case "fork":
                    begin_forks(self, stream, request.fork)
                case "rewind":
                    self._rewind(stream, request.rewind)
                case "rewarm":
                    self._rewarm(stream, request.rewarm)
                case _:
                    raise errors.FrameInvalid("the frame is empty, or of a newer client; set one of its fields")
        except errors.ServerError as error:
            self._refuse(stream, error)

    def receive_single(self, stream: Stream, data: bytes) -> bool:
        """Queues the observation of a frame of one row, without any arrays; False where only `receive` will do."""
        frame = SingleFrame.read(data)
        row = -1 if frame is None else stream.row_of(frame.handle)
        if frame is None or row < 0:
            return False
        model = self._model_of(row)
        if not model.observe_one(stream, row - model.base, frame, self.clock()):
            return False
        self.metrics.frame(1)
        return True

    def _observe(self, stream: Stream, observe: pb.Observe) -> None:
        handles = frames.handles_of(observe.handles, self.limits.max_frame_rows)
        count = len(handles)
        self.metrics.frame(count)
        steps = frames.steps_of(observe.steps, count)
        inputs: InputArray | list[str]
        match observe.WhichOneof("input"):
            case "tokens":
                inputs = frames.tokens_of(observe.tokens, count)
            case "values":
                inputs = frames.values_of(observe.values, count)
            case "words":
                inputs = list(observe.words.words)
                if len(inputs) != count:
                    raise errors.FrameInvalid(f"{len(inputs)} words for {count} handles; send one word per handle")
            case _:
                raise errors.FrameInvalid("the observations are missing; set tokens, values or words")
        now = self.clock()
        for model, rows, positions in self._located(stream, handles, steps):
            column = inputs
            if positions is not None:
                steps_here = None if steps is None else steps[positions]
                column = [inputs[i] for i in positions] if isinstance(inputs, list) else inputs[positions]
            else:
                steps_here = steps
            self._observe_model(stream, model, rows, steps_here, column, now)

    def _observe_model(
        self,
        stream: Stream,
        model: ServedModel,
        rows: RowArray,
        steps: RowArray | None,
        inputs: InputArray | list[str],
        now: float,
    ) -> None:
        wrong = model.info.wrong_kind(inputs)
        if wrong is not None:
            refused = model.table.accepted[rows] + 1 if steps is None else np.maximum(steps, 0)
            for handle, step in zip(model.table.handle[rows].tolist(), refused.tolist(), strict=True):
                self._refuse(stream, wrong, handle, step)
        elif isinstance(inputs, list):
            assert model.info.text is not None
            model.observe(stream, rows, steps, model.info.text.tokens(inputs), WORDS, now)
        else:
            model.observe(stream, rows, steps, inputs, 0, now)

    def _peek(self, stream: Stream, peek: pb.Peek) -> None:
        handles = frames.handles_of(peek.handles, self.limits.max_frame_rows)
        for model, rows, _ in self._located(stream, handles, None):
            model.peek(stream, rows, peek.with_words, self.clock())

    def _close(self, stream: Stream, close: pb.Close) -> None:
        handles = frames.handles_of(close.handles, self.limits.max_frame_rows)
        for model, rows, _ in self._located(stream, handles, None):
            model.close(stream, rows, self.clock())

    def _export(self, stream: Stream, export: pb.Export) -> None:
        handles = frames.handles_of(export.handles, min(_EXPORTS_AT_ONCE, self.limits.max_frame_rows))
        for model, rows, _ in self._located(stream, handles, None):
            model.export(stream, rows, self.clock())

    def _rewind(self, stream: Stream, rewind: pb.Rewind) -> None:
        handles = frames.handles_of(rewind.handles, self.limits.max_frame_rows)
        steps = frames.steps_of(rewind.steps, len(handles))
        if steps is None:
            raise errors.FrameInvalid("the steps to go back to are missing; send one per handle")
        numbers = frames.numbers_of(rewind.numbers, len(handles))
        for model, rows, positions in self._located(stream, handles, None):
            at = slice(None) if positions is None else positions
            here = None if numbers is None else numbers[at]
            model.rewind(stream, rows, steps[at], here, rewind.with_words, self.clock())

    def _generate(self, stream: Stream, generate: pb.Generate) -> None:
        if generate.call in stream.continuations:
            raise errors.InputInvalid(f"call {generate.call} is under way on this stream; choose another number")
        try:
            if self.draining:
                raise errors.Draining("the server is going away; ask another one")
            self.bring_back(stream, np.array([generate.handle], np.uint32))
            model, row = self.place(stream, generate.handle)
            self.generating.accept(stream, model, row, generate, self.clock())
        except errors.ServerError as error:
            self.metrics.fault(error)
            stream.fault(error, generate.handle, call=generate.call)

    def _rewarm(self, stream: Stream, rewarm: pb.Rewarm) -> None:
        handles = frames.handles_of(rewarm.handles, self.limits.max_frame_rows)
        for model, rows, _ in self._located(stream, handles, None):
            rewarming.accept(stream, model, rows, rewarm.version, self.clock())

    def _heartbeat(self, stream: Stream, heartbeat: pb.Heartbeat) -> None:
        if heartbeat.handles:
            handles = frames.handles_of(heartbeat.handles, self.limits.max_frame_rows)
        else:
            handles = stream.bound_handles().astype(np.uint32)
        renewed = []
        durable = []
        if len(stream.away):
            handles, *away = self._renew_away(stream, handles, everything=not heartbeat.handles)
            renewed.append(away[0])
            durable.append(away[1])
        for model, rows, _ in self._located(stream, handles, None) if len(handles) else ():
            model.table.last_use[rows] = self.clock()
            renewed.append(frames.handle_bytes(model.table.handle[rows]))
            durable.append(frames.step_bytes(model.table.durable[rows]))
        stream.leases(b"".join(renewed), b"" if self.ledger is None else b"".join(durable))

    def _renew_away(
        self, stream: Stream, handles: NDArray[np.uint32], everything: bool
    ) -> tuple[NDArray[np.uint32], bytes, bytes]:
        """Renews leases of sessions without rows: the other handles, those renewed, and how far they are durable."""
        is_away = stream.lookup(handles) == AWAY
        away = stream.away.handles() if everything else handles[is_away]
        stream.away.used[away] = self.clock()
        return handles[~is_away], frames.handle_bytes(away), frames.step_bytes(stream.away.durable[away])

    def _located(
        self, stream: Stream, handles: NDArray[np.uint32], steps: RowArray | None
    ) -> Iterable[tuple[ServedModel, RowArray, RowArray | None]]:
        """Models with their rows and the rows' positions in the frame (None: all of it).

        Handles without a live session become faults.
        """
        rows = stream.lookup(handles)
        first = rows.item(0)
        if first >= 0:
            model = self._model_of(first)
            local = rows - model.base
            if len(rows) == 1 or (int(local.min()) >= 0 and int(local.max()) < model.capacity):
                return [(model, local, None)]
        self.bring_back(stream, handles)
        rows = stream.lookup(handles)
        for position in np.flatnonzero(rows < 0).tolist():
            step = 0 if steps is None else max(0, int(steps[position]))
            self._refuse(stream, self._no_session(stream, handles.item(position)), handles.item(position), step)
        located = []
        for model in self.models:
            positions = np.flatnonzero((rows >= model.base) & (rows < model.base + model.capacity))
            if len(positions):
                located.append((model, rows[positions] - model.base, positions))
        return located

    def bring_back(self, stream: Stream, handles: NDArray[np.uint32]) -> None:
        """Gives rows to the sessions of these handles that have none, where that is possible.

        Raises NeedsStore or NeedsRoom before anything is done.
        """
        rows = stream.lookup(handles)
        if self.ledger is not None and (rows == AWAY).any():
            residence.bring_back(self, stream, handles, rows, self._known)

    def place(self, stream: Stream, handle: int) -> Place:
        """The session of a stream's handle; how it left, or HandleUnknown, if there is none."""
        row = stream.row_of(handle)
        if row < 0:
            raise self._no_session(stream, handle)
        model = self._model_of(row)
        return Place(model, row - model.base)

    def when_durable(self, model: ServedModel, rows: RowArray, then: Callable[[], None]) -> None:
        """Calls `then` when new sessions are as safe as the durability promises."""
        if self.ledger is None:
            then()
        else:
            self.ledger.when_durable([model.table.keys[row] for row in rows.tolist()], then)

    def _no_session(self, stream: Stream, handle: int) -> errors.ServerError:
        code = stream.row_of(handle)
        if code == AWAY:
            return self._known.refusals.get(stream.away.key(handle)) or errors.StoreUnavailable(
                "the session cannot be brought back now; try again"
            )
        if code in _ENDINGS:
            return Ended(code).error()
        if code == RESERVED:
            return errors.HandleUnknown("the handle's session is on its way; wait until it is opened")
        return errors.HandleUnknown("the handle is not open on this stream; open a session with it first")

    def _model_of(self, row: int) -> ServedModel:
        return self._slots[row // self._model_rows]

    def _by_model(self, rows: RowArray) -> Iterable[tuple[ServedModel, RowArray]]:
        for model in self.models:
            local = rows[(rows >= model.base) & (rows < model.base + model.capacity)] - model.base
            if len(local):
                yield model, local

    def _refuse(self, stream: Stream, error: errors.ServerError, handle: int | None = None, step: int = 0) -> None:
        self.metrics.fault(error)
        stream.fault(error, handle, step)

    # ticking

    @property
    def ready(self) -> bool:
        """Whether a tick would find work."""
        return any(model.scheduler.ready for model in self.models) or self.generating.ready

    @property
    def running(self) -> bool:
        """Whether every other tick goes on with much of one session, which takes a tick's time for it alone."""
        return any(model.running and model.scheduler.ready for model in self.models)

    def tick(self) -> None:
        """One step or run of every model that has work, then one of what is being generated."""
        for model in self.models:
            if model.scheduler.ready:
                model.tick(self.clock())
        self.generating.turn()

    def _finish_closing(self, model: ServedModel, batch: Batch, _now: float) -> None:
        rows = batch.rows
        numbers = model.table.stream[rows]
        for number in np.unique(numbers).tolist():
            self.streams[number].closed(frames.handle_bytes(model.table.handle[rows[numbers == number]]))
        self.end(model, rows, Ended.CLOSED)

    # endings

    def close_now(self, model: ServedModel, rows: RowArray) -> None:
        """Ends sessions whatever they have queued; holders are told."""
        error = Ended.CLOSED.error()
        model.drop(rows, error)
        for row in rows[model.table.stream[rows] >= 0].tolist():
            stream, handle = self.streams[int(model.table.stream[row])], int(model.table.handle[row])
            if stream.held is not None:
                # The handle may be another session's by the time they would be sent.
                stream.held.drop(stream, handle)
            self._refuse(stream, error, handle)
        self.end(model, rows, Ended.CLOSED)

    def expire(self) -> None:
        """Ends sessions whose lease or detach time-out has run out; holders are told."""
        now = self.clock()
        for model in self.models:
            rows, deserted = model.table.expired(now), model.table.deserted(now, self.limits.detach_timeout)
            if self.ledger is None:
                rows = np.union1d(rows, deserted)
            rows = rows[model.scheduler.pending[rows] == 0]
            if len(rows):
                for row in rows[model.table.stream[rows] >= 0].tolist():
                    stream = self.streams[int(model.table.stream[row])]
                    self._refuse(stream, Ended.EXPIRED.error(), int(model.table.handle[row]))
                self.end(model, rows, Ended.EXPIRED)
            if self.ledger is not None:
                residence.park(self, model, deserted[np.isfinite(model.table.detached_at[deserted])])
                residence.make_room(self, model, 0)
        if self.ledger is not None:
            residence.expire_away(self)

    def end(self, model: ServedModel, rows: RowArray, ending: Ended) -> None:
        """Forgets sessions with nothing queued, remembers how they ended, zeroes and frees their rows."""
        table, reason, now = model.table, ending.name.lower(), time.time_ns()
        if self.ledger is not None:
            residence.record_ends(self, model, rows, ending)
        for row in rows.tolist():
            stream = self.streams.get(int(table.stream[row]))
            if stream is not None:
                stream.unbind(int(table.handle[row]), ending)
            self.directory.remove(table.keys[row], ending)
            self.watching.end(table.keys[row], ending.error())
            log.info(
                "session ended",
                session=id_of(table.keys[row]),
                tenant=tenant_of(table.keys[row]),
                model=model.info.name,
                version=model.info.version,
                reason=reason,
                steps=int(table.applied[row]),
                seconds=round((now - int(table.created[row])) / 1e9, 3),
            )
        model.release(rows)
        model.metrics.ended(reason, len(rows))

    def flush_metrics(self) -> None:
        """Brings what gathered since the last time to Prometheus."""
        self.metrics.flush()
        self.metrics.generating.set(self.generating.active)
        for model in self.models:
            used = model.arena.used
            model.metrics.flush(model.sessions, used, max(0, self.limits.max_sessions - used))
        if self.ledger is not None:
            arena, memory = sum(model.sessions for model in self.models), self.ledger.packed
            lag = self.ledger.lag(self.models, self.clock())
            self.metrics.store.flush({"arena": arena, "memory": memory}, self.ledger.stored, *lag)

    def check_integrity(self) -> None:
        """Raises AssertionError unless models, streams and keys agree."""
        for _ in checks(self):
            pass


_ENDINGS: Sequence[int] = tuple(ending.value for ending in Ended)
