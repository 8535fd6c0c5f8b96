"""The per-session scaling of values as a graph; its formulas are those of `networks.scaling`.

A node costs as much as its arithmetic on hundreds of numbers, and far more where a row of them is short. So everything
is turned: what belongs together is a long row, [rows, n], or [rows, columns, n] where there is more than one column.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hiddenstate_models.bundle import SeriesShapes
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.traversal import Traversal
from hiddenstate_models.networks import scaling

_LEVELS = len(scaling.LEVEL_RATES)
_SPREADS = 1 + _LEVELS
_ROWS, _FEATURES = sum(scaling.STATE_ROWS), sum(scaling.FEATURE_ROWS)
_SEEN, _MOVES, _SPREAD, _HIGH, _LOW = np.cumsum((0, *scaling.STATE_ROWS[:-1])).tolist()
_UNBOUNDED = 1e300


class State(NamedTuple):
    """What the scaling knows before a step, float64 [rows * columns, n]."""

    seen: Tensor
    """How many values."""
    moves: Tensor
    """One more than how many moves."""
    spreads: Tensor
    last: Tensor
    levels: Tensor


class Scaled(NamedTuple):
    """What scaling makes of values."""

    features: Tensor
    """float32 [features, n]: what the cells see."""
    state: Sequence[Tensor]
    """float64 [..., n]: the rows of the scaling's next state."""
    units: Tensor
    """float64 [targets, n]: the typical size of a step."""
    known: Tensor
    """float64 [targets, n]: 1 where a value has been seen, 0 where none has."""
    values: Tensor
    """float64 [targets, n]: the last value seen; 0 while there is none."""
    before: Tensor
    """float64 [targets, n]: the one before this step."""


def read_state(graph: GraphBuilder, network: SeriesShapes, row: Tensor, *others: int) -> tuple[State, Sequence[Tensor]]:
    """The state at the head of `row`, float32 [n, state + others], and the others behind it, float64 [size, n] each.

    All of it is one product with a constant matrix, which chooses, turns, and adds the pairs of floats: what comes out
    of it is exact, since all but one or two of the factors are zero.
    """
    columns, kept = network.columns, sum(others)
    spreads = [[_SPREAD + i] for i in range(_SPREADS)]
    pairs = [[_HIGH + i, _LOW + i] for i in range(_SPREADS)]
    chosen_rows = np.array([np.isin(range(_ROWS), rows) for rows in ([_SEEN], [_MOVES], *spreads, *pairs)], np.float64)
    choice = np.kron(chosen_rows, np.eye(columns))
    matrix = np.block([[choice, np.zeros((len(choice), kept))], [np.zeros((kept, choice.shape[1])), np.eye(kept)]])
    one_more = np.zeros((len(matrix), 1))
    one_more[columns : 2 * columns] = 1
    wide = graph.node("Cast", row, to=TensorProto.DOUBLE)
    rows = graph.node("Gemm", graph.array(matrix), wide, graph.array(one_more), transB=1)
    sizes = [count * columns for count in (1, 1, _SPREADS, 1, _LEVELS)]
    pieces = graph.split(rows, *sizes, *others, axis=0)
    return State(*pieces[: len(sizes)]), pieces[len(sizes) :]


def scaled(graph: GraphBuilder, network: SeriesShapes, observed: Tensor, state: State, traversal: Traversal) -> Scaled:
    """observed float64 [columns, n], NaN where missing -> the scaled values and the next state."""
    node, columns = graph.node, network.columns
    double = TensorProto.DOUBLE

    def number(value: float) -> Tensor:
        return graph.number(value, np.float64)

    def blocks(x: Tensor, rows: int) -> Tensor:
        """[rows * columns, n] -> [rows, columns, n]."""
        return x if columns == 1 else node("Reshape", x, graph.integers(rows, columns, -1))

    def flat(x: Tensor, rows: int) -> Tensor:
        return x if columns == 1 else node("Reshape", x, graph.integers(rows * columns, -1))

    def targets(x: Tensor) -> Tensor:
        return chosen(graph, network, flat(x, 1))

    last, levels = blocks(state.last, 1), blocks(state.levels, _LEVELS)
    seen, moves, spreads = blocks(state.seen, 1), blocks(state.moves, 1), blocks(state.spreads, _SPREADS)
    values, present = _remembered(graph, blocks(observed, 1), last, traversal)
    there = node("Cast", present, to=double)
    before = traversal.before(graph, last, values, -1)

    seen_after = traversal.total(graph, seen, there)
    known = node("Min", seen_after, number(1.0))
    known_before = node("Min", seen, number(1.0))
    rates = node("Max", node("Div", number(2.0), node("Add", seen_after, number(1.0))), _rates(graph, columns))
    # The averages before the first value are 0 and its rate is 1, so that they begin at the value.
    levels_after = traversal.average(graph, levels, values, node("Mul", rates, there))
    levels_before = traversal.before(graph, levels, levels_after, -1)
    deviations = node("Concat", node("Sub", values, before), node("Sub", values, levels_before), axis=0)
    deviations = node("Mul", deviations, traversal.before(graph, known_before, known, -1))
    sizes = node("Abs", deviations)

    moved = node("Sign", graph.split(sizes, 1, _LEVELS, axis=0)[0])
    moves_after = traversal.total(graph, moves, moved)
    still = node("Sub", number(2.0), traversal.before(graph, moves, moves_after, -1))
    rate = node("Div", number(2.0), node("Min", moves_after, number(2 / scaling.SPREAD_RATE)))
    warm_up = node("Min", rate, number(1.0))
    unbounded = node("Mul", still, number(_UNBOUNDED))
    rates = node("Mul", warm_up, moved)
    spreads_after = traversal.bounded_average(graph, spreads, sizes, rates, scaling.OUTLIER, unbounded)

    magnitude = node("Abs", values)
    magnitude = node("Where", node("Equal", values, number(0.0)), number(1.0), magnitude)
    # 1 until the first move, and not above 0 from then on
    still = node("Sub", rate, warm_up)
    prior = node("Mul", node("Mul", magnitude, number(scaling.PRIOR_STEP)), still)
    units = node("Max", spreads_after, prior, number(scaling.SMALLEST_UNIT))
    largest = scaling.LARGEST_RATIO
    ratios = _float(graph, node("Clip", node("Div", deviations, units), number(-largest), number(largest)))
    unit, other_units = graph.split(units, 1, _LEVELS, axis=0)
    relative = _float(graph, node("Clip", node("Div", other_units, unit), number(1 / largest), number(largest)))
    missing = node("Sub", number(1.0), there)
    flags = _float(graph, node("Concat", warm_up, missing, axis=0))
    features = node("Concat", node("Asinh", ratios), node("Log", relative), flags, axis=0)

    pairs = node("Concat", values, levels_after, axis=0)
    high = _rounded(graph, pairs)
    moves_after = node("Sub", moves_after, number(1.0))
    low = node("Sub", pairs, high)
    rows = zip((seen_after, moves_after, spreads_after, high, low), scaling.STATE_ROWS, strict=True)
    return Scaled(
        flat(features, _FEATURES),
        [traversal.last(graph, flat(x, count), -1) for x, count in rows],
        targets(unit),
        targets(known),
        targets(values),
        targets(before),
    )


def fixed(graph: GraphBuilder, network: SeriesShapes, observed: Tensor, state: State, traversal: Traversal) -> Scaled:
    """The same with means and units that never change."""
    node, double = graph.node, TensorProto.DOUBLE
    values, present = _remembered(graph, observed, state.last, traversal)
    seen = traversal.total(graph, state.seen, node("Cast", present, to=double))
    known = node("Min", seen, graph.number(1.0, np.float64))
    axis = graph.integers(1)
    names = "encoder.means", "encoder.units"
    means, units = (node("Cast", node("Unsqueeze", graph.weight(name), axis), to=double) for name in names)
    features = _float(graph, node("Mul", node("Div", node("Sub", values, means), units), known))
    levels_high = _rounded(graph, state.levels)
    moves = node("Sub", state.moves, graph.number(1.0, np.float64))
    high = _rounded(graph, values)

    def last(x: Tensor) -> Tensor:
        return traversal.last(graph, x, -1)

    pieces = [last(seen), moves, state.spreads, last(high), levels_high]
    pieces += [last(node("Sub", values, high)), node("Sub", state.levels, levels_high)]
    return Scaled(
        features,
        pieces,
        chosen(graph, network, units),
        chosen(graph, network, known),
        chosen(graph, network, values),
        chosen(graph, network, traversal.before(graph, state.last, values, -1)),
    )


def chosen(graph: GraphBuilder, network: SeriesShapes, x: Tensor) -> Tensor:
    """The targets among [columns, n]."""
    if network.targets == tuple(range(network.columns)):
        return x
    return graph.node("Gather", x, graph.integers(*network.targets), axis=0)


def _remembered(graph: GraphBuilder, observed: Tensor, last: Tensor, traversal: Traversal) -> tuple[Tensor, Tensor]:
    """The values as they will be remembered, or they would seem to move, for those missing the ones before them; and
    whether each is present.
    """
    node = graph.node
    present = node("Equal", observed, observed)
    values = traversal.latest(graph, last, observed, present)
    high = _rounded(graph, values)
    return node("Add", high, _rounded(graph, node("Sub", values, high))), present


def _rounded(graph: GraphBuilder, x: Tensor) -> Tensor:
    """float64 rounded to float32: two of them hold 48 bits, so that a counter near 2e9 is still seen to move by one."""
    return graph.node("Cast", _float(graph, x), to=TensorProto.DOUBLE)


def _rates(graph: GraphBuilder, columns: int) -> Tensor:
    rates: npt.NDArray[np.float64] = np.array(scaling.LEVEL_RATES, np.float64)
    return graph.array(rates.reshape(_LEVELS, *[1] * (1 if columns == 1 else 2)))


def _float(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.FLOAT)
