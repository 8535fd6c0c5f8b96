"""Between what people hold (words, numbers, rows) and the columns that models take and give."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hiddenstate.calls import Generating, Piece, Recipe
from hiddenstate.columns import Columns
from hiddenstate.descriptions import Model, Vocabulary, vocabulary_of
from hiddenstate.errors import HiddenstateError, InvalidInput
from hiddenstate.predictions import (
    FleetForecastPredictions,
    FleetLabelPredictions,
    FleetNotePredictions,
    FleetPredictions,
    FleetWordPredictions,
    ForecastPrediction,
    ForecastPredictions,
    Frame,
    GeneratedWord,
    LabelPrediction,
    LabelPredictions,
    NotePrediction,
    NotePredictions,
    TaggedWord,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
    forecast_prediction,
    label_prediction,
    note_prediction,
    value_prediction,
    word_prediction,
)

Value = float | None
Row = Sequence[Value] | NDArray[Any] | Mapping[str, Value]
Notes = Set[int]
Values = NDArray[Any] | Sequence[Value] | Sequence[Row]
Ids = Sequence[Any] | NDArray[Any]
Tokens = Sequence[str] | NDArray[np.integer]
Floats = NDArray[np.floating]
Inputs = NDArray[Any]
Errors = dict[Any, HiddenstateError]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be generated."""

    count: int
    seed: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop: str | Sequence[str]
    paths: int | None
    quantiles: Sequence[float] | None
    commit: bool

    @staticmethod
    def of(
        count: int,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
        stop: str | Sequence[str],
        paths: int | None,
        quantiles: Sequence[float] | None,
        commit: bool,
    ) -> Wanted:
        """Draws the seed where there is none, so that the same can be asked for again when a connection breaks."""
        if count < 1:
            raise InvalidInput(f"at least one step is generated, not {count}")
        drawn = random.getrandbits(64) if seed is None else seed
        if not 0 <= drawn < 2**64:
            raise InvalidInput(f"a seed goes from 0 to 2**64 - 1, not {seed}")
        return Wanted(count, drawn, temperature, top_k, top_p, stop, paths, quantiles, commit)

    @property
    def one_path(self) -> bool:
        """Whether each step is one value, not several or a summary of several."""
        return self.paths is None and self.quantiles is None


class _TextCodec:
    """Words and texts in, tokens int32 [n] on the wire."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def plain(self, text: object) -> int | None:
        """The token of a word that the model knows whole; None where it takes `one`."""
        return self._vocabulary.known(text) if isinstance(text, str) else None

    def one(self, text: object) -> Inputs:
        """A word the model knows whole, or the words of a text; at least one."""
        if not isinstance(text, str):
            raise InvalidInput(f"this model takes words, not {type(text).__name__}")
        words = [text] if text in self._vocabulary else self._vocabulary.split(text)
        if not words:
            raise InvalidInput(f"there is no word in {text!r}")
        return self._vocabulary.tokens(words)

    def many(self, items: Any) -> Inputs:
        """The words of a text, or words one by one (each looked up whole), or tokens."""
        if isinstance(items, str):
            return self._vocabulary.tokens(self._vocabulary.split(items))
        if isinstance(items, np.ndarray) and items.dtype.kind in "iu":
            return self._checked(items)
        words = list(items)
        if not all(isinstance(word, str) for word in words):
            raise InvalidInput("this model takes words (or an integer array of tokens)")
        return self._vocabulary.tokens(words)

    def _checked(self, tokens: NDArray[Any]) -> Inputs:
        if tokens.ndim != 1:
            raise InvalidInput(f"tokens come as a column [n], not in shape {list(tokens.shape)}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self._vocabulary.words):
            raise InvalidInput(f"tokens go from 0 to {len(self._vocabulary.words) - 1} in this model")
        return tokens.astype(np.int32)


class WordCodec(_TextCodec):
    """For next-word models."""

    def generating(self, handle: int, wanted: Wanted) -> Generating:
        """The call that generates what is `wanted`."""
        if wanted.paths is not None or wanted.quantiles is not None:
            raise InvalidInput("this model generates words; paths and quantiles are for models of values")
        stop = [wanted.stop] if isinstance(wanted.stop, str) else list(wanted.stop)
        if unknown := [word for word in stop if word not in self._vocabulary]:
            raise InvalidInput(f"the model does not know {unknown[0]!r}, so that it cannot stop there")
        tokens = tuple(self._vocabulary.tokens(stop).tolist())
        return Generating(
            handle,
            Recipe(wanted.count, wanted.seed, wanted.temperature, wanted.top_k or 0, wanted.top_p, stop_tokens=tokens),
            shape=(1, 1),
        )

    def generated(self, piece: Piece, _: Wanted) -> list[GeneratedWord]:
        """One a step."""
        words = self._vocabulary.words
        pairs = zip(piece.tokens.tolist(), piece.probabilities.tolist(), strict=True)
        return [GeneratedWord(words[token], probability) for token, probability in pairs]

    def again(self, generated: Sequence[Any]) -> Inputs:
        """What was generated, to be observed."""
        return self._vocabulary.tokens([item.word for item in generated])

    def prediction(self, columns: Columns) -> WordPrediction:
        """After the last row; its surprise is that of all rows together."""
        last = self.prediction_at(columns, -1)
        if len(columns) == 1:
            return last
        return WordPrediction(last.top, float(columns.surprises.sum(dtype=np.float64)), last.step)

    def prediction_at(self, columns: Columns, row: int) -> WordPrediction:
        """After one row."""
        return word_prediction(columns, row, self._vocabulary)

    def predictions(self, columns: Columns) -> WordPredictions:
        """One a row."""
        return WordPredictions(columns, self._vocabulary)

    def fleet_predictions(self, columns: Columns, errors: Errors) -> FleetWordPredictions:
        """One a row, with what went wrong by id."""
        return FleetWordPredictions(columns, self._vocabulary, errors)


class LabelCodec(_TextCodec):
    """For models of labels."""

    def __init__(self, vocabulary: Vocabulary, names: Sequence[str], look_ahead: int) -> None:
        super().__init__(vocabulary)
        self._names = tuple(names)
        self._look_ahead = look_ahead

    def generating(self, _handle: int, _wanted: Wanted) -> Generating:
        """There is nothing to go on with."""
        raise InvalidInput("this model labels what it reads; it generates nothing")

    def generated(self, _piece: Piece, _wanted: Wanted) -> list[Any]:
        """Never asked for, since `generating` refuses."""
        raise NotImplementedError

    def again(self, _generated: Sequence[Any]) -> Inputs:
        """Never asked for, since `generating` refuses."""
        raise NotImplementedError

    def sentence(self, words: Any) -> tuple[list[str], Inputs]:
        """A sentence's words, and what is observed of it: they, and as many end tokens as the model looks ahead."""
        if isinstance(words, str):
            words = self._vocabulary.split(words)
        words = list(words)
        ends = np.full(self._look_ahead, self._vocabulary.end_token, np.int32)
        return words, np.concatenate([self.many(words), ends])

    def tagged(self, words: Sequence[str], columns: Columns) -> list[TaggedWord]:
        """The words with their labels, from the answers to what `sentence` gave."""
        probabilities = columns.probabilities[self._look_ahead :]
        best = probabilities.argmax(axis=1)
        pairs = zip(words, best.tolist(), probabilities[np.arange(len(words)), best].tolist(), strict=True)
        return [TaggedWord(word, self._names[label], probability) for word, label, probability in pairs]

    def prediction(self, columns: Columns) -> LabelPrediction:
        """After the last row."""
        return self.prediction_at(columns, -1)

    def prediction_at(self, columns: Columns, row: int) -> LabelPrediction:
        """After one row."""
        return label_prediction(columns, row, self._names)

    def predictions(self, columns: Columns) -> LabelPredictions:
        """One a row."""
        return LabelPredictions(columns, self._names)

    def fleet_predictions(self, columns: Columns, errors: Errors) -> FleetLabelPredictions:
        """One a row, with what went wrong by id."""
        return FleetLabelPredictions(columns, self._names, errors)


class _Series:
    """Numbers or rows in, values float64 [n, columns] on the wire; None and NaN are missing."""

    def __init__(self, columns: Sequence[str], targets: Sequence[int]) -> None:
        self._names = tuple(columns)
        self._width = len(columns)
        self._targets = tuple(targets)

    def plain(self, value: object) -> float | None:
        """A number that is all of an observation; None where it takes `one`."""
        if self._width == 1 and isinstance(value, float | int) and not abs(value) > sys.float_info.max:
            return float(value)
        return None

    def one(self, value: object) -> Inputs:
        """A number, a row in the order of the model's columns, or a mapping by column name."""
        if isinstance(value, Mapping):
            unknown = set(value) - set(self._names)
            if unknown:
                raise InvalidInput(
                    f"there is no column {', '.join(sorted(map(str, unknown)))}; "
                    f"the model's columns are {', '.join(self._names)}"
                )
            value = [value.get(name, math.nan) for name in self._names]
        row = _floats(value)
        if row.size != self._width or row.ndim > 1:
            raise InvalidInput(self._wanted(f"{row.size} values"))
        return _finite(row.reshape(1, self._width))

    def many(self, items: Any) -> Inputs:
        """A column [n] (one input column) or a table [n, columns]."""
        if not isinstance(items, np.ndarray | Sequence) and isinstance(items, Iterable):
            items = list(items)
        table = _floats(items)
        if table.ndim == 1 and self._width == 1:
            table = table[:, None]
        if table.ndim != 2 or table.shape[1] != self._width:
            raise InvalidInput(self._wanted(f"an array of shape {list(table.shape)}"))
        return _finite(table)

    def _wanted(self, given: str) -> str:
        return f"this model takes {self._width} value(s) per observation ({', '.join(self._names)}), not {given}"

    def generating(self, handle: int, wanted: Wanted) -> Generating:
        """The call that generates what is `wanted`."""
        if wanted.top_k is not None or wanted.top_p is not None or wanted.stop:
            raise InvalidInput("this model generates values; top_k, top_p and stop are for models of words")
        if wanted.commit and not wanted.one_path:
            raise InvalidInput("only a single path can be committed; leave out paths and quantiles")
        if wanted.commit and len(self._targets) < self._width:
            raise InvalidInput(f"to commit takes all {self._width} columns; the model predicts {len(self._targets)}")
        quantiles = tuple(wanted.quantiles or ())
        return Generating(
            handle,
            Recipe(wanted.count, wanted.seed, wanted.temperature, paths=wanted.paths or 0, quantiles=quantiles),
            shape=(len(quantiles) or wanted.paths or 1, len(self._targets)),
        )

    def generated(self, piece: Piece, wanted: Wanted) -> list[Any]:
        """One a step: float64 [paths or quantiles, targets], without axes that say nothing."""
        values = piece.values[..., 0] if piece.values.shape[2] == 1 else piece.values
        if wanted.one_path:
            values = values[:, 0]
        return values.tolist() if values.ndim == 1 else list(values)

    def again(self, generated: Sequence[Any]) -> Inputs:
        """What was generated, to be observed."""
        rows = np.empty((len(generated), self._width))
        rows[:, self._targets] = np.asarray(generated, np.float64).reshape(len(generated), -1)
        return rows


class ValueCodec(_Series):
    """For next-value models."""

    def prediction(self, columns: Columns) -> ValuePrediction:
        """After the last row."""
        return self.prediction_at(columns, -1)

    def prediction_at(self, columns: Columns, row: int) -> ValuePrediction:
        """After one row."""
        return value_prediction(columns, row)

    def predictions(self, columns: Columns) -> ValuePredictions:
        """One a row."""
        return ValuePredictions(columns)

    def fleet_predictions(self, columns: Columns, errors: Errors) -> FleetPredictions:
        """One a row, with what went wrong by id."""
        return FleetPredictions(columns, errors)


class ForecastCodec(_Series):
    """For forecasting models: as for next-value models, with answers several steps ahead."""

    def __init__(self, columns: Sequence[str], targets: Sequence[int], horizon: int) -> None:
        super().__init__(columns, targets)
        self._horizon = horizon

    def prediction(self, columns: Columns) -> ForecastPrediction:
        """After the last row."""
        return self.prediction_at(columns, -1)

    def prediction_at(self, columns: Columns, row: int) -> ForecastPrediction:
        """After one row."""
        return forecast_prediction(columns, row, self._horizon)

    def predictions(self, columns: Columns) -> ForecastPredictions:
        """One a row."""
        return ForecastPredictions(columns, self._horizon)

    def fleet_predictions(self, columns: Columns, errors: Errors) -> FleetForecastPredictions:
        """One a row, with what went wrong by id."""
        return FleetForecastPredictions(columns, self._horizon, errors)


class NoteCodec:
    """For music models: frames in, each the MIDI numbers that sound; float64 [n, notes] of 0 and 1 on the wire."""

    def __init__(self, notes: range) -> None:
        self._notes = notes

    def plain(self, _frame: object) -> None:
        """A frame is never one number."""

    def one(self, frame: object) -> Inputs:
        """MIDI numbers, or an array [notes] of 0 and 1."""
        if isinstance(frame, np.ndarray):
            return self._checked(frame[None])
        return self.many([frame])

    def many(self, items: Any) -> Inputs:
        """Frames one by one, or an array [n, notes] of 0 and 1."""
        if isinstance(items, np.ndarray):
            return self._checked(items)
        frames = list(items)
        rolls = np.zeros((len(frames), len(self._notes)))
        for roll, frame in zip(rolls, frames, strict=True):
            if isinstance(frame, str) or not isinstance(frame, Iterable):
                raise InvalidInput(f"this model takes frames, each the MIDI numbers of its notes, not {frame!r}")
            for note in frame:
                if note not in self._notes:
                    lowest, highest = self._notes[0], self._notes[-1]
                    raise InvalidInput(f"notes go from {lowest} to {highest} in this model; {note!r} is none of them")
                roll[self._notes.index(note)] = 1
        return rolls

    def _checked(self, rolls: NDArray[Any]) -> Inputs:
        if rolls.ndim != 2 or rolls.shape[1] != len(self._notes):
            raise InvalidInput(f"arrays of frames are [n, {len(self._notes)}] in this model, not {list(rolls.shape)}")
        if not np.isin(rolls, (0, 1)).all():
            raise InvalidInput("an array of frames holds nothing but 0 and 1")
        return rolls.astype(np.float64)

    def generating(self, handle: int, wanted: Wanted) -> Generating:
        """The call that generates what is `wanted`."""
        others = (wanted.top_k, wanted.top_p, wanted.paths, wanted.quantiles)
        if wanted.stop or any(other is not None for other in others):
            raise InvalidInput("this model generates notes, at a temperature and from a seed; leave the rest out")
        recipe = Recipe(wanted.count, wanted.seed, wanted.temperature)
        return Generating(handle, recipe, shape=(1, len(self._notes)))

    def generated(self, piece: Piece, _: Wanted) -> list[Frame]:
        """One a step."""
        return [frozenset(self._notes[i] for i in np.flatnonzero(frame)) for frame in piece.values[:, 0]]

    def again(self, generated: Sequence[Any]) -> Inputs:
        """What was generated, to be observed."""
        return self.many(generated)

    def prediction(self, columns: Columns) -> NotePrediction:
        """After the last row."""
        return self.prediction_at(columns, -1)

    def prediction_at(self, columns: Columns, row: int) -> NotePrediction:
        """After one row."""
        return note_prediction(columns, row, self._notes)

    def predictions(self, columns: Columns) -> NotePredictions:
        """One a row."""
        return NotePredictions(columns, self._notes)

    def fleet_predictions(self, columns: Columns, errors: Errors) -> FleetNotePredictions:
        """One a row, with what went wrong by id."""
        return FleetNotePredictions(columns, self._notes, errors)


Codec = WordCodec | ValueCodec | ForecastCodec | NoteCodec | LabelCodec


def codec_of(model: Model) -> Codec:
    """What suits the model."""
    if model.task == "next-word":
        return WordCodec(vocabulary_of(model))
    if model.task == "forecasting":
        return ForecastCodec(model.columns, model.targets, model.horizon)
    if model.vocabulary is not None and model.label_names:
        return LabelCodec(model.vocabulary, model.label_names, model.look_ahead)
    if model.task == "music":
        return NoteCodec(model.notes)
    return ValueCodec(model.columns, model.targets)


def _floats(values: ArrayLike | object) -> NDArray[np.float64]:
    if isinstance(values, str):
        raise InvalidInput("this model takes numbers, not text")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"this model takes numbers (None or NaN where missing): {error}") from error


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isinf(values).any():
        raise InvalidInput("a value is infinite; send None or NaN where a value is missing")
    return values
