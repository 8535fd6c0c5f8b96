"""ONNX Runtime on the CPU, one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hiddenstate_server.runtimes import (
    FloatArray,
    InputArray,
    Outputs,
    ProbabilityOutputs,
    ValueOutputs,
    WordOutputs,
    each_column,
)
from hiddenstate_server.runtimes.head import WordHead


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session that computes in the caller's thread: more threads beside a busy event loop cost, not gain."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Graphs:
    """A model's graphs of one step and, where it has one, of a sequence of them."""

    def __init__(self, step: Path, sequence: Path | None, outputs: Sequence[str]) -> None:
        self._step = open_session(step)
        self._sequence = None if sequence is None else open_session(sequence)
        self._names = [*outputs, "next_states"]

    @property
    def has_sequence(self) -> bool:
        """Whether `run` can be called."""
        return self._sequence is not None

    def step(self, feed: Mapping[str, InputArray]) -> list[Any]:
        """The columns of outputs and the next states."""
        found: list[Any] = self._step.run(self._names, feed)
        return found

    def run(self, feed: Mapping[str, InputArray]) -> list[Any]:
        """The same of inputs of one row after each other."""
        assert self._sequence is not None
        found: list[Any] = self._sequence.run(self._names, feed)
        return found


class OnnxWords:
    """The graphs of a next-word model."""

    def __init__(
        self,
        step: Path,
        sequence: Path | None,
        head: WordHead,
        *,
        state_size: int,
        top_k: int,
        end_token: int,
        precision: str,
    ) -> None:
        self.state_size = state_size
        self.log_probabilities = head.log_probabilities
        self.description = f"onnxruntime cpu {precision}"
        self._graphs = Graphs(step, sequence, WordOutputs._fields)
        self.makes_runs = self._graphs.has_sequence
        self._k = np.array([top_k], np.int64)
        self._end_token = end_token

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n]."""
        *columns, next_states = self._graphs.step({"tokens": inputs, "states": states, "k": self._k})
        return WordOutputs(*columns), next_states

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n]."""
        *columns, next_state = self._graphs.run({"tokens": inputs, "states": state, "k": self._k})
        return WordOutputs(*columns), next_state

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after the end of a document, so that there is a prediction before the first word."""
        outputs, state = self.step(np.array([self._end_token]), np.zeros((1, self.state_size), np.float32))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state


class OnnxValues:
    """The graphs of a next-value or forecasting model."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, columns: int, precision: str) -> None:
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self._graphs = Graphs(step, sequence, ValueOutputs._fields)
        self.makes_runs = self._graphs.has_sequence
        self._columns = columns

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Values float64 [n, columns]."""
        *columns, next_states = self._graphs.step({"values": inputs, "states": states})
        return ValueOutputs(*columns), next_states

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """Values float64 [n, columns]."""
        *columns, next_state = self._graphs.run({"values": inputs, "states": state})
        return ValueOutputs(*columns), next_state

    def initial(self) -> tuple[Outputs, FloatArray]:
        """A row of zeros, and no prediction (NaN) before the first value."""
        state = np.zeros((1, self.state_size), np.float32)
        outputs, _ = self.step(np.zeros((1, self._columns)), state)
        return each_column(outputs, lambda column: np.full_like(column, np.nan)), state


class OnnxLabels:
    """The graphs of a model that labels text."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, end_token: int, precision: str) -> None:
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self._graphs = Graphs(step, sequence, ["probabilities"])
        self.makes_runs = self._graphs.has_sequence
        self._end_token = end_token

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n]."""
        probabilities, next_states = self._graphs.step({"tokens": inputs, "states": states})
        return ProbabilityOutputs(np.full(len(inputs), np.nan, np.float32), probabilities), next_states

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n]."""
        probabilities, next_state = self._graphs.run({"tokens": inputs, "states": state})
        return ProbabilityOutputs(np.full(len(inputs), np.nan, np.float32), probabilities), next_state

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after the end of a sentence, which every sentence begins with."""
        return self.step(np.array([self._end_token]), np.zeros((1, self.state_size), np.float32))


class OnnxNotes:
    """The graphs of a music model."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, notes: int, precision: str) -> None:
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self._graphs = Graphs(step, sequence, ProbabilityOutputs._fields)
        self.makes_runs = self._graphs.has_sequence
        self._notes = notes

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Frames float64 [n, notes] of 0 and 1."""
        *columns, next_states = self._graphs.step({"values": inputs, "states": states})
        return ProbabilityOutputs(*columns), next_states

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """Frames float64 [n, notes] of 0 and 1."""
        *columns, next_state = self._graphs.run({"values": inputs, "states": state})
        return ProbabilityOutputs(*columns), next_state

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after a silent frame, so that there is a prediction before the first one."""
        outputs, state = self.step(np.zeros((1, self._notes)), np.zeros((1, self.state_size), np.float32))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state
