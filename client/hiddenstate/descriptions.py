"""What a server says about its models and sessions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from hiddenstate import spelling
from hiddenstate.errors import InvalidInput, ServerError
from hiddenstate_proto import hiddenstate_pb2 as pb

Task = Literal["next-word", "next-value", "forecasting", "music", "classification", "tagging"]
Place = Literal["arena", "memory", "store"]
"""In a row ready for the next observation, packed on its way to the store, or in the store alone."""

_PLACES: dict[int, Place] = {
    pb.PLACE_UNSPECIFIED: "arena",
    pb.PLACE_ARENA: "arena",
    pb.PLACE_MEMORY: "memory",
    pb.PLACE_STORE: "store",
}


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model and how it finds them in a text."""

    words: tuple[str, ...]
    """By token. Empty in lists of models."""
    lowercase: bool
    unknown_token: int
    end_token: int
    """Ends a document or a line."""
    word_pattern: str
    top_k: int
    """Predictions an answer carries; 0 where it carries labels."""
    spelling_suffixes: tuple[int, ...] = ()
    """Lengths of the suffixes that tell unknown words apart; none: each is the unknown word."""

    def reads_like(self, other: Vocabulary) -> bool:
        """Whether texts and tokens mean the same to both."""
        return (self.words, self.lowercase, self.unknown_token, self.word_pattern, self.spelling_suffixes) == (
            other.words,
            other.lowercase,
            other.unknown_token,
            other.word_pattern,
            other.spelling_suffixes,
        )

    def split(self, text: str) -> list[str]:
        """The words of `text`, as the model sees them."""
        text = text.lower() if self.lowercase else text
        return [match.group() for match in self._pattern.finditer(text)]

    def known(self, word: str) -> int | None:
        """Token of a word that the model knows whole."""
        return self._tokens.get(word.lower() if self.lowercase else word)

    def token(self, word: str) -> int:
        """Token of one word; where the model does not know it, that of its spelling class or the unknown token."""
        known = self.known(word)
        if known is not None:
            return known
        word = word.lower() if self.lowercase else word
        names = spelling.classes(word, self.spelling_suffixes)
        return next((self._tokens[name] for name in names if name in self._tokens), self.unknown_token)

    def tokens(self, words: Iterable[str]) -> NDArray[np.int32]:
        """int32 [n]: the words' tokens."""
        return np.fromiter((self.token(word) for word in words), np.int32)

    def word(self, token: int) -> str:
        """Word of one token."""
        return self.words[token]

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.known(word) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.word_pattern)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}

    @cached_property
    def table(self) -> NDArray[np.object_]:
        """object [vocabulary]: the words, to be indexed with arrays of tokens."""
        return np.array(self.words, dtype=object)


@dataclass(frozen=True)
class Model:
    """A model that a server serves."""

    name: str
    version: str
    task: Task
    description: str
    parameters: int
    state_bytes: int
    """State a session takes."""
    live_sessions: int
    runtime: str
    vocabulary: Vocabulary | None
    """Of models that read words."""
    columns: tuple[str, ...]
    """Input columns of models of values."""
    targets: tuple[int, ...]
    """Indices of the columns that a model of values predicts."""
    horizon: int
    """Steps that a model of values predicts ahead."""
    notes: range
    """MIDI numbers of the notes that a music model reads and predicts."""
    label_names: tuple[str, ...] = ()
    """Of models of labels."""
    look_ahead: int = 0
    """Of tagging models: a word's label comes with the answer to the observation so many steps after it."""

    def reads_like(self, other: Model) -> bool:
        """Whether observations, and predictions, mean the same to both."""
        if (self.label_names, self.look_ahead) != (other.label_names, other.look_ahead):
            return False
        if self.vocabulary is None or other.vocabulary is None:
            return (self.vocabulary, self.columns, self.targets) == (other.vocabulary, other.columns, other.targets)
        return self.vocabulary.reads_like(other.vocabulary)

    @staticmethod
    def parse(message: pb.Model) -> Model:
        """From the wire."""
        tasks: dict[int, Task] = {
            pb.TASK_NEXT_WORD: "next-word",
            pb.TASK_NEXT_VALUE: "next-value",
            pb.TASK_FORECASTING: "forecasting",
            pb.TASK_MUSIC: "music",
            pb.TASK_CLASSIFICATION: "classification",
            pb.TASK_TAGGING: "tagging",
        }
        if message.task not in tasks:
            raise ServerError(f"model {message.name} has a task this SDK does not know; update hiddenstate")
        text = message.text
        return Model(
            name=message.name,
            version=message.version,
            task=tasks[message.task],
            description=message.description,
            parameters=message.parameters,
            state_bytes=message.state_bytes,
            live_sessions=message.live_sessions,
            runtime=message.runtime,
            vocabulary=Vocabulary(
                tuple(text.vocabulary),
                text.lowercase,
                text.unknown_token,
                text.end_token,
                text.word_pattern,
                text.top_k,
                tuple(text.spelling_suffixes),
            )
            if message.HasField("text")
            else None,
            columns=tuple(message.values.columns),
            targets=tuple(message.values.targets),
            horizon=message.values.horizon,
            notes=range(message.notes.lowest, message.notes.lowest + message.notes.count),
            label_names=tuple(message.labels.names),
            look_ahead=message.labels.look_ahead,
        )


@dataclass(frozen=True)
class SessionInfo:
    """A live session as the server sees it."""

    id: str
    model: str
    version: str
    step: int
    """Observations in its state."""
    created: datetime
    last_used: datetime
    idle_timeout: float
    """Seconds it may be idle."""
    expires: datetime
    """When it ends unless used before."""
    attached: bool
    """Whether a client's stream holds it."""
    labels: dict[str, str]
    place: Place
    bytes: int
    """What its state and history take."""
    durable_step: int
    """Up to which step it is safe in the store; 0 where nothing is."""
    rewinds: int
    """How many times it was rewound."""
    shadow: str
    """The version that is fed along; empty for none."""

    @staticmethod
    def parse(message: pb.Session) -> SessionInfo:
        """From the wire."""
        return SessionInfo(
            id=message.id,
            model=message.model,
            version=message.version,
            step=message.step,
            created=_time(message.create_time),
            last_used=_time(message.last_use_time),
            idle_timeout=message.idle_timeout.ToTimedelta().total_seconds(),
            expires=_time(message.expire_time),
            attached=message.attached,
            labels=dict(message.labels),
            place=_PLACES[message.place],
            bytes=message.bytes,
            durable_step=message.durable_step,
            rewinds=message.rewinds,
            shadow=message.shadow_version,
        )


@dataclass(frozen=True)
class Reloaded:
    """What a server did with the versions in its model folder, each named model/version."""

    loaded: tuple[str, ...]
    retired: tuple[str, ...]
    """Let go once their sessions have ended or moved."""
    refused: dict[str, str]
    """Why a bundle was refused; what was served before goes on."""


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def vocabulary_of(model: Model) -> Vocabulary:
    """The vocabulary of a next-word model; raises InvalidInput for any other."""
    if model.label_names:
        raise InvalidInput(f"{model.name} labels what it reads; it predicts no words")
    if model.vocabulary is None:
        what = "notes and takes frames of them" if model.task == "music" else "values and takes numbers"
        raise InvalidInput(f"{model.name} predicts {what}, not words")
    return model.vocabulary
