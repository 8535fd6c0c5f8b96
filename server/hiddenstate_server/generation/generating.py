"""Free-running continuations: what may be asked for, and whose turn it is.

A continuation starts when it is reached in its session's chain, with a copy of the session's state, and never touches
the session again. Between two ticks one batched step is made for those whose turn it is; those whose stream does
not read fast enough wait.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, cast

import numpy as np

from hiddenstate_models.bundle import Task
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.generation.continuations import (
    Asked,
    Continuation,
    NoteContinuation,
    ValueContinuation,
    WordContinuation,
)
from hiddenstate_server.generation.sampling import WordSampling
from hiddenstate_server.limits import Limits
from hiddenstate_server.runtimes import FloatArray, WordRuntime, each_column
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.scheduler import GENERATE, Batch
from hiddenstate_server.stepping.streams import Stream

if TYPE_CHECKING:
    from hiddenstate_server.metrics import Metrics

log = logging.getLogger(__name__)

UNSENT_BYTES = 1 << 16
"""A continuation waits while its stream has not taken this much of it."""
_LARGEST_TEMPERATURE = 100.0
_PATHS_FOR_QUANTILES = 256


class Generating:
    """All continuations of one process."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called when there is work again without anything having been received."""
        self._limits = limits
        self._metrics = metrics
        self._running: deque[Continuation] = deque()
        self._stalled: set[Continuation] = set()
        self._asked_for: Mapping[Task, Callable[[Asked, pb.Generate], Continuation]] = {
            "next-word": self._words,
            "next-value": self._values,
            "music": self._notes,
            "forecasting": self._values,
        }
        # Of those too whose turn in the session's chain has not come.
        self._rows = 0

    @property
    def ready(self) -> bool:
        """Whether a turn would find work."""
        return bool(self._running)

    @property
    def active(self) -> int:
        """Continuations that have started."""
        return len(self._running) + len(self._stalled)

    # frames in

    def accept(self, stream: Stream, model: ServedModel, row: int, frame: pb.Generate, now: float) -> None:
        """Queues a continuation behind what the session has; a ServerError where it cannot be."""
        model.check_open(stream, row)
        asked = Asked(stream, model, frame.handle, frame.call)
        if model.info.task not in self._asked_for:
            raise errors.InputInvalid(
                f"{model.info.name} labels what it reads and goes on with nothing; do not generate"
            )
        continuation = self._asked_for[model.info.task](asked, frame)
        self._check_room(stream, continuation.rows)
        self._rows += continuation.rows
        stream.continuations[frame.call] = continuation
        stream.backlog += 1
        model.scheduler.add(np.array([row]), None, GENERATE, now, arguments=[continuation])

    def cancel(self, stream: Stream, call: int) -> None:
        """Has a continuation be done, if there is one of this number; one that has not started yet, when it would."""
        continuation = stream.continuations.get(call)
        if continuation is not None:
            continuation.left = 0
            if continuation.started:
                self._finish(continuation)

    def _words(self, asked: Asked, frame: pb.Generate) -> WordContinuation:
        info = asked.model.info
        assert info.text is not None
        if frame.paths or frame.quantiles:
            raise errors.InputInvalid(f"{info.name} predicts words; leave paths and quantiles out")
        top_p = frame.top_p if frame.HasField("top_p") else 1.0
        if not 0 < top_p <= 1:
            raise errors.InputInvalid(f"top_p is {top_p:g}; ask for one above 0 and at most 1")
        last = len(info.text.vocabulary) - 1
        if any(token > last for token in frame.stop_tokens):
            raise errors.InputInvalid(f"a stop token is outside the vocabulary; send 0 to {last}")
        return WordContinuation(
            asked,
            self,
            count=self._count(frame),
            seed=_seed(frame),
            sampling=WordSampling(_temperature(frame), frame.top_k, top_p),
            stop=frame.stop_tokens,
            vocabulary=info.text.vocabulary if frame.with_words else (),
        )

    def _values(self, asked: Asked, frame: pb.Generate) -> ValueContinuation:
        info, most = asked.model.info, self._limits.max_generate_paths
        if _words_only(frame):
            raise errors.InputInvalid(f"{info.name} predicts values; leave top_k, top_p and stop_tokens out")
        if set(info.targets) != set(range(len(info.columns))):
            raise errors.InputInvalid(
                f"{info.name} does not predict all of its columns, so it cannot run free; send observations"
            )
        if not all(0 < quantile < 1 for quantile in frame.quantiles) or len(frame.quantiles) > most:
            raise errors.InputInvalid(f"ask for up to {most} quantiles, each above 0 and below 1")
        paths = frame.paths or (min(_PATHS_FOR_QUANTILES, most) if frame.quantiles else 1)
        if paths > most:
            raise errors.InputInvalid(f"{paths} paths are asked for, the limit is {most}")
        return ValueContinuation(
            asked,
            self,
            count=self._count(frame),
            seed=_seed(frame),
            paths=paths,
            temperature=_temperature(frame),
            quantiles=frame.quantiles[:],
        )

    def _notes(self, asked: Asked, frame: pb.Generate) -> NoteContinuation:
        if _words_only(frame) or frame.paths or frame.quantiles:
            raise errors.InputInvalid(
                f"{asked.model.info.name} predicts notes; leave everything but count, temperature and seed out"
            )
        return NoteContinuation(
            asked, self, count=self._count(frame), seed=_seed(frame), temperature=_temperature(frame)
        )

    def _count(self, frame: pb.Generate) -> int:
        most = self._limits.max_generate_steps
        if not 1 <= frame.count <= most:
            raise errors.InputInvalid(f"{frame.count} steps are asked for; ask for 1 to {most}")
        return frame.count

    def _check_room(self, stream: Stream, rows: int) -> None:
        limits = self._limits
        if len(stream.continuations) >= limits.max_generates_per_stream:
            raise errors.GenerationLimit(
                f"{len(stream.continuations)} continuations are under way on the stream; wait for one to be done",
                limit=limits.max_generates_per_stream,
            )
        if self._rows + rows > limits.max_generate_rows:
            raise errors.GenerationLimit(
                f"{self._rows} rows are being generated, the limit is {limits.max_generate_rows}; try again later",
                limit=limits.max_generate_rows,
            )

    # their turn

    def begin(self, model: ServedModel, batch: Batch, _now: float) -> None:
        """Starts continuations that have been reached in their sessions' chains."""
        for row in batch.rows.tolist():
            continuation: Continuation = batch.arguments[row]
            rows = np.array([row])
            try:
                continuation.start(model.engine.last(rows), model.arena.states[rows])
            except errors.ServerError as error:
                self.fail(continuation, error)
                continue
            self._go_on(continuation)

    def turn(self) -> None:
        """One batched step of one model, for continuations in turn."""
        if not self._running:
            return
        model = self._running[0].model
        batch = self._next_batch(model)
        try:
            self._draw(model, [each for each in batch if not each.fed])
            self._step(model, [each for each in batch if each.left or each.fed])
        except Exception:
            log.exception("a continuation of %s failed", model.info.name)
            for continuation in batch:
                self.fail(continuation, errors.InternalError("the step failed; the server's log has the details"))
            return
        for continuation in batch:
            self._go_on(continuation)

    def _go_on(self, continuation: Continuation) -> None:
        """Ends it if it is done, else queues it for another turn, or lets it wait for its stream."""
        if continuation.left == 0 and not continuation.fed:
            self._finish(continuation)
        elif continuation.unsent < UNSENT_BYTES:
            self._running.append(continuation)
        else:
            self._stalled.add(continuation)

    def taken(self, continuation: Continuation) -> None:
        """The stream has taken what there was to send, so one that waited for that goes on."""
        if continuation in self._stalled:
            self._stalled.remove(continuation)
            self._running.append(continuation)
            self.wake()

    def _next_batch(self, model: ServedModel) -> list[Continuation]:
        """Takes continuations of a model out of the queue, as many as make about one ordinary step."""
        batch: list[Continuation] = []
        kept: list[Continuation] = []
        room = model.engine.max_batch
        while self._running and room > 0:
            continuation = self._running.popleft()
            if continuation.model is not model:
                kept.append(continuation)
                continue
            batch.append(continuation)
            room -= continuation.turn_cost * (continuation.rows - continuation.fed)
        self._running.extendleft(reversed(kept))
        return batch

    def _draw(self, model: ServedModel, batch: list[Continuation]) -> None:
        readers = [each for each in batch if each.reads_state]
        found: Mapping[Continuation, FloatArray] = {}
        if readers:
            runtime = cast(WordRuntime, model.runtime)
            read = runtime.log_probabilities(np.concatenate([each.states for each in readers]))
            found = dict(zip(readers, read, strict=True))
        for each in batch:
            each.draw(found.get(each))
            each.stream.flow(each)
        model.metrics.generated(sum(each.rows for each in batch))

    def _step(self, model: ServedModel, batch: list[Continuation]) -> None:
        room = model.engine.max_batch
        parts: list[tuple[Continuation, slice]] = []
        for continuation in batch:
            start, stop = continuation.fed, min(continuation.rows, continuation.fed + room)
            parts.append((continuation, slice(start, stop)))
            room -= stop - start
        if not parts:
            return
        outputs, states = model.runtime.step(
            np.concatenate([each.inputs[part] for each, part in parts]),
            np.concatenate([each.states[part] for each, part in parts]),
        )
        start = 0
        for continuation, part in parts:
            own = slice(start, start + part.stop - part.start)
            continuation.stepped(each_column(outputs, itemgetter(own)), states[own])
            start = own.stop

    # endings

    def _finish(self, continuation: Continuation) -> None:
        """Has its last piece sent."""
        self._forget(continuation)
        continuation.stream.flow(continuation)

    def fail(self, continuation: Continuation, error: errors.ServerError) -> None:
        """Ends a continuation with a fault, and what is not sent of it with it."""
        stream = continuation.stream
        self._forget(continuation)
        stream.stop_flow(continuation)
        # What has not started is still the scheduler's, which does this for all it drops.
        if continuation.started:
            stream.backlog -= 1
        self._metrics.fault(error)
        stream.fault(error, continuation.handle, call=continuation.call)

    def _forget(self, continuation: Continuation) -> None:
        del continuation.stream.continuations[continuation.call]
        self._rows -= continuation.rows
        self._stalled.discard(continuation)
        if continuation in self._running:
            self._running.remove(continuation)

    def disconnect(self, stream: Stream) -> None:
        """Forgets the continuations of a stream that is gone."""
        for continuation in list(stream.continuations.values()):
            self._forget(continuation)

    def drain(self, streams: Iterable[Stream]) -> None:
        """Ends all continuations: with the same seed another server goes on alike."""
        error = errors.Draining("the server is going away; ask another one")
        for stream in streams:
            for continuation in list(stream.continuations.values()):
                self.fail(continuation, error)

    def check_integrity(self, streams: Iterable[Stream]) -> None:
        """Raises AssertionError unless every continuation that has started has its place, once."""
        known = [continuation for stream in streams for continuation in stream.continuations.values()]
        if self._rows != sum(continuation.rows for continuation in known):
            raise AssertionError("the rows being generated do not add up")
        placed = [*self._running, *self._stalled]
        if len(placed) != len(set(placed)) or set(placed) != {each for each in known if each.started}:
            raise AssertionError("a continuation has no place, or two, or is nobody's")


def _words_only(frame: pb.Generate) -> bool:
    """Whether something is asked for that only words have."""
    return bool(frame.top_k or frame.HasField("top_p") or frame.stop_tokens)


def _temperature(frame: pb.Generate) -> float:
    temperature = frame.temperature if frame.HasField("temperature") else 1.0
    if not 0 <= temperature <= _LARGEST_TEMPERATURE:
        raise errors.InputInvalid(f"temperature is {temperature:g}; ask for one from 0 to {_LARGEST_TEMPERATURE:g}")
    return temperature


def _seed(frame: pb.Generate) -> int | None:
    return frame.seed if frame.HasField("seed") else None
