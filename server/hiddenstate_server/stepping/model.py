"""One model being served: its sessions' rows, what is queued for them, and the tick that steps them."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hiddenstate_models import spelling
from hiddenstate_models.bundle import Task
from hiddenstate_models.limits import LARGEST_VALUE
from hiddenstate_server import errors
from hiddenstate_server.runtimes import DoubleArray, InputArray, Outputs, RowArray, Runtime, each_column, places_of
from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.directory import DETACHED, SessionTable
from hiddenstate_server.stepping.engine import Engine
from hiddenstate_server.stepping.frames import handle_bytes, step_bytes
from hiddenstate_server.stepping.history import History
from hiddenstate_server.stepping.records import Packer
from hiddenstate_server.stepping.rewinding import Rewinding
from hiddenstate_server.stepping.scheduler import (
    CATCH_UP,
    CLOSE,
    EXPORT,
    HOLD,
    KIND,
    OBSERVE,
    PEEK,
    REWIND,
    REWOUND,
    SILENT,
    WORDS,
    Batch,
    Dropped,
    FlagArray,
    Scheduler,
    runs_of,
)
from hiddenstate_server.stepping.singles import SingleFrame, SingleReplies
from hiddenstate_server.stepping.streams import RUN_ANSWER_ROWS, Part, Single, Stream
from hiddenstate_server.stepping.twins import Followers, Twin
from hiddenstate_server.stepping.watching import Seen, Watcher, Watching

if TYPE_CHECKING:
    from hiddenstate_server.metrics import ModelMetrics

log = logging.getLogger(__name__)

_ANSWERS: Mapping[int, Literal["observed", "peeked", "rewound"]] = {
    OBSERVE: "observed",
    PEEK: "peeked",
    REWIND: "rewound",
    REWOUND: "rewound",
}
_SMALL_FRAME = 4
"""Up to this many rows, checking one by one beats a dozen array operations."""
_SHORTEST_RUN = 8
"""Fewer observations of one row than this are cheaper in steps, which they share with others."""

Act: TypeAlias = Callable[[Batch, float], None]
"""Does what items of one kind ask for: of distinct rows, at a monotonic second."""


@dataclass(frozen=True)
class TextInfo:
    """How a model that reads words sees text."""

    vocabulary: Sequence[str]
    token_ids: Mapping[str, int]
    lowercase: bool
    unknown_token: int
    end_token: int
    word_pattern: str
    spelling_suffixes: tuple[int, ...] = ()

    def tokens(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Ids of words; where a word is not in the vocabulary, that of its spelling class or the unknown token."""
        ids, suffixes, unknown = self.token_ids, self.spelling_suffixes, self.unknown_token
        if self.lowercase:
            words = [word.lower() for word in words]
        return np.array([spelling.token(word, ids, suffixes, unknown) for word in words], np.int64)


@dataclass(frozen=True)
class NotesInfo:
    """Which notes a music model reads and predicts."""

    lowest: int
    """MIDI number of the first."""
    count: int


@dataclass(frozen=True)
class LabelsInfo:
    """What a model of labels says."""

    names: tuple[str, ...]
    """In the order of their probabilities."""
    look_ahead: int


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, as clients see it.

    `text` is set for words, `columns` for values, `notes` for music; `labels`, beside `text`, for labels of words.
    """

    name: str
    version: str
    task: Task
    description: str
    parameters: int
    state_size: int
    text: TextInfo | None = None
    columns: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    horizon: int = 1
    """Steps ahead that values are predicted."""
    notes: NotesInfo | None = None
    labels: LabelsInfo | None = None
    digest: str = ""
    """Of the bundle: two bundles with the same one are the same."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def width(self) -> int:
        """Values in an observation; 0 where it is a token."""
        return len(self.columns) if self.notes is None else self.notes.count

    @property
    def empty_input(self) -> InputArray:
        """[0] tokens or [0, width] values."""
        if self.text is not None:
            return np.empty(0, np.int64)
        return np.empty((0, self.width), np.float64)

    def invalid(self, inputs: InputArray) -> NDArray[np.bool_]:
        """[n]: which inputs the model cannot take."""
        invalid: NDArray[np.bool_]
        if self.text is not None:
            invalid = (inputs < 0) | (inputs >= len(self.text.vocabulary))
        elif self.notes is not None:
            invalid = ((inputs != 0) & (inputs != 1)).any(axis=1)
        else:
            large = np.abs(inputs) > LARGEST_VALUE
            invalid = large[:, 0] if large.shape[1] == 1 else np.logical_or.reduce(large, axis=1)
        return invalid

    @cached_property
    def _values(self) -> struct.Struct:
        return struct.Struct(f"<{self.width}d")

    def input_of(self, data: bytes, is_token: bool) -> int | tuple[float, ...] | None:
        """The input of one row, a token or values, packed as on the wire; None unless the model can take it."""
        if self.text is not None:
            token = int.from_bytes(data, "little", signed=True)
            return token if is_token and len(data) == 4 and 0 <= token < len(self.text.vocabulary) else None
        packed = self._values
        if is_token or len(data) != packed.size:
            return None
        values = packed.unpack(data)
        if self.notes is not None:
            return values if _SILENT_OR_SOUNDING.issuperset(values) else None
        for value in values:
            if abs(value) > LARGEST_VALUE:
                return None
        return values

    def refusal(self, value: Any) -> errors.InputInvalid:
        """Why an input is invalid."""
        if self.text is not None:
            last = len(self.text.vocabulary) - 1
            return errors.InputInvalid(f"token {value} is outside the vocabulary; send 0 to {last}")
        if self.notes is not None:
            return errors.InputInvalid("a frame holds something else than 0 and 1; send 1 for each note that sounds")
        return errors.InputInvalid(
            f"a value is infinite or beyond {LARGEST_VALUE:g}; send a smaller number, or NaN for a missing one"
        )

    def wrong_kind(self, inputs: InputArray | list[str]) -> errors.InputInvalid | None:
        """Why these inputs, words [n], tokens [n] or values [n, columns], are not what the model takes."""
        is_values = not isinstance(inputs, list) and inputs.ndim == 2
        if self.text is not None:
            if is_values:
                return errors.InputInvalid(f"{self.name} takes words; send tokens or words, not values")
            return None
        if isinstance(inputs, list) or not is_values:
            return errors.InputInvalid(f"{self.name} takes values; send values, not words or tokens")
        if inputs.shape[1] != self.width:
            wanted, width = self.width, inputs.shape[1]
            return errors.InputInvalid(f"{self.name} takes {wanted} values per observation, not {width}")
        return None


@dataclass(frozen=True)
class Backlogs:
    """How many accepted rows may wait."""

    session: int
    stream: int


class ServedModel:
    """Rows 0..capacity-1 of this model are `base`.. among all models of the process."""

    def __init__(
        self,
        info: ModelInfo,
        runtime: Runtime,
        *,
        capacity: int,
        max_batch: int,
        max_run: int,
        base: int,
        rewind_steps: int,
        streams: Mapping[int, Stream],
        watching: Watching,
        backlogs: Backlogs,
        metrics: ModelMetrics,
        stored: Literal["not", "behind", "every-step"] = "not",
    ) -> None:
        self.info = info
        self.runtime = runtime
        self.retired = False
        """Takes no new sessions; goes with its last one."""
        self.stored_until = -math.inf
        """Monotonic second by which those of its sessions have ended that are in the store alone and nobody holds."""
        self.base = base
        self.capacity = capacity
        self.arena = Arena(capacity, *runtime.initial())
        self.engine = Engine(runtime, self.arena, max_batch, max_run)
        self.table = SessionTable(capacity)
        self.scheduler = Scheduler(capacity, info.empty_input)
        self.metrics = metrics
        self.history = History(
            rewind_steps, info.empty_input, self.arena.states, self.table.applied, self.arena.initial
        )
        self.rewinding = Rewinding(self.table, self.arena, self.scheduler, self.history, self._went_back)
        self.followers = Followers(self)
        """Twins of this model's sessions, in other versions."""
        self.twins: dict[int, Twin] = {}
        """Rows of this model that follow sessions of other versions."""
        self.packer = Packer(self.arena.states, self.arena.outputs._asdict(), self.history.columns)
        self.at_work = _NO_ROWS
        """Rows of the batch that is acted on: they stay where they are."""
        self.running = False
        """Whether much of one row waits, so that every other tick is a run."""
        self._long: RowArray = _NO_ROWS  # rows to run through in the next tick, as far as still so much of them waits
        self._shortest_run = min(_SHORTEST_RUN, max_run)
        self._acts: dict[int, Act] = {}
        self.on(OBSERVE, self._observe)
        self.on(PEEK, self._peek)
        self.on(REWIND, self._rewind)
        self.on(REWOUND, self._rewound)
        self._streams = streams
        self.backlogs = backlogs
        self._watching = watching
        self._stored = stored
        durable = () if stored == "not" else ("durable_steps",)
        self._fields = ("handles", "steps", *self.arena.outputs._fields, *durable)
        columns = [self.table.handle, self.table.applied.view(np.uint64), *self.arena.outputs]
        if durable:
            columns.append(self.table.durable.view(np.uint64))
        self._singles = SingleReplies(dict(zip(self._fields, columns, strict=True)), max_batch)
        # Of words that are answered: labels have none.
        self._vocabulary = () if info.text is None or info.labels is not None else info.text.vocabulary

    @property
    def session_bytes(self) -> int:
        """Bytes that a session's state, outputs and history take."""
        return self.arena.row_bytes + self.history.row_bytes

    @property
    def top_k(self) -> int:
        """Words in a prediction; 0 where it is of labels."""
        return int(self.arena.outputs[1].shape[1]) if self.info.labels is None else 0

    @property
    def sessions(self) -> int:
        """Sessions with a row."""
        return self.arena.used - len(self.twins)

    # frames in

    def observe_one(self, stream: Stream, row: int, frame: SingleFrame, now: float) -> bool:
        """Queues a frame's only row; False if it needs a closer look."""
        table, scheduler, limits = self.table, self.scheduler, self.backlogs
        step = table.accepted.item(row) + 1
        value, steps = self.info.input_of(frame.input, frame.is_token), frame.steps
        if (
            value is None
            or (steps and int.from_bytes(steps, "little") != step)
            or table.closing.item(row)
            or scheduler.pending.item(row) >= limits.session
            or stream.backlog >= limits.stream
        ):
            return False
        table.accepted[row] = step
        stream.backlog += 1
        scheduler.add_one(row, value, OBSERVE, now)
        return True

    def observe(
        self,
        stream: Stream,
        rows: RowArray,
        steps: NDArray[np.int64] | None,
        inputs: InputArray,
        flags: int,
        now: float,
    ) -> None:
        """Queues a frame's rows (of live sessions of this stream), each refused alone where it must be."""
        invalid = self.info.invalid(inputs)
        if len(rows) <= _SMALL_FRAME or not self._observe_columns(stream, rows, steps, inputs, invalid, flags, now):
            self._observe_rows(stream, rows, steps, inputs, invalid, flags, now)

    def _observe_columns(
        self,
        stream: Stream,
        rows: RowArray,
        steps: NDArray[np.int64] | None,
        inputs: InputArray,
        invalid: NDArray[np.bool_],
        flags: int,
        now: float,
    ) -> bool:
        """Queues the whole frame at once if nothing in it needs a closer look."""
        table, scheduler, count = self.table, self.scheduler, len(rows)
        if invalid.any() or table.closing[rows].any() or stream.backlog + count > self.backlogs.stream:
            return False
        runs = None if scheduler.distinct(rows) else runs_of(rows)
        following = table.accepted[rows] + 1
        waiting = scheduler.pending[rows]
        if runs is not None:
            ordinals = runs.ordinals()
            following += ordinals
            waiting += ordinals
        if (waiting >= self.backlogs.session).any():
            return False
        if steps is not None and not np.array_equal(steps, following):
            return False
        # Of a session's several rows the last is written last, and has the highest step.
        table.accepted[rows] = following
        stream.backlog += count
        row_flags = flags if runs is None else runs.flagged(flags, HOLD)
        scheduler.add(rows, inputs, row_flags, now, runs)
        return True

    def _observe_rows(
        self,
        stream: Stream,
        rows: RowArray,
        steps: NDArray[np.int64] | None,
        inputs: InputArray,
        invalid: NDArray[np.bool_],
        flags: int,
        now: float,
    ) -> None:
        table, pending = self.table, self.scheduler.pending
        accepted: list[int] = []
        repeated: list[int] = []
        added: dict[int, int] = {}
        for index, row in enumerate(rows.tolist()):
            expected = int(table.accepted[row]) + 1
            step = expected if steps is None else int(steps[index])
            try:
                if table.closing[row]:
                    raise errors.SessionClosed("the session is being closed; open a new one")
                if invalid[index]:
                    raise self.info.refusal(inputs[index])
                if step != expected:
                    if self._is_repeat(row, step, expected):
                        repeated.append(index)
                    continue
                if pending[row] + added.get(row, 0) >= self.backlogs.session:
                    raise errors.SessionBacklog(
                        f"{self.backlogs.session} observations wait in the session; wait for answers",
                        limit=self.backlogs.session,
                    )
                self.check_stream_backlog(stream)
            except errors.ServerError as error:
                self.metrics.fault(error)
                stream.fault(error, int(table.handle[row]), step if steps is None or step > 0 else 0)
                continue
            table.accepted[row] = step
            added[row] = added.get(row, 0) + 1
            stream.backlog += 1
            accepted.append(index)
        if repeated:
            self._answer_repeats(stream, rows[repeated], flags, now)
        if len(accepted) == len(rows):
            self._enqueue(rows, inputs, flags, now)
        elif accepted:
            self._enqueue(rows[accepted], inputs[accepted], flags, now)

    def check_stream_backlog(self, stream: Stream) -> None:
        """Raises StreamBacklog unless the stream may have one more row under way."""
        if stream.backlog >= self.backlogs.stream:
            raise errors.StreamBacklog(
                f"{self.backlogs.stream} observations wait on the stream; wait for answers",
                limit=self.backlogs.stream,
            )

    def _enqueue(self, rows: RowArray, inputs: InputArray | None, flags: int, now: float) -> None:
        if self.scheduler.distinct(rows):
            self.scheduler.add(rows, inputs, flags, now)
            return
        runs = runs_of(rows)
        self.scheduler.add(rows, inputs, runs.flagged(flags, HOLD if flags & KIND == OBSERVE else 0), now, runs)

    def _is_repeat(self, row: int, step: int, expected: int) -> bool:
        """Whether a step other than the expected one is the last applied; False if its answer is on the way."""
        target = self.rewinding.target(row)
        applied = int(self.table.applied[row]) if target is None else target
        if step < 0 or step > expected:
            raise errors.StepGap(f"step {expected} comes next; send it first", expected=expected)
        if step == applied and step > 0:
            return target is None
        if step > applied:
            return False
        raise errors.StepAlreadyApplied(
            f"step {step} is older than the last applied, {applied}; only that one can be asked for again",
            step=applied,
        )

    def _answer_repeats(self, stream: Stream, rows: RowArray, flags: int, now: float) -> None:
        self.table.last_use[rows] = now
        stream.backlog += len(rows)
        self._deliver_last(rows, np.full(len(rows), flags, np.uint8), np.full(len(rows), now))

    def peek(self, stream: Stream, rows: RowArray, with_words: bool, now: float) -> None:
        """Queues peeks behind what the sessions have."""
        self._queue_quietly(stream, rows, PEEK | (WORDS if with_words else 0), now)

    def export(self, stream: Stream, rows: RowArray, now: float) -> None:
        """Queues exports behind what the sessions have."""
        self._queue_quietly(stream, rows, EXPORT, now)

    def close(self, stream: Stream, rows: RowArray, now: float) -> None:
        """Queues closes behind what the sessions have; nothing more is accepted for them."""
        closed = self._queue_quietly(stream, np.unique(rows), CLOSE, now)
        self.table.closing[closed] = True

    def rewind(
        self,
        stream: Stream,
        rows: RowArray,
        steps: NDArray[np.int64],
        numbers: NDArray[np.uint32] | None,
        with_words: bool,
        now: float,
    ) -> None:
        """Queues rewinds to `steps` [n], the `numbers`-th of their sessions, behind what the sessions have."""
        accepted: list[int] = []
        for index, row in enumerate(rows.tolist()):
            try:
                self.check_open(stream, row)
                # Steps from 2^63 on look negative.
                step = int(steps[index]) % 2**64
                self.rewinding.accept(row, step, None if numbers is None else int(numbers[index]))
            except errors.ServerError as error:
                self.metrics.fault(error)
                stream.fault(error, int(self.table.handle[row]))
                continue
            stream.backlog += 1
            accepted.append(index)
        if accepted:
            self._enqueue(rows[accepted], None, REWIND | (WORDS if with_words else 0), now)

    def check_open(self, stream: Stream, row: int) -> None:
        """Raises SessionClosed or StreamBacklog unless the stream may ask something more of the session."""
        if self.table.closing[row]:
            raise errors.SessionClosed("the session is being closed; open a new one")
        self.check_stream_backlog(stream)

    def _queue_quietly(self, stream: Stream, rows: RowArray, flags: int, now: float) -> RowArray:
        open_ = ~self.table.closing[rows]
        for handle in self.table.handle[rows[~open_]].tolist():
            stream.fault(errors.SessionClosed("the session is being closed already"), handle)
        rows = rows[open_]
        room = len(rows) if flags & KIND == CLOSE else max(0, self.backlogs.stream - stream.backlog)
        for handle in self.table.handle[rows[room:]].tolist():
            stream.fault(errors.StreamBacklog("too much waits on the stream; wait for answers"), handle)
        rows = rows[:room]
        if len(rows):
            stream.backlog += len(rows)
            self._enqueue(rows, None, flags, now)
        return rows

    # the tick

    def on(self, kind: int, act: Act) -> None:
        """Has the items of a kind acted on by `act`, in the order of kinds."""
        self._acts = dict(sorted({**self._acts, kind: act}.items()))

    def tick(self, now: float) -> None:
        """Takes one batch and acts on its items, kind by kind; after one that left much of a row waiting, one run."""
        if self._long.size:
            rows, self._long = self._long, _NO_ROWS
            if self._run(rows, now):
                return
        batch = self.scheduler.take(self.engine.max_batch)
        self.table.last_use[places_of(batch.rows)] = now
        if not marks_of(batch.flags) & (KIND | SILENT):
            self._step(batch, now)
        else:
            kinds = batch.flags & KIND
            self.at_work = batch.rows
            for kind, act in self._acts.items():
                mask = kinds == kind
                if mask.any():
                    act(batch.only(mask), now)
            self.at_work = _NO_ROWS
        if self.engine.max_run:
            self._note_long(batch.rows)

    def _observe(self, batch: Batch, now: float) -> None:
        silent = (batch.flags & SILENT) > 0
        self._step(batch, now, silent if silent.any() else None)

    def _step(self, batch: Batch, now: float, silent: NDArray[np.bool_] | None = None) -> None:
        start = self.metrics.step_started(now, batch.received)
        try:
            outputs = self.engine.step(batch.rows, batch.inputs)
        except Exception:
            log.exception("a step of %s failed", self.info.name)
            self._fail(batch)
            return
        self.metrics.step_finished(start, len(batch.rows))
        if silent is not None:
            self.metrics.replayed(int(silent.sum()))
            self.history.replayed(batch.rows[silent])
            heard = ~silent
            batch, outputs = batch.only(heard), each_column(outputs, lambda column: column[heard])
        if len(batch.rows):
            self._applied(batch, self.table.applied[places_of(batch.rows)] + 1, outputs, now)

    def _note_long(self, rows: RowArray) -> None:
        waiting = self.scheduler.pending[places_of(rows)]
        shortest = self._shortest_run
        self.running = bool(waiting.max() >= shortest)
        if self.running:
            self._long = rows[waiting >= shortest]

    def _run(self, rows: RowArray, now: float) -> bool:
        """Takes many observations at once of the first of these rows with a long queue; whether there was one.

        After that it stands behind the others, so that of several such rows each has its turn.
        """
        shortest = self._shortest_run
        for row in rows[self.scheduler.pending[rows] >= shortest].tolist():
            if self.followers.along(row) is not None:
                continue  # a twin is fed step by step
            longest = self.engine.max_run
            if not self.table.replaying.item(row):
                longest = min(longest, self.history.room(row))
            batch = self.scheduler.take_run(row, min(shortest, longest), longest)
            if batch is None:
                continue
            self._step_run(row, batch, now)
            return True
        return False

    def _step_run(self, row: int, batch: Batch, now: float) -> None:
        start = self.metrics.step_started(now, batch.received)
        try:
            outputs = self.engine.run(row, batch.inputs)
        except Exception:
            log.exception("a run of %s failed", self.info.name)
            self._fail(batch)
            return
        count = len(batch.rows)
        self.metrics.run_finished(start, count)
        if batch.flags.item(0) & SILENT:
            self.metrics.replayed(count)
            self.history.replayed(batch.rows)
            return
        first = self.table.applied.item(row) + 1
        self._applied(batch, np.arange(first, first + count), outputs, now)

    def _applied(self, batch: Batch, steps: NDArray[np.int64], outputs: Outputs, now: float) -> None:
        """Notes and answers observations that are in the states; of a row's several the last has the highest step."""
        places = places_of(batch.rows)
        self.table.applied[places] = steps
        self.table.unsaved[places] = True
        self.history.record(batch.rows, steps, batch.inputs)
        self._deliver(batch.rows, steps, outputs, batch.flags, batch.received)
        if self.followers:
            self.followers.follow(batch.rows, batch.inputs, outputs.surprises, now)
        if self._watching:
            self._tell_watchers(batch.rows, steps, outputs)

    def _peek(self, batch: Batch, _now: float) -> None:
        self._deliver_last(batch.rows, batch.flags, batch.received)

    def _rewind(self, batch: Batch, _now: float) -> None:
        """Starts rewinds; those that need no replay are answered at once."""
        done = np.zeros(len(batch.rows), np.bool_)
        for index, row in enumerate(batch.rows.tolist()):
            answer = REWOUND | int(batch.flags[index]) & WORDS
            done[index] = self.rewinding.begin(row, answer, float(batch.received[index]))
        if done.any():
            self._answer_rewinds(batch.only(done))

    def _rewound(self, batch: Batch, _now: float) -> None:
        for row in batch.rows.tolist():
            self.rewinding.finish(row)
        self._answer_rewinds(batch)

    def _answer_rewinds(self, batch: Batch) -> None:
        outputs, steps = self.engine.last(batch.rows), self.table.applied[batch.rows]
        self._deliver(batch.rows, steps, outputs, batch.flags, batch.received)
        if self._watching:
            self._tell_watchers(batch.rows, steps, outputs)

    def _tell_watchers(self, rows: RowArray, steps: NDArray[np.int64], outputs: Outputs) -> None:
        keys = [self.table.keys[row] for row in rows.tolist()]
        self._watching.tell(keys, steps, outputs, self.info.version, self._vocabulary)

    @contextmanager
    def watched(self, row: int, with_words: bool) -> Iterator[Watcher]:
        """A watcher of a row's session, who sees its current prediction first."""
        with self._watching.following(self.table.keys[row], with_words) as watcher:
            rows = np.array([row])
            last = self.engine.last(rows)
            watcher.add(Seen(int(self.table.applied[row]), last, self.info.version, self._vocabulary))
            yield watcher

    def _went_back(self, row: int, step: int) -> None:
        if self.followers:
            self.followers.went_back(row, step, float(self.table.last_use[row]))

    def _fail(self, batch: Batch) -> None:
        """Answers a failed batch, and what waited behind it, with INTERNAL; the states are as before."""
        error = errors.InternalError("the step failed; the server's log has the details")
        if self.twins:
            mine = self._is_session(batch.rows)
            self.release_twins(np.unique(batch.rows[~mine]).tolist(), error)
            batch = batch.only(mine)
        behind = self.drop(batch.rows, error)
        heard = batch.rows[(batch.flags & SILENT) == 0]
        self._forget_backlog(heard)
        untold = behind.rows[[argument is None for argument in behind.arguments]]
        for row in [*heard.tolist(), *untold.tolist()]:
            self.metrics.fault(error)
            stream = self._streams[int(self.table.stream[row])]
            stream.fault(error, int(self.table.handle[row]), int(self.table.applied[row]) + 1)

    def _forget_backlog(self, rows: RowArray) -> None:
        """Takes rows that will not be answered off what their streams have under way."""
        numbers, counts = np.unique(self.table.stream[rows], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._streams[number].backlog -= count

    def _deliver_last(self, rows: RowArray, flags: FlagArray, received: DoubleArray) -> None:
        """Answers with what rows answered last."""
        self._deliver(rows, self.table.applied[rows], self.engine.last(rows), flags, received)

    def _deliver(
        self, rows: RowArray, steps: NDArray[np.int64], outputs: Outputs, flags: FlagArray, received: DoubleArray
    ) -> None:
        """Packs answers by stream, and by whether they carry words."""
        if self.twins:
            mine = self._is_session(rows)
            if not mine.all():
                compared = ~mine & (flags & (KIND | CATCH_UP) == OBSERVE)
                self.metrics.compared("shadow", outputs.surprises[compared])
                rows, steps, flags, received = rows[mine], steps[mine], flags[mine], received[mine]
                outputs = each_column(outputs, lambda column: column[mine])
                if not len(rows):
                    return
        places = places_of(rows)
        keys = self.table.stream[places]
        marks = marks_of(flags)
        if (
            not marks
            and len(rows) <= len(self._streams)
            and self._deliver_singles(places, steps, keys.tolist(), outputs, received)
        ):
            return
        worded = bool(marks & WORDS)
        if worded:
            keys = 2 * keys + ((flags & WORDS) > 0)
        if len(rows) == 1 or (keys == keys[0]).all():
            bounds = [0, len(rows)]
        else:
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            rows, steps, flags, received = rows[order], steps[order], flags[order], received[order]
            outputs = each_column(outputs, lambda column: column[order])
            bounds = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(rows)]
        columns = [handle_bytes(self.table.handle[rows]), step_bytes(steps)]
        columns += [column.tobytes() for column in outputs]
        if self._stored != "not":
            columns.append(step_bytes(self._durable_steps(rows, steps)))
        widths = [len(column) // len(rows) for column in columns]
        answers = _ANSWERS[int(flags[0]) & KIND]
        for start, end in pairwise(bounds):
            key = int(keys[start])
            stream = self._streams[key >> 1 if worded else key]
            part = Part(
                answers,
                self._fields,
                self._vocabulary if flags[start] & WORDS else (),
                tuple(column[start * width : end * width] for column, width in zip(columns, widths, strict=True)),
                received[start:end],
                self.metrics.observed,
            )
            stream.answer(part)
            if not marks & HOLD or stream.unsent >= RUN_ANSWER_ROWS or not (flags[start:end] & HOLD).all():
                stream.wake()

    def _durable_steps(self, places: RowArray | slice, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """What answers about `steps` tell. Where they wait for the store, it is durable when they leave."""
        durable: NDArray[np.int64] = steps if self._stored == "every-step" else self.table.durable[places]
        return durable

    def _deliver_singles(
        self,
        places: RowArray | slice,
        steps: NDArray[np.int64],
        numbers: Sequence[int],
        outputs: Outputs,
        received: DoubleArray,
    ) -> bool:
        """Hands out answers of plain observations, if each is for another one of the streams `numbers`."""
        if len(set(numbers)) < len(numbers):
            return False
        columns = [self.table.handle[places], steps, *outputs]
        if self._stored != "not":
            columns.append(self._durable_steps(places, steps))
        encoder, streams, observed = self._singles, self._streams, self.metrics.observed
        for number, reply, at in zip(numbers, encoder.encode(columns), received.tolist(), strict=True):
            streams[number].answer_single(Single(reply, encoder, at, observed))
        return True

    # sessions

    def unload(self) -> None:
        """Lets go of what leads back here, so that the memory is free as soon as nobody holds the model."""
        self._acts.clear()
        del self.followers, self.rewinding
        self.metrics.close()

    def _is_session(self, rows: RowArray) -> NDArray[np.bool_]:
        """[n]: which rows with work are not twins."""
        mine: NDArray[np.bool_] = self.table.stream[rows] != DETACHED
        return mine

    def allocate_twins(self, count: int) -> RowArray:
        """Rows for twins; the caller has checked that they are free."""
        rows = self.arena.allocate(count)
        self.table.start_twins(rows)
        return rows

    def release_twins(self, rows: Sequence[int], reason: errors.ServerError) -> None:
        """Gives the rows of twins back."""
        for row in rows:
            self.twins.pop(row).lost = reason
        gone = np.array(rows, np.int64)
        self.scheduler.drop(gone)
        self.rewinding.abandon(gone)
        self.release(gone)

    def give_up_twins(self, count: int) -> None:
        """Frees up to `count` rows that sessions need more."""
        some = list(islice(self.twins, count))
        self.release_twins(some, errors.SessionLimit("the server needs the room for sessions; try again later"))

    def drop(self, rows: RowArray, error: errors.ServerError | None = None) -> Dropped:
        """Forgets what is queued for these rows; the next step they accept follows the last applied.

        Who waits for items with arguments is told of `error`, if there is one. Returns what was to be answered.
        """
        dropped = self.scheduler.drop(rows)
        self.rewinding.abandon(rows)
        self.followers.abandon(rows.tolist())
        self._forget_backlog(dropped.rows)
        self.table.accepted[rows] = self.table.applied[rows]
        self.table.closing[rows] = False
        if error is not None:
            for argument in dropped.arguments:
                if argument is not None:
                    argument.abandon(error)
        return dropped

    def pack(self, rows: RowArray) -> list[bytes]:
        """State, outputs and history of each row."""
        self.history.settle()
        return self.packer.pack(rows)

    def unpack(self, bodies: Sequence[bytes], rows: RowArray) -> None:
        """Fills rows just allocated with what was packed, and can be unpacked, elsewhere or earlier."""
        whole = self.packer.unpack(bodies, rows)
        for row in rows[~whole].tolist():
            self.history.start(row, self.table.applied.item(row))

    def release(self, rows: RowArray) -> None:
        """Empties rows whose sessions are gone, and gives them back."""
        self.followers.end(rows.tolist())
        self.table.clear(rows)
        self.history.clear(rows)
        self.arena.release(rows)

    def check_integrity(self) -> None:
        """Raises AssertionError unless arena, table and scheduler agree. Rows are not looked into."""
        self.arena.check_integrity()
        self.scheduler.check_integrity()
        self.rewinding.check_integrity()
        self.followers.check_integrity()
        live = self.table.live()
        if len(live) != self.sessions:
            raise AssertionError(f"{len(live)} sessions and {len(self.twins)} twins hold {self.arena.used} rows")
        waiting = np.setdiff1d(np.flatnonzero(self.scheduler.pending), list(self.twins))
        if not np.isin(waiting, live).all():
            raise AssertionError("work is queued for a row without a session")
        for row in waiting.tolist():
            stream = self._streams.get(int(self.table.stream[row]))
            if stream is None or int(stream.lookup(self.table.handle[row : row + 1])[0]) != self.base + row:
                raise AssertionError("work is queued for a session no stream holds")


def marks_of(flags: FlagArray) -> int:
    """All flags that any of the rows has."""
    return int(np.bitwise_or.reduce(flags)) if len(flags) > 1 else flags.item()


_SILENT_OR_SOUNDING = frozenset((0.0, 1.0))
_NO_ROWS: RowArray = np.empty(0, np.int64)
