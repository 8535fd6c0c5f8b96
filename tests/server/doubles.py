"""A small model without ONNX, and a clock that stands still, for tests of what surrounds the arithmetic."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.server.wire import Replies

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.runtimes import FloatArray, InputArray, Outputs, ValueOutputs, WordOutputs
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.stepping.model import ModelInfo, ServedModel, TextInfo
from hiddenstate_server.stepping.streams import Stream

VOCABULARY = ("<unk>", "<eos>", *(f"word{i}" for i in range(18)))
STATE_SIZE = 6
LONGER = int(os.environ.get("INTERLEAVINGS", "1"))
"""How many times more random interleavings are tried than in a quick run."""


class StepByStep:
    """Runs made of steps."""

    makes_runs = True

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        raise NotImplementedError

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        rows = []
        for value in inputs:
            outputs, state = self.step(np.array([value]), state)
            rows.append(outputs)
        columns: Any = zip(*rows, strict=True)
        joined: list[Any] = [np.concatenate(column) for column in columns]
        return type(rows[0])(*joined), state


class MixingWords(StepByStep):
    """Every output depends on the whole history of its own row, and on nothing else."""

    state_size = STATE_SIZE
    description = "test double"

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.recurrent = rng.normal(0, 0.7, (STATE_SIZE, STATE_SIZE)).astype(np.float32)
        self.embedding = rng.normal(0, 1, (len(VOCABULARY), STATE_SIZE)).astype(np.float32)
        self.fail = False
        self.batches: list[int] = []

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        if self.fail:
            raise RuntimeError("the double was told to fail")
        self.batches.append(len(inputs))
        # einsum sums each row alike whatever the number of rows, which BLAS does not promise.
        states = np.tanh(np.einsum("ni,ij->nj", states, self.recurrent) + self.embedding[inputs])
        scores = np.einsum("ni,vi->nv", states, self.embedding)
        top = np.argsort(-scores, axis=1, kind="stable")[:, :3].astype(np.int32)
        best = np.take_along_axis(scores, top, axis=1)
        return WordOutputs(states.sum(axis=1), top, best), states

    def initial(self) -> tuple[Outputs, FloatArray]:
        return self.step(np.array([1]), np.zeros((1, STATE_SIZE), np.float32))

    def log_probabilities(self, states: FloatArray) -> FloatArray:
        scores = np.einsum("ni,vi->nv", states, self.embedding)
        found: FloatArray = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
        return found


class RunningMean(StepByStep):
    """State: sum and count; location: the mean so far."""

    state_size = 2
    description = "test double"

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        states = states + np.stack([np.nansum(inputs, axis=1), np.ones(len(inputs))], axis=1).astype(np.float32)
        mean = (states[:, :1] / states[:, 1:]).astype(np.float64)
        ones = np.ones_like(mean)
        return ValueOutputs(states[:, 0].copy(), mean, ones, ones.astype(np.float32)), states

    def initial(self) -> tuple[Outputs, FloatArray]:
        nothing = np.full((1, 1), np.nan)
        zeros = np.zeros((1, 2), np.float32)
        return ValueOutputs(np.full(1, np.nan, np.float32), nothing, nothing, nothing.astype(np.float32)), zeros


WORDS = ModelInfo(
    name="words",
    version="1",
    task="next-word",
    description="test double",
    parameters=1,
    state_size=STATE_SIZE,
    text=TextInfo(VOCABULARY, {word: i for i, word in enumerate(VOCABULARY)}, True, 0, 1, r"\w+"),
)
VALUES = ModelInfo(
    name="values",
    version="1",
    task="next-value",
    description="test double",
    parameters=1,
    state_size=2,
    columns=("a", "b"),
    targets=(0,),
)


@dataclass
class Clock:
    """Monotonic seconds moved by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make_host(
    clock: Clock, *, max_batch: int = 8, max_run: int = 0, **limits: float
) -> tuple[Host, ServedModel, ServedModel]:
    """A host of both doubles, and its two models."""
    host = Host(Limits(**limits), Metrics("test"), clock)  # type: ignore[arg-type]
    words = host.add_model(WORDS, MixingWords(), max_batch, max_run)
    values = host.add_model(VALUES, RunningMean(), max_batch, max_run)
    return host, words, values


def drained(stream: Stream, replies: Replies | None = None, now: float = 0.0) -> Replies:
    """All that is ready to be sent to a stream, sent at second `now` and added to `replies`."""
    replies = Replies() if replies is None else replies
    while stream.unsent:
        reply, parts, rows = stream.take()
        stream.sent(parts, rows, now)
        replies.add(pb.StreamResponse.FromString(reply))
    return replies
