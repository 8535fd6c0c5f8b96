"""One free-running continuation: its own copy of a session's state, what it draws, and what is not yet sent of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.errors import InputInvalid, ServerError
from hiddenstate_server.generation.sampling import UNIFORMS_PER_VALUE, WordSampling, draw_notes, draw_values, draw_word
from hiddenstate_server.runtimes import (
    DoubleArray,
    FloatArray,
    InputArray,
    Outputs,
    ProbabilityOutputs,
    ValueOutputs,
    WordOutputs,
    each_column,
    write_rows,
)

if TYPE_CHECKING:
    from hiddenstate_server.generation.generating import Generating
    from hiddenstate_server.stepping.model import ServedModel
    from hiddenstate_server.stepping.streams import Stream

_READING_COST = 4
"""Reading a state with the output layer, and drawing from 10,000 words, cost about three steps more."""


class Asked(NamedTuple):
    """Whose continuation it is, and of what."""

    stream: Stream
    model: ServedModel
    handle: int
    call: int


class Continuation(ABC):
    """A step at a time: `draw` from what is predicted, then feed `inputs` to all `rows`, possibly in parts."""

    rows = 1
    """Rows it steps."""
    turn_cost = 1
    """What a step of one of its rows costs, in rows of an ordinary step."""
    reads_state = False
    """Draws from the whole prediction its state holds, not from the outputs of its last step."""

    def __init__(self, asked: Asked, owner: Generating, count: int, seed: int | None) -> None:
        self.stream, self.model, self.handle, self.call = asked
        self.left = count
        """Steps still to draw."""
        self.fed = 0
        """Rows that have been stepped with the last draw; 0 when all have."""
        self.started = False
        """Its turn in the session's chain has come."""
        self.unsent = 0
        """Bytes drawn and not taken by the stream."""
        self.states: FloatArray
        self.outputs: Outputs
        self.inputs: InputArray
        self._owner = owner
        self._random = np.random.default_rng(seed)

    def start(self, outputs: Outputs, state: FloatArray) -> None:
        """Copies one row of outputs and state, [1, ...]: where the session is."""
        rows = np.zeros(self.rows, np.int64)
        self.states = state[rows]
        self.outputs = each_column(outputs, itemgetter(rows))
        self.started = True

    def move_to(self, model: ServedModel, translated: Callable[[InputArray], InputArray]) -> None:  # noqa: ARG002
        """Its session has moved to another version before its turn came; `translated` maps the tokens."""
        self.model = model

    def stepped(self, outputs: Outputs, states: FloatArray) -> None:
        """The next rows have been stepped, [n, ...]."""
        places = np.arange(self.fed, self.fed + len(states))
        self.states[places] = states
        write_rows(self.outputs, places, outputs)
        self.fed = (self.fed + len(states)) % self.rows

    def abandon(self, error: ServerError) -> None:
        """Ends it before it is done, and says why."""
        self._owner.fail(self, error)

    def piece(self) -> pb.Generated:
        """What is to be sent, for the stream that takes it."""
        message = pb.Generated(handle=self.handle, call=self.call, done=self.left == 0)
        self._fill(message)
        self.unsent = 0
        self._owner.taken(self)
        return message

    @abstractmethod
    def draw(self, log_probabilities: FloatArray | None) -> None:
        """Takes the next value or word; from [vocabulary] if it reads its state."""

    @abstractmethod
    def _fill(self, message: pb.Generated) -> None:
        """Moves what has been drawn into a message."""


class WordContinuation(Continuation):
    """Words, one after the other."""

    outputs: WordOutputs

    def __init__(
        self,
        asked: Asked,
        owner: Generating,
        *,
        count: int,
        seed: int | None,
        sampling: WordSampling,
        stop: Collection[int],
        vocabulary: Sequence[str],
    ) -> None:
        """`vocabulary` is empty unless words are to be sent beside tokens."""
        super().__init__(asked, owner, count, seed)
        self._sampling = sampling
        self.reads_state = not sampling.greedy
        self.turn_cost = _READING_COST if self.reads_state else 1
        self._stop = frozenset(stop)
        self._vocabulary = vocabulary
        self._tokens: list[int] = []
        self._probabilities: list[float] = []

    def move_to(self, model: ServedModel, translated: Callable[[InputArray], InputArray]) -> None:
        """As for any continuation; it stops at the same words."""
        super().move_to(model, translated)
        assert model.info.text is not None
        self._stop = frozenset(translated(np.array(list(self._stop), np.int64)).tolist())
        self._vocabulary = model.info.text.vocabulary if self._vocabulary else ()

    def draw(self, log_probabilities: FloatArray | None) -> None:
        """Takes the next word: the most probable one, or one out of [vocabulary]."""
        if log_probabilities is None:
            token = int(self.outputs.top_tokens[0, 0])
            probability = float(self.outputs.top_probabilities[0, 0])
        else:
            token = draw_word(log_probabilities, self._sampling, self._random.random())
            probability = float(np.exp(log_probabilities[token]))
        self.inputs = np.array([token])
        self._tokens.append(token)
        self._probabilities.append(probability)
        self.unsent += 8
        self.left = 0 if token in self._stop else self.left - 1

    def _fill(self, message: pb.Generated) -> None:
        message.tokens = np.array(self._tokens, "<i4").tobytes()
        message.probabilities = np.array(self._probabilities, "<f4").tobytes()
        if self._vocabulary:
            message.words.extend(self._vocabulary[token] for token in self._tokens)
        self._tokens, self._probabilities = [], []


class ValueContinuation(Continuation):
    """Values: paths side by side, each of all columns."""

    outputs: ValueOutputs

    def __init__(
        self,
        asked: Asked,
        owner: Generating,
        *,
        count: int,
        seed: int | None,
        paths: int,
        temperature: float,
        quantiles: Sequence[float],
    ) -> None:
        """`quantiles` are answered instead of the paths, if there are any."""
        super().__init__(asked, owner, count, seed)
        self.rows = paths
        self._temperature = temperature
        self._quantiles = quantiles
        self._places = np.argsort(asked.model.info.targets)
        self._values: list[bytes] = []

    def start(self, outputs: Outputs, state: FloatArray) -> None:
        """As above; InputInvalid where nothing is predicted yet."""
        super().start(outputs, state)
        if np.isnan(self.outputs.locations).all():
            raise InputInvalid("nothing is predicted before the first value; send an observation first")

    def draw(self, _log_probabilities: FloatArray | None) -> None:
        """Takes the next value of every path."""
        next_step = self.outputs
        if next_step.locations.ndim == 3:  # several steps ahead
            surprises, locations, scales, freedom = next_step
            next_step = ValueOutputs(surprises, locations[:, 0], scales[:, 0], freedom[:, 0])
        shape = (*next_step.locations.shape, UNIFORMS_PER_VALUE)
        values = draw_values(next_step, self._temperature, self._random.random(shape))
        self.inputs = values[:, self._places]
        told: DoubleArray = np.quantile(values, self._quantiles, axis=0) if self._quantiles else values
        self._values.append(told.astype("<f8", copy=False).tobytes())
        self.unsent += len(self._values[-1])
        self.left -= 1

    def _fill(self, message: pb.Generated) -> None:
        message.values = b"".join(self._values)
        self._values = []


class NoteContinuation(Continuation):
    """Frames of notes, one after the other."""

    outputs: ProbabilityOutputs

    def __init__(self, asked: Asked, owner: Generating, *, count: int, seed: int | None, temperature: float) -> None:
        super().__init__(asked, owner, count, seed)
        self._temperature = temperature
        self._frames: list[bytes] = []

    def draw(self, _log_probabilities: FloatArray | None) -> None:
        """Takes the next frame."""
        probabilities = self.outputs.probabilities
        self.inputs = draw_notes(probabilities, self._temperature, self._random.random(probabilities.shape))
        self._frames.append(self.inputs.astype("<f8", copy=False).tobytes())
        self.unsent += len(self._frames[-1])
        self.left -= 1

    def _fill(self, message: pb.Generated) -> None:
        message.values = b"".join(self._frames)
        self._frames = []
