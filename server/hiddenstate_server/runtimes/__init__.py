"""Runtimes: what does the arithmetic, of one step for a batch of rows or of a run of steps of one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
DoubleArray: TypeAlias = NDArray[np.float64]
RowArray: TypeAlias = NDArray[np.int64]
InputArray: TypeAlias = NDArray[Any]


class WordOutputs(NamedTuple):
    """Columns of a next-word step of n rows."""

    surprises: FloatArray
    """[n], nats."""
    top_tokens: NDArray[np.int32]
    """[n, k], best first."""
    top_probabilities: FloatArray
    """[n, k], over the full vocabulary."""


class ValueOutputs(NamedTuple):
    """Columns of a next-value step of n rows, in the sender's units; of a forecasting one [n, horizon, targets]."""

    surprises: FloatArray
    """[n], nats."""
    locations: DoubleArray
    """[n, targets]."""
    scales: DoubleArray
    """[n, targets]."""
    degrees_of_freedom: FloatArray
    """[n, targets], infinite for a Gaussian."""


class ProbabilityOutputs(NamedTuple):
    """Columns of a step of n rows that answers how probable each of a few things is."""

    surprises: FloatArray
    """[n], nats; NaN of labels, which predict nothing that is observed."""
    probabilities: FloatArray
    """[n, labels]: of each label; or [n, notes]: that each note sounds in the next frame."""


Outputs: TypeAlias = WordOutputs | ValueOutputs | ProbabilityOutputs


def each_column(outputs: Outputs, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Outputs:
    """Outputs of the same kind with `function` applied to every column."""
    columns: list[Any] = [function(column) for column in outputs]
    return type(outputs)(*columns)


def places_of(rows: RowArray) -> RowArray | slice:
    """What to index columns with at these rows: a slice, which is several times cheaper, where it is a single one."""
    if len(rows) != 1:
        return rows
    row = rows.item()
    return slice(row, row + 1)


def write_rows(target: Outputs, rows: RowArray | slice, values: Outputs | int) -> None:
    """Sets rows of every column of `target`, to the rows of `values` [n, ...] or to a number."""
    columns: tuple[Any, ...] = target
    for index, column in enumerate(columns):
        column[rows] = values if isinstance(values, int) else values[index]


class Runtime(Protocol):
    """One step of one model for any number of sessions at once."""

    state_size: int
    description: str
    """For people: library, device, precision."""

    makes_runs: bool
    """Whether it is a RunRuntime."""

    def step(self, inputs: InputArray, states: FloatArray) -> tuple[Outputs, FloatArray]:
        """Steps n rows: int64 [n] tokens or float64 [n, columns] values, and float32 [n, state_size]."""

    def initial(self) -> tuple[Outputs, FloatArray]:
        """One row each: what a new session starts with."""


class RunRuntime(Runtime, Protocol):
    """One that takes many observations of one row at once, faster than step by step."""

    def run(self, inputs: InputArray, state: FloatArray) -> tuple[Outputs, FloatArray]:
        """What n steps of one row give, inputs [n, ...] after each other: outputs of each, state [1, state_size]."""


class WordRuntime(Runtime, Protocol):
    """A next-word model's."""

    def log_probabilities(self, states: FloatArray) -> FloatArray:
        """[n, vocabulary]: the predictions that states [n, state_size] hold, whole."""
