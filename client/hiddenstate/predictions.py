"""What comes back: a prediction of what comes next, and how surprising the last observation was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from hiddenstate import student_t
from hiddenstate.columns import Columns
from hiddenstate.descriptions import Vocabulary
from hiddenstate.errors import HiddenstateError

Floats = NDArray[np.float64]
Value = float | Floats
Frame = frozenset[int]
"""MIDI numbers of the notes that sound at a time: 60 is the middle C."""
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class WordPrediction:
    """The words that may come next."""

    top: list[tuple[str, float]]
    """The most probable next words with their probabilities, best first."""
    surprise: float
    """-log p of the observed word (of a text: summed over its words), in nats; NaN where nothing was observed."""
    step: int
    """Observations in the session's state."""


@dataclass(frozen=True)
class ValuePrediction:
    """The distribution of the next value: Student's t, or normal where the degrees of freedom are infinite.

    With one target every answer is a float, with several an array [targets]. NaN before the first observation.
    """

    location: Value
    scale: Value
    degrees_of_freedom: Value
    surprise: float
    """-log p of the observed value, in nats of density; NaN where there was no prediction or no value."""
    step: int
    """Observations in the session's state."""

    @property
    def mean(self) -> Value:
        """The expected next value."""
        return self.location

    def quantile(self, p: float) -> Value:
        """The value that the next one stays below with probability `p`, 0 < p < 1."""
        return _plain(self.location + self.scale * student_t.quantile(p, np.asarray(self.degrees_of_freedom)))

    def interval(self, level: float = 0.9) -> tuple[Value, Value]:
        """Lower and upper bound of the central interval that holds the next value with probability `level`."""
        reach = self.scale * student_t.half_width(level, np.asarray(self.degrees_of_freedom))
        return _plain(self.location - reach), _plain(self.location + reach)


@dataclass(frozen=True)
class ForecastPrediction:
    """The distributions of the next values, step by step: Student's t, or normal where the degrees of freedom are inf.

    Every array is [horizon], with several targets [horizon, targets]. NaN before the first observation.
    """

    location: Floats
    scale: Floats
    degrees_of_freedom: Floats
    surprise: float
    """-log p of the observed value under the forecast of it, in nats of density; NaN where there was none."""
    step: int
    """Observations in the session's state."""

    @property
    def mean(self) -> Floats:
        """The expected next values."""
        return self.location

    def quantile(self, p: float) -> Floats:
        """The values that the next ones stay below with probability `p`, 0 < p < 1, each by itself."""
        return self.location + self.scale * student_t.quantile(p, self.degrees_of_freedom)

    def interval(self, level: float = 0.9) -> Floats:
        """[horizon, 2] (or [horizon, 2, targets]): at each step the bounds that hold its value with this probability.

        `low, high = prediction.interval(0.9)[h]`
        """
        reach = self.scale * student_t.half_width(level, self.degrees_of_freedom)
        return np.stack([self.location - reach, self.location + reach], axis=1)


@dataclass(frozen=True)
class NotePrediction:
    """Which notes may sound in the next frame, each by itself."""

    probabilities: dict[int, float]
    """That each note sounds, by MIDI number."""
    surprise: float
    """-log p of the observed frame, in nats, summed over the notes; NaN where nothing was observed."""
    step: int
    """Observations in the session's state."""

    @property
    def notes(self) -> Frame:
        """The notes that are more probable than not."""
        return frozenset(note for note, probability in self.probabilities.items() if probability > 0.5)


@dataclass(frozen=True)
class LabelPrediction:
    """What is said of the text so far, or of the word `look_ahead` steps ago."""

    probabilities: dict[str, float]
    """Of each label, in the model's order; 1 in all."""
    step: int
    """Observations in the session's state."""

    @property
    def label(self) -> str:
        """The most probable one."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Of the most probable label."""
        return max(self.probabilities.values())


class TaggedWord(NamedTuple):
    """A word of a sentence and its label."""

    word: str
    label: str
    probability: float
    """Of the label."""


Prediction = WordPrediction | ValuePrediction | ForecastPrediction | NotePrediction | LabelPrediction


class GeneratedWord(NamedTuple):
    """A word of a continuation."""

    word: str
    probability: float
    """Before temperature and cuts."""


Generated = GeneratedWord | Frame | float | Floats
"""A step of a continuation: a word, the notes of a frame, or values as float64 [paths or quantiles, targets], without
the axes that were not asked for (one path) or have no need (one target)."""


class _Rows(Sequence[_Item], Generic[_Item]):
    """A column of predictions, made into objects only where they are asked for."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.steps: NDArray[np.uint64] = columns.steps
        """uint64 [n]: observations in the state behind each prediction."""
        self.surprise: Floats = columns.surprises.astype(np.float64)
        """float64 [n]: -log p of each observation under the prediction before it, in nats; NaN where none."""

    def __len__(self) -> int:
        return len(self._columns)

    def __iter__(self) -> Iterator[_Item]:
        return (self._row(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        rows = range(len(self))[index]
        return [self._row(row) for row in rows] if isinstance(rows, range) else self._row(rows)

    def _row(self, row: int) -> _Item:
        raise NotImplementedError


class WordPredictions(_Rows[WordPrediction]):
    """A column of word predictions: indexing gives a WordPrediction, the attributes are arrays."""

    def __init__(self, columns: Columns, vocabulary: Vocabulary) -> None:
        super().__init__(columns)
        self._vocabulary = vocabulary
        self.top_tokens: NDArray[np.int32] = columns.top_tokens
        """int32 [n, k]: tokens of the most probable next words, best first."""
        self.top_probabilities: NDArray[np.float32] = columns.top_probabilities
        """float32 [n, k]."""

    @cached_property
    def top_words(self) -> NDArray[np.object_]:
        """object [n, k]: the most probable next words, best first; None in rows without an answer."""
        words = self._vocabulary.table[np.maximum(self.top_tokens, 0)]
        words[self.top_tokens < 0] = None
        return words

    def _row(self, row: int) -> WordPrediction:
        return word_prediction(self._columns, row, self._vocabulary)


class _Distributions(_Rows[_Item]):
    """Rows that are distributions of values."""

    location: Floats
    scale: Floats
    degrees_of_freedom: Floats

    @property
    def mean(self) -> Floats:
        """The expected next values."""
        return self.location

    @cached_property
    def _interval_90(self) -> tuple[Floats, Floats]:
        return self.interval(0.9)

    @property
    def lower(self) -> Floats:
        """Lower bounds of the central 90 % intervals."""
        return self._interval_90[0]

    @property
    def upper(self) -> Floats:
        """Upper bounds of the central 90 % intervals."""
        return self._interval_90[1]

    def quantile(self, p: float) -> Floats:
        """The values that the next ones stay below with probability `p`, 0 < p < 1."""
        return self.location + self.scale * student_t.quantile(p, self.degrees_of_freedom)

    def interval(self, level: float = 0.9) -> tuple[Floats, Floats]:
        """Bounds of the central intervals that hold the next values with probability `level`."""
        reach = self.scale * student_t.half_width(level, self.degrees_of_freedom)
        return self.location - reach, self.location + reach


class ValuePredictions(_Distributions[ValuePrediction]):
    """A column of value predictions: indexing gives a ValuePrediction, the attributes are arrays.

    The arrays are [n] for models with one target and [n, targets] for others.
    """

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        self.location = _squeezed(columns.locations)
        self.scale = _squeezed(columns.scales)
        self.degrees_of_freedom = _squeezed(columns.degrees_of_freedom).astype(np.float64)

    def _row(self, row: int) -> ValuePrediction:
        return value_prediction(self._columns, row)


class ForecastPredictions(_Distributions[ForecastPrediction]):
    """A column of forecasts: indexing gives a ForecastPrediction, the attributes are arrays.

    The arrays are [n, horizon] for models with one target and [n, horizon, targets] for others.
    """

    def __init__(self, columns: Columns, horizon: int) -> None:
        super().__init__(columns)
        self._horizon = horizon
        self.location, self.scale, self.degrees_of_freedom = _ahead(columns, horizon)

    def _row(self, row: int) -> ForecastPrediction:
        return forecast_prediction(self._columns, row, self._horizon)


class NotePredictions(_Rows[NotePrediction]):
    """A column of note predictions: indexing gives a NotePrediction, the attributes are arrays."""

    def __init__(self, columns: Columns, notes: range) -> None:
        super().__init__(columns)
        self._notes = notes
        self.probabilities: NDArray[np.float32] = columns.probabilities
        """float32 [n, notes]: that each of the model's notes sounds."""

    def _row(self, row: int) -> NotePrediction:
        return note_prediction(self._columns, row, self._notes)


class LabelPredictions(_Rows[LabelPrediction]):
    """A column of labels: indexing gives a LabelPrediction, the attributes are arrays. No surprise is known (NaN)."""

    def __init__(self, columns: Columns, names: Sequence[str]) -> None:
        super().__init__(columns)
        self.names = tuple(names)
        """The model's labels."""
        self.probabilities: NDArray[np.float32] = columns.probabilities
        """float32 [n, labels]: of each of them."""

    @cached_property
    def labels(self) -> NDArray[np.object_]:
        """object [n]: the most probable labels; None in rows without an answer."""
        labels: NDArray[np.object_] = np.array(self.names, dtype=object)[
            np.nan_to_num(self.probabilities).argmax(axis=1)
        ]
        labels[np.isnan(self.probabilities).any(axis=1)] = None
        return labels

    def _row(self, row: int) -> LabelPrediction:
        return label_prediction(self._columns, row, self.names)


Predictions = WordPredictions | ValuePredictions | ForecastPredictions | NotePredictions | LabelPredictions


class FleetWordPredictions(WordPredictions):
    """Word predictions of a fleet, row i for id i; `errors` has what went wrong, by id."""

    def __init__(
        self, columns: Columns, vocabulary: Vocabulary, errors: dict[Any, HiddenstateError] | None = None
    ) -> None:
        super().__init__(columns, vocabulary)
        self.errors = errors or {}


class FleetPredictions(ValuePredictions):
    """Value predictions of a fleet, row i for id i; `errors` has what went wrong, by id."""

    def __init__(self, columns: Columns, errors: dict[Any, HiddenstateError] | None = None) -> None:
        super().__init__(columns)
        self.errors = errors or {}


class FleetForecastPredictions(ForecastPredictions):
    """Forecasts of a fleet, row i for id i; `errors` has what went wrong, by id."""

    def __init__(self, columns: Columns, horizon: int, errors: dict[Any, HiddenstateError] | None = None) -> None:
        super().__init__(columns, horizon)
        self.errors = errors or {}


class FleetNotePredictions(NotePredictions):
    """Note predictions of a fleet, row i for id i; `errors` has what went wrong, by id."""

    def __init__(self, columns: Columns, notes: range, errors: dict[Any, HiddenstateError] | None = None) -> None:
        super().__init__(columns, notes)
        self.errors = errors or {}


class FleetLabelPredictions(LabelPredictions):
    """Labels of a fleet, row i for id i; `errors` has what went wrong, by id."""

    def __init__(
        self, columns: Columns, names: Sequence[str], errors: dict[Any, HiddenstateError] | None = None
    ) -> None:
        super().__init__(columns, names)
        self.errors = errors or {}


FleetAnswers = (
    FleetWordPredictions | FleetPredictions | FleetForecastPredictions | FleetNotePredictions | FleetLabelPredictions
)


def word_prediction(columns: Columns, row: int, vocabulary: Vocabulary) -> WordPrediction:
    """Row `row` of `columns` as an object."""
    tokens = columns.top_tokens[row].tolist()
    probabilities = columns.top_probabilities[row].tolist()
    return WordPrediction(
        top=[(vocabulary.words[token], p) for token, p in zip(tokens, probabilities, strict=True) if token >= 0],
        surprise=columns.surprises.item(row),
        step=columns.steps.item(row),
    )


def value_prediction(columns: Columns, row: int) -> ValuePrediction:
    """Row `row` of `columns` as an object."""
    if columns.locations.shape[1] == 1:
        # One by one out of the columns, since this is done for every observation.
        return ValuePrediction(
            columns.locations.item(row),
            columns.scales.item(row),
            columns.degrees_of_freedom.item(row),
            columns.surprises.item(row),
            columns.steps.item(row),
        )
    return ValuePrediction(
        location=_plain(columns.locations[row]),
        scale=_plain(columns.scales[row]),
        degrees_of_freedom=_plain(columns.degrees_of_freedom[row]),
        surprise=float(columns.surprises[row]),
        step=int(columns.steps[row]),
    )


def forecast_prediction(columns: Columns, row: int, horizon: int) -> ForecastPrediction:
    """Row `row` of `columns` as an object."""
    location, scale, freedom = (field[0] for field in _ahead(columns.take(np.array([row])), horizon))
    return ForecastPrediction(location, scale, freedom, float(columns.surprises[row]), int(columns.steps[row]))


def _ahead(columns: Columns, horizon: int) -> list[Floats]:
    """Location, scale and degrees of freedom, [n, horizon] with one target, else [n, horizon, targets]."""
    fields = (columns.locations, columns.scales, columns.degrees_of_freedom)
    tables = [field.reshape(len(columns), horizon, -1).astype(np.float64) for field in fields]
    return [table[..., 0] if table.shape[2] == 1 else table for table in tables]


def note_prediction(columns: Columns, row: int, notes: range) -> NotePrediction:
    """Row `row` of `columns` as an object."""
    return NotePrediction(
        probabilities=dict(zip(notes, columns.probabilities[row].tolist(), strict=True)),
        surprise=float(columns.surprises[row]),
        step=int(columns.steps[row]),
    )


def label_prediction(columns: Columns, row: int, names: Sequence[str]) -> LabelPrediction:
    """Row `row` of `columns` as an object."""
    return LabelPrediction(
        probabilities=dict(zip(names, columns.probabilities[row].tolist(), strict=True)),
        step=int(columns.steps[row]),
    )


def _plain(values: Any) -> Value:
    """A float where there is one target, else the array."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.reshape(())) if array.size == 1 else array


def _squeezed(table: NDArray[Any]) -> NDArray[Any]:
    return table[:, 0] if table.shape[1] == 1 else table
