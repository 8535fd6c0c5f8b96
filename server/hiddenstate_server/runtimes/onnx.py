"""ONNX Runtime on the CPU, one thread."""

from __future__ import annotations

from pathlib import Path

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


class OnnxWords:
    """A next-word step graph."""

    def __init__(
        self, path: Path, head: WordHead, *, state_size: int, top_k: int, end_token: int, precision: str
    ) -> None:
        self.state_size = state_size
        self.log_probabilities = head.log_probabilities
        self.description = f"onnxruntime cpu {precision}"
        self._session = open_session(path)
        self._names = [*WordOutputs._fields, "next_states"]
        self._k = np.array([top_k], np.int64)
        self._end_token = end_token

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Tokens int64 [n]."""
        feed = {"tokens": inputs, "states": states, "k": self._k}
        *columns, next_states = self._session.run(self._names, feed)
        return WordOutputs(*columns), next_states

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after the end of a document, so that there is a prediction before the first word."""
        outputs, state = self.step(np.array([self._end_token]), np.zeros((1, self.state_size), np.float32))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state


class OnnxValues:
    """A next-value step graph."""

    def __init__(self, path: Path, *, state_size: int, columns: int, precision: str) -> None:
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self._session = open_session(path)
        self._names = [*ValueOutputs._fields, "next_states"]
        self._columns = columns

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Values float64 [n, columns]."""
        *columns, next_states = self._session.run(self._names, {"values": inputs, "states": states})
        return ValueOutputs(*columns), next_states

    def initial(self) -> tuple[Outputs, FloatArray]:
        """A row of zeros, and no prediction (NaN) before the first value."""
        state = np.zeros((1, self.state_size), np.float32)
        outputs, _ = self.step(np.zeros((1, self._columns)), state)
        return each_column(outputs, lambda column: np.full_like(column, np.nan)), state


class OnnxNotes:
    """A music step graph."""

    def __init__(self, path: Path, *, state_size: int, notes: int, precision: str) -> None:
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self._session = open_session(path)
        self._names = [*ProbabilityOutputs._fields, "next_states"]
        self._notes = notes

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Frames float64 [n, notes] of 0 and 1."""
        *columns, next_states = self._session.run(self._names, {"values": inputs, "states": states})
        return ProbabilityOutputs(*columns), next_states

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after a silent frame, so that there is a prediction before the first one."""
        outputs, state = self.step(np.zeros((1, self._notes)), np.zeros((1, self.state_size), np.float32))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state
