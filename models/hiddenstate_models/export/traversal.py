"""How a graph goes through its inputs: one input of each of n sessions, or n inputs of one session."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from onnx import TensorProto

from hiddenstate_models.export.graph import GraphBuilder, Tensor

State: TypeAlias = Sequence[Tensor]
Advance: TypeAlias = Callable[[Sequence[Tensor], State], Sequence[Tensor]]
"""Inputs [n, ...] and a state -> the next state, its first part being the output."""


class Traversal(Protocol):
    """What differs between the two; everything else in a graph works on rows, whoever's they are."""

    rows: str | int
    """Rows of states."""

    def through(
        self, graph: GraphBuilder, advance: Advance, inputs: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Outputs [n, ...] of inputs [n, ...], and the state after them."""
        ...

    def before(self, graph: GraphBuilder, first: Tensor, x: Tensor) -> Tensor:
        """What was there [n, ...] before x [n, ...] was made of the inputs: `first` is of the state."""
        ...

    def last(self, graph: GraphBuilder, x: Tensor) -> Tensor:
        """What of x [n, ...] belongs to the state after all inputs."""
        ...


class OneStep:
    """Rows are sessions."""

    rows: str | int = "n"

    def through(
        self, _graph: GraphBuilder, advance: Advance, inputs: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """See Traversal."""
        after = advance(inputs, state)
        return after[0], after

    def before(self, _graph: GraphBuilder, first: Tensor, _x: Tensor) -> Tensor:
        """See Traversal."""
        return first

    def last(self, _graph: GraphBuilder, x: Tensor) -> Tensor:
        """See Traversal."""
        return x


class ManySteps:
    """Rows are one session's inputs, in their order; only what needs the order is done row by row."""

    rows: str | int = 1

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

    def before(self, graph: GraphBuilder, first: Tensor, x: Tensor) -> Tensor:
        """See Traversal."""
        return graph.shifted(first, x)

    def last(self, graph: GraphBuilder, x: Tensor) -> Tensor:
        """See Traversal."""
        return graph.last(x)


ONE_STEP, MANY_STEPS = OneStep(), ManySteps()
