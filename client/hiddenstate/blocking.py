"""Sessions, fleets, continuations and watches that block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Hashable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from hiddenstate.background import Runner
from hiddenstate.codec import Floats, Ids, Notes, Row, Tokens, Value, Values, Wanted
from hiddenstate.descriptions import Model
from hiddenstate.fleet import AsyncFleet
from hiddenstate.generation import AsyncGeneration
from hiddenstate.predictions import (
    FleetAnswers,
    FleetNotePredictions,
    FleetPredictions,
    FleetWordPredictions,
    LabelPredictions,
    NotePrediction,
    NotePredictions,
    Prediction,
    Predictions,
    TaggedWord,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)
from hiddenstate.session import AsyncSession
from hiddenstate.watching import AsyncWatch

_T = TypeVar("_T")
_END = object()


class Session:
    """One session: its state lives on the server, and every observation moves it on by one step."""

    def __init__(self, run: Runner, session: AsyncSession) -> None:
        self._run = run
        self._session = session

    @property
    def id(self) -> str:
        """Names the session on the server."""
        return self._session.id

    @property
    def model(self) -> Model:
        """The model it is pinned to."""
        return self._session.model

    @property
    def idle_timeout(self) -> float:
        """The lease granted: seconds the session may be idle."""
        return self._session.idle_timeout

    @property
    def step(self) -> int:
        """Observations in its state, as far as they were answered."""
        return self._session.step

    @property
    def durable_step(self) -> int:
        """Up to which step the server is known to have stored it; 0 where nothing is."""
        return self._session.durable_step

    @property
    def rewinds(self) -> int:
        """How many times it was rewound."""
        return self._session.rewinds

    @property
    def labels(self) -> dict[str, str]:
        """Labels given when it was opened."""
        return self._session.labels

    @overload
    def observe(self, x: str, *, timeout: float | None = None) -> WordPrediction: ...
    @overload
    def observe(self, x: Value | Row, *, timeout: float | None = None) -> ValuePrediction: ...
    @overload
    def observe(self, x: Notes, *, timeout: float | None = None) -> NotePrediction: ...
    def observe(self, x: str | Value | Row | Notes, *, timeout: float | None = None) -> Prediction:
        """Feeds one observation and predicts what comes next.

        A word or a text (the prediction is then the one after its last word), a number (None: missing), a row
        or mapping of the model's columns, or the MIDI numbers of the notes that sound. A forecasting model answers
        with a ForecastPrediction, a model of labels with a LabelPrediction (see `label`). Raises InvalidInput and
        everything that can happen to a session.
        """
        return self._run(cast(Coroutine[Any, Any, Prediction], self._session.observe(x, timeout=timeout)))

    @overload
    def observe_many(self, xs: str | Sequence[str], *, timeout: float | None = None) -> WordPredictions: ...
    @overload
    def observe_many(self, xs: Values, *, timeout: float | None = None) -> ValuePredictions: ...
    @overload
    def observe_many(self, xs: Sequence[Notes], *, timeout: float | None = None) -> NotePredictions: ...
    def observe_many(self, xs: Any, *, timeout: float | None = None) -> Predictions:
        """Feeds observations in order; returns one prediction after each, as columns.

        The words of a text, a sequence of words (each looked up whole), a column of numbers, a table
        [n, columns], or frames of notes. `timeout` counts for every 4096 of them.
        """
        work: Coroutine[Any, Any, Predictions]
        work = self._session.observe_many(xs, timeout=timeout)
        return self._run(work)

    def label(self, text: str | Sequence[str], *, timeout: float | None = None) -> LabelPredictions:
        """Feeds a text or words to a model of labels: what it says after each of them, as columns.

        As `observe_many`, with its type told. Raises InvalidInput where the model labels nothing.
        """
        return self._run(self._session.label(text, timeout=timeout))

    def tag(self, sentence: str | Sequence[str], *, timeout: float | None = None) -> list[TaggedWord]:
        """The label of every word of a whole sentence, a text or words.

        The session stays where it is: a copy of it reads the sentence, and where the model looks ahead its end too.
        Raises InvalidInput where the model does not tag words.
        """
        return self._run(self._session.tag(sentence, timeout=timeout))

    def peek(self, *, timeout: float | None = None) -> Prediction:
        """The current prediction again; nothing changes."""
        return self._run(self._session.peek(timeout=timeout))

    def rewind(self, n: int = 1, *, timeout: float | None = None) -> Prediction:
        """Takes the last `n` observations back; returns the prediction as it was before them.

        Raises RewindLimit where the server does not keep so many.
        """
        return self._run(self._session.rewind(n, timeout=timeout))

    @overload
    def fork(self, n: None = None, *, timeout: float | None = None) -> Session: ...
    @overload
    def fork(self, n: int, *, timeout: float | None = None) -> list[Session]: ...
    def fork(self, n: int | None = None, *, timeout: float | None = None) -> Session | list[Session]:
        """An independent copy of the session as it is now, or a list of `n` copies. Raises ResourceExhausted."""
        if n is None:
            return Session(self._run, self._run(self._session.fork(timeout=timeout)))
        return [Session(self._run, copy) for copy in self._run(self._session.fork(n, timeout=timeout))]

    def export(self, *, timeout: float | None = None) -> bytes:
        """A signed snapshot of the session as it is now, for `client.restore`."""
        return self._run(self._session.export(timeout=timeout))

    def rewarm(self, version: str | None = None, *, timeout: float | None = None) -> None:
        """Moves the session to another version of its model (the newest unless told).

        The new version is fed the last observations, as many as the server keeps. Raises ModelNotFound.
        """
        self._run(self._session.rewarm(version, timeout=timeout))

    @overload
    def generate(
        self,
        n: int,
        *,
        paths: int,
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Generation[NDArray[np.float64]]: ...
    @overload
    def generate(
        self,
        n: int,
        *,
        quantiles: Sequence[float],
        paths: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Generation[NDArray[np.float64]]: ...
    @overload
    def generate(
        self,
        n: int,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        commit: bool = False,
        timeout: float | None = None,
    ) -> Generation[Any]: ...
    def generate(
        self,
        n: int,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        commit: bool = False,
        paths: int | None = None,
        quantiles: Sequence[float] | None = None,
        timeout: float | None = None,
    ) -> Generation[Any]:
        """Lets the model run on for `n` steps from where the session is now; an iterator over what it comes up with.

        Words: each a GeneratedWord (word, probability), sampled at `temperature` (1; 0 takes the most probable) from
        the `top_k` most probable and from those that together have the probability `top_p`, until a word of `stop`.
        Values: each a float (several targets: an array [targets]), sampled at `temperature` times the scale; with
        `paths` an array [paths], with `quantiles` of that many paths (256) an array [quantiles] (or with targets as
        second axis). Notes: each a frame, a frozenset of MIDI numbers, sampled at `temperature`. The same `seed` gives
        the same. `timeout` is the longest wait for a step.

        The session stays where it is. With `commit` what is taken from the iterator is observed too: before anything
        else that is asked of the session, and at the iterator's end. Raises ResourceExhausted, and AnswersLost where
        the connection broke and the session has moved on since.
        """

        wanted = Wanted.of(n, temperature, top_k, top_p, seed, stop, paths, quantiles, commit)

        async def begin() -> AsyncGeneration[Any]:
            return self._session._generate(wanted, timeout)

        return Generation(self._run, self._run(begin()))

    def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews the lease without an observation."""
        self._run(self._session.heartbeat(timeout=timeout))

    def close(self, *, timeout: float | None = None) -> None:
        """Ends the session; the second time nothing happens."""
        self._run(self._session.close(timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._session.__aexit__(kind, error, trace))


class Fleet:
    """Many sessions of one model, fed by columns. An id is anything hashable, such as a sensor's name."""

    def __init__(self, run: Runner, fleet: AsyncFleet) -> None:
        self._run = run
        self._fleet = fleet

    def __len__(self) -> int:
        """Sessions open."""
        return len(self._fleet)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._fleet

    @overload
    def observe(self, ids: Ids, values: Tokens, *, timeout: float | None = None) -> FleetWordPredictions: ...
    @overload
    def observe(
        self, ids: Ids, values: Floats | Sequence[Value] | Sequence[Row], *, timeout: float | None = None
    ) -> FleetPredictions: ...
    @overload
    def observe(self, ids: Ids, values: Sequence[Notes], *, timeout: float | None = None) -> FleetNotePredictions: ...
    def observe(self, ids: Ids, values: Any, *, timeout: float | None = None) -> FleetAnswers:
        """Feeds observation `values[i]` to session `ids[i]`; an id may stand in several rows, in order.

        `values` is a column [n] or table [n, columns] for value models; words, or int tokens [n], for word
        models; frames for music models.
        What went wrong with single sessions is in `.errors` by id, their rows are NaN, and the ids start afresh
        the next time. Raises what concerns all of them.
        """
        work: Coroutine[Any, Any, FleetAnswers]
        work = self._fleet.observe(ids, values, timeout=timeout)
        return self._run(work)

    def heartbeat(self, *, timeout: float | None = None) -> None:
        """Renews every session's lease without an observation."""
        self._run(self._fleet.heartbeat(timeout=timeout))

    def close(self, ids: Iterable[Hashable] | None = None, *, timeout: float | None = None) -> None:
        """Ends these sessions, or all."""
        self._run(self._fleet.close(ids, timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._fleet.__aexit__(kind, error, trace))


class Generation(Iterator[_T], Generic[_T]):
    """A continuation of a session: an iterator over what is generated, step by step; `close` ends it early."""

    def __init__(self, run: Runner, generation: AsyncGeneration[_T]) -> None:
        self._run = run
        self._generation = generation

    def __next__(self) -> _T:
        return _stepped(self._run(_step(self._generation)))

    def close(self) -> None:
        """Ends it. With `commit`, what was taken from it is then in the session."""
        self._run(self._generation.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watch(Iterator[Prediction]):
    """An iterator over a session's predictions, the current one first; it ends with the session.

    A broken connection is made anew within the timeout.
    """

    def __init__(self, run: Runner, watch: AsyncWatch) -> None:
        self._run = run
        self._watch = watch

    @property
    def skipped(self) -> int:
        """Predictions that were left out, because they were taken too slowly or while there was no connection."""
        return self._watch.skipped

    def __next__(self) -> Prediction:
        return _stepped(self._run(_step(self._watch)))

    def close(self) -> None:
        """Stops following."""
        self._run(self._watch.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _step(items: AsyncIterator[_T]) -> _T | object:
    """The next item, or the end: StopIteration cannot leave a coroutine."""
    return await anext(items, _END)


def _stepped(item: _T | object) -> _T:
    if item is _END:
        raise StopIteration
    return cast(_T, item)
