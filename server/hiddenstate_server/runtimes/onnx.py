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

_MOST_BOUND = 32
"""Rows; with more of them the arithmetic takes so long that it does not matter."""


def open_session(path: Path, *, share_memory: bool = True) -> onnxruntime.InferenceSession:
    """A session that computes in the caller's thread: more threads beside a busy event loop cost, not gain.

    `share_memory` lets intermediate results take the places of those that are no longer needed. That takes less memory
    and, in graphs of many small nodes, a tenth more time.
    """
    options = onnxruntime.SessionOptions()
    options.enable_mem_reuse = share_memory
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Bound:
    """A graph with inputs and outputs of fixed shapes, bound once: to say what they are takes as long as many nodes."""

    def __init__(
        self, session: onnxruntime.InferenceSession, names: Sequence[str], feed: Mapping[str, InputArray]
    ) -> None:
        """`feed` is an example."""
        self._session = session
        # Of another order they would be copied instead of bound.
        self._inputs = {name: np.array(x, order="C") for name, x in feed.items()}
        self._outputs = session.run(names, self._inputs)
        self._binding = session.io_binding()
        for name, x in self._inputs.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
        for name, x in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))

    def run(self, feed: Mapping[str, InputArray]) -> list[Any]:
        """What the session's own gives."""
        for name, x in feed.items():
            self._inputs[name][:] = x
        self._session.run_with_iobinding(self._binding)
        return [x.copy() for x in self._outputs]


class OnnxModel:
    """A model's graph of one step and, where it has one, that of a sequence of them.

    What kinds of models differ in is how inputs are fed, what becomes of the graph's columns, and what comes first.
    """

    _shares_memory = True

    def __init__(
        self, step: Path, sequence: Path | None, columns: Sequence[str], *, state_size: int, precision: str
    ) -> None:
        """`columns` are the graphs' outputs beside the states."""
        self.state_size = state_size
        self.description = f"onnxruntime cpu {precision}"
        self.makes_runs = sequence is not None
        self._step = open_session(step, share_memory=self._shares_memory)
        self._bound: dict[int, _Bound] = {}
        """By number of rows."""
        self._sequence = None if sequence is None else open_session(sequence)
        self._names = [*columns, "next_states"]

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """See Runtime."""
        feed = {**self._feed(inputs), "states": states}
        rows = len(inputs)
        if rows > _MOST_BOUND:
            return self._computed(self._step.run(self._names, feed))
        if rows not in self._bound:
            self._bound[rows] = _Bound(self._step, self._names, feed)
        return self._computed(self._bound[rows].run(feed))

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """See RunRuntime."""
        assert self._sequence is not None
        return self._computed(self._sequence.run(self._names, {**self._feed(inputs), "states": state}))

    def initial(self) -> tuple[Outputs, FloatArray]:
        """See Runtime."""
        raise NotImplementedError

    def _computed(self, results: Sequence[Any]) -> tuple[Outputs, FloatArray]:
        *columns, next_states = results
        return self._outputs(columns), next_states

    def _first(self, inputs: InputArray) -> tuple[Outputs, FloatArray]:
        """The row after one input."""
        return self.step(inputs, np.zeros((1, self.state_size), np.float32))

    def _feed(self, inputs: InputArray) -> dict[str, InputArray]:
        raise NotImplementedError

    def _outputs(self, columns: Sequence[Any]) -> Outputs:
        raise NotImplementedError


class OnnxWords(OnnxModel):
    """A next-word model; inputs are tokens int64 [n]."""

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
        super().__init__(step, sequence, WordOutputs._fields, state_size=state_size, precision=precision)
        self.log_probabilities = head.log_probabilities
        self._k = np.array([top_k], np.int64)
        self._end_token = end_token

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after the end of a document, so that there is a prediction before the first word."""
        outputs, state = self._first(np.array([self._end_token]))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state

    def _feed(self, inputs: InputArray) -> dict[str, InputArray]:
        return {"tokens": inputs, "k": self._k}

    def _outputs(self, columns: Sequence[Any]) -> Outputs:
        return WordOutputs(*columns)


class OnnxValues(OnnxModel):
    """A next-value or forecasting model; inputs are values float64 [n, columns]."""

    _shares_memory = False
    """Most of its nodes are the scaling's, of a few numbers a row."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, columns: int, precision: str) -> None:
        super().__init__(step, sequence, ValueOutputs._fields, state_size=state_size, precision=precision)
        self._columns = columns

    def initial(self) -> tuple[Outputs, FloatArray]:
        """A row of zeros, and no prediction (NaN) before the first value."""
        outputs, _ = self._first(np.zeros((1, self._columns)))
        nothing = each_column(outputs, lambda column: np.full_like(column, np.nan))
        return nothing, np.zeros((1, self.state_size), np.float32)

    def _feed(self, inputs: InputArray) -> dict[str, InputArray]:
        return {"values": inputs}

    def _outputs(self, columns: Sequence[Any]) -> Outputs:
        return ValueOutputs(*columns)


class OnnxLabels(OnnxModel):
    """A model that labels text; inputs are tokens int64 [n]."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, end_token: int, precision: str) -> None:
        super().__init__(step, sequence, ["probabilities"], state_size=state_size, precision=precision)
        self._end_token = end_token

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after the end of a sentence, which every sentence begins with."""
        return self._first(np.array([self._end_token]))

    def _feed(self, inputs: InputArray) -> dict[str, InputArray]:
        return {"tokens": inputs}

    def _outputs(self, columns: Sequence[Any]) -> Outputs:
        (probabilities,) = columns
        return ProbabilityOutputs(np.full(len(probabilities), np.nan, np.float32), probabilities)


class OnnxNotes(OnnxModel):
    """A music model; inputs are frames float64 [n, notes] of 0 and 1."""

    def __init__(self, step: Path, sequence: Path | None, *, state_size: int, notes: int, precision: str) -> None:
        super().__init__(step, sequence, ProbabilityOutputs._fields, state_size=state_size, precision=precision)
        self._notes = notes

    def initial(self) -> tuple[Outputs, FloatArray]:
        """The row after a silent frame, so that there is a prediction before the first one."""
        outputs, state = self._first(np.zeros((1, self._notes)))
        return outputs._replace(surprises=np.full(1, np.nan, np.float32)), state

    def _feed(self, inputs: InputArray) -> dict[str, InputArray]:
        return {"values": inputs}

    def _outputs(self, columns: Sequence[Any]) -> Outputs:
        return ProbabilityOutputs(*columns)
