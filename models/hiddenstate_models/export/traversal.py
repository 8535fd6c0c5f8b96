"""How a graph goes through its inputs: one input of each of n sessions, or n inputs of one session."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from onnx import TensorProto

from hiddenstate_models.export.graph import GraphBuilder, Tensor

State: TypeAlias = Sequence[Tensor]
Advance: TypeAlias = Callable[[Sequence[Tensor], State], Sequence[Tensor]]
"""Inputs [n, ...] and a state -> the next state, its first part being the output."""

_SMALLEST_SHARE = 1e-30


class Traversal(Protocol):
    """What differs between the two; everything else in a graph works on rows, whoever's they are.

    Where rows are turned, [..., n], `axis` is -1. Sums and averages are of turned float64 rows.
    """

    rows: str | int
    """Rows of states."""
    is_sequence: bool

    def through(
        self, graph: GraphBuilder, advance: Advance, inputs: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Outputs [n, ...] of inputs [n, ...], and the state after them."""
        ...

    def before(self, graph: GraphBuilder, first: Tensor, x: Tensor, axis: int = 0) -> Tensor:
        """What was there [n, ...] before x [n, ...] was made of the inputs: `first` is of the state."""
        ...

    def last(self, graph: GraphBuilder, x: Tensor, axis: int = 0) -> Tensor:
        """What of x [n, ...] belongs to the state after all inputs."""
        ...

    def latest(self, graph: GraphBuilder, first: Tensor, x: Tensor, present: Tensor) -> Tensor:
        """x [..., n] where it is `present`, and the last one before that where it is not; `first` before all."""
        ...

    def total(self, graph: GraphBuilder, first: Tensor, x: Tensor) -> Tensor:
        """`first` and all x [..., n] so far."""
        ...

    def average(self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor) -> Tensor:
        """Moving averages, `first` before all: each moves to x [..., n] at its rate."""
        ...

    def bounded_average(
        self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor, most: float, least: Tensor
    ) -> Tensor:
        """The same, but x counts as at most `most` times the average before it, or `least` where that is more."""
        ...


class OneStep:
    """Rows are sessions."""

    rows: str | int = "n"
    is_sequence = False

    def through(
        self, _graph: GraphBuilder, advance: Advance, inputs: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """See Traversal."""
        after = advance(inputs, state)
        return after[0], after

    def before(self, _graph: GraphBuilder, first: Tensor, _x: Tensor, axis: int = 0) -> Tensor:  # noqa: ARG002
        """See Traversal."""
        return first

    def last(self, _graph: GraphBuilder, x: Tensor, axis: int = 0) -> Tensor:  # noqa: ARG002
        """See Traversal."""
        return x

    def latest(self, graph: GraphBuilder, first: Tensor, x: Tensor, present: Tensor) -> Tensor:
        """See Traversal."""
        return graph.node("Where", present, x, first)

    def total(self, graph: GraphBuilder, first: Tensor, x: Tensor) -> Tensor:
        """See Traversal."""
        return graph.node("Add", first, x)

    def average(self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor) -> Tensor:
        """See Traversal."""
        return graph.node("Add", first, graph.node("Mul", rates, graph.node("Sub", x, first)))

    def bounded_average(
        self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor, most: float, least: Tensor
    ) -> Tensor:
        """See Traversal."""
        bound = graph.node("Max", graph.node("Mul", first, graph.number(most, np.float64)), least)
        return self.average(graph, first, graph.node("Min", x, bound), rates)


class ManySteps:
    """Rows are one session's inputs, in their order; only what needs the order is done row by row."""

    rows: str | int = 1
    is_sequence = True

    def through(
        self, graph: GraphBuilder, advance: Advance, inputs: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """See Traversal."""

        def step(before: Sequence[Tensor], elements: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            after = advance(elements, before)
            return after, after[:1]

        axis = graph.integers(1)
        rows = [(graph.node("Unsqueeze", x, axis), int(TensorProto.FLOAT)) for x in inputs]
        after, (outputs,) = graph.scan(state, rows, step, 1)
        return graph.node("Squeeze", outputs, axis), after

    def before(self, graph: GraphBuilder, first: Tensor, x: Tensor, axis: int = 0) -> Tensor:
        """See Traversal."""
        return graph.shifted(first, x, axis)

    def last(self, graph: GraphBuilder, x: Tensor, axis: int = 0) -> Tensor:
        """See Traversal."""
        return graph.last(x, axis)

    def latest(self, graph: GraphBuilder, first: Tensor, x: Tensor, present: Tensor) -> Tensor:
        """See Traversal. What is present is put together, and taken as often as the count of it stands still."""
        node = graph.node
        # Every row begins with `first`, which is always there, so that no row takes from the one above it.
        there = node("Concat", node("Equal", first, first), present, axis=-1)
        values = node("Concat", first, x, axis=-1)
        flat = node("Reshape", there, graph.integers(-1))
        counts = node("CumSum", node("Cast", flat, to=TensorProto.INT64), graph.number(0, np.int64))
        places = node("Sub", counts, graph.number(1, np.int64))
        latest = node("Gather", node("Compress", values, flat), places)
        return graph.rest(node("Reshape", latest, node("Shape", values)))

    def total(self, graph: GraphBuilder, first: Tensor, x: Tensor) -> Tensor:
        """See Traversal."""
        return graph.node("Add", first, _sums(graph, x))

    def average(self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor) -> Tensor:
        """See Traversal. Of distances from `first`, so that small moves of large numbers stay exact."""
        node = graph.node
        kept = node("Sub", graph.number(1.0, np.float64), rates)
        added = node("Mul", rates, node("Sub", x, first))
        return node("Add", first, _linear(graph, graph.number(0.0, np.float64), kept, added))

    def bounded_average(
        self, graph: GraphBuilder, first: Tensor, x: Tensor, rates: Tensor, most: float, least: Tensor
    ) -> Tensor:
        """See Traversal. Knowing which x are out of bounds, averages are a linear recurrence; from none being so on,
        those found to be so are taken until they stay the same (Howard's policy iteration, 1960): mostly at once, and
        after k rounds the first k are right.
        """
        node, one = graph.node, graph.number(1.0, np.float64)
        bound = graph.number(most, np.float64)
        steps = node("Mul", rates, x)

        def again(state: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            out, _ = state
            kept = node("Add", one, node("Mul", rates, node("Sub", node("Mul", out, bound), one)))
            added = node("Mul", steps, node("Sub", one, out))
            averages = _linear(graph, first, kept, added)
            largest = node("Max", node("Mul", graph.shifted(first, averages, -1), bound), least)
            found = node("Cast", node("Greater", x, largest), to=TensorProto.DOUBLE)
            changes = node("ReduceMax", node("Abs", node("Sub", found, out)), keepdims=0)
            more = node("Cast", node("Unsqueeze", changes, graph.integers(0)), to=TensorProto.BOOL)
            return more, (found, averages)

        _, averages = graph.repeat((node("Sub", x, x), x), TensorProto.DOUBLE, again)
        return averages


def _sums(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("CumSum", x, graph.number(-1, np.int64))


def _linear(graph: GraphBuilder, first: Tensor, kept: Tensor, added: Tensor) -> Tensor:
    """y[t] = kept[t] y[t - 1] + added[t], `first` before all, for all t at once (Blelloch 1990).

    What is kept of `first` until t is the running product p of kept, and y[t] = p[t] (first + sum of added / p). Where
    nothing is to be kept, 1e-30 is; so p stays a number for some thousands of steps.
    """
    node = graph.node
    logarithms = node("Log", node("Max", kept, graph.number(_SMALLEST_SHARE, np.float64)))
    shares = node("Exp", _sums(graph, logarithms))
    return node("Mul", shares, node("Add", first, _sums(graph, node("Div", added, shares))))


ONE_STEP, MANY_STEPS = OneStep(), ManySteps()
