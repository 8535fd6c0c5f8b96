"""One step of the per-session online scaling, as a graph; its formulas are those of `networks.scaling`.

A node costs about as much as a row's arithmetic, so whatever is linear is done by a few products with constant
matrices, which choose, add, scale and turn at once: what comes out of them is exact, since all but one or two of the
factors are zero. Between them what belongs together is contiguous over the batch: [rows, columns * n].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.networks import scaling

_LEVELS = len(scaling.LEVEL_RATES)
_SPREADS = 1 + _LEVELS
_SEEN, _MOVES, _SPREAD, _HIGH, _LOW = np.cumsum((0, *scaling.STATE_ROWS[:-1])).tolist()
_ROWS, _FEATURES = sum(scaling.STATE_ROWS), sum(scaling.FEATURE_ROWS)

Weights = Mapping[int, float]
"""What a row of a product is made of: row of the operand -> factor."""


class ScaledStep(NamedTuple):
    """What the step makes of one row of values."""

    features: Tensor
    """float32 [n, features]: what the cells see."""
    state: Tensor
    """float32 [n, state]: the scaling's next state."""
    units: Tensor
    """float32 [n, targets]: the typical size of a step."""
    seen: Tensor
    """float32 [n, targets]: how many values have been seen."""
    values: Tensor
    """float64 [columns, n]: the last value seen; 0 while there is none."""


def moves_since_last(
    graph: GraphBuilder, columns: int, targets: Sequence[int], observed: Tensor, state: Tensor
) -> Tensor:
    """observed float64 [n, targets] less the values before them, in state float64 [n, rows * columns]."""
    before = _matrix([{_HIGH: -1.0, _LOW: -1.0}], _ROWS, columns)[list(targets)]
    return graph.node("Gemm", state, graph.array(before), observed, transB=1)


def last_values(graph: GraphBuilder, columns: int, targets: Sequence[int], state: Tensor) -> Tensor:
    """The last value of each target, float64 [n, targets], in state float64 [n, rows * columns]; 0 before the first."""
    last = _matrix([{_HIGH: 1.0, _LOW: 1.0}], _ROWS, columns)[list(targets)]
    return graph.node("MatMul", state, graph.array(np.ascontiguousarray(last.T)))


def scaling_step(
    graph: GraphBuilder, columns: int, targets: Sequence[int], values: Tensor, row: Tensor, state: Tensor, width: int
) -> ScaledStep:
    """values float64 [n, columns] -> the scaled values and the next state.

    The state is given as float64 [n, rows * columns], and as the head of `row`, float32 [n, width].
    """
    node, number = graph.node, graph.number
    zero, one, two = number(0.0), number(1.0), number(2.0)

    def blocks(x: Tensor, rows: int) -> Tensor:
        """[rows * columns, n] -> [rows, columns * n]."""
        return x if columns == 1 else node("Reshape", x, graph.integers(rows, -1))

    def unblocked(x: Tensor, rows: int) -> Tensor:
        return x if columns == 1 else node("Reshape", x, graph.integers(rows * columns, -1))

    spread_rows = range(_SPREAD, _SPREAD + _SPREADS)
    # one more than the counts, the spreads, and the largest deviations that count
    picked = [
        {_SEEN: 1.0},
        {_MOVES: 1.0},
        *({i: 1.0} for i in spread_rows),
        *({i: scaling.OUTLIER} for i in spread_rows),
    ]
    counts = np.repeat([1.0, 1.0, *[0.0] * (2 * _SPREADS)], columns)[:, None]
    matrix = np.pad(_matrix(picked, _ROWS, columns), ((0, 0), (0, width - _ROWS * columns))).astype(np.float32)
    singles = node("Gemm", graph.array(matrix), row, graph.array(counts.astype(np.float32)), transB=1)
    seen, moves, spreads, largest_sizes = graph.split(blocks(singles, len(picked)), 1, 1, _SPREADS, _SPREADS, axis=0)
    # last value and moving averages; again only the averages; again only the last value
    pairs: list[Weights] = [{_HIGH + i: 1.0, _LOW + i: 1.0} for i in [*range(_SPREADS), *range(1, _SPREADS), 0]]
    doubles = node("Gemm", graph.array(_matrix(pairs, _ROWS, columns)), state, transB=1)
    references, levels, last = graph.split(blocks(doubles, len(pairs)), _SPREADS, _LEVELS, 1, axis=0)

    observed = blocks(node("Transpose", values), 1)
    missing = node("IsNaN", observed)
    missing_flag = _float(graph, missing)
    present = node("Sub", one, missing_flag)
    value_high, value_low, high = _pair(graph, node("Where", missing, last, observed))
    value = node("Add", high, _double(graph, value_low))

    deviations = node("Where", node("Equal", seen, one), number(0.0, np.float64), node("Sub", value, references))
    deviations = _float(graph, deviations)
    sizes = node("Abs", deviations)
    moved = node("Sign", graph.split(sizes, 1, _LEVELS, axis=0)[0])
    seen = node("Add", seen, present)
    moves = node("Add", moves, moved)

    bounded = node("Where", node("Equal", moves, two), sizes, node("Min", sizes, largest_sizes))
    warm_up = node("Clip", node("Div", two, moves), number(scaling.SPREAD_RATE), one)
    correction = node("Mul", node("Mul", moved, warm_up), node("Sub", bounded, spreads))
    spreads = node("Add", spreads, correction)

    # The averages before the first value are 0 and its rate is 1, so that they begin at the value.
    slowest = graph.array(np.array(scaling.LEVEL_RATES, np.float32)[:, None])
    level_rates = node("Mul", node("Max", node("Div", two, seen), slowest), present)
    levels = node("Add", levels, node("Mul", _double(graph, level_rates), node("Sub", value, levels)))
    levels_high, levels_low, _ = _pair(graph, levels)

    magnitude = node("Where", node("Equal", value_high, zero), one, node("Abs", value_high))
    prior = node("Mul", magnitude, number(scaling.PRIOR_STEP))
    units = node("Where", node("Equal", moves, one), prior, spreads)
    units = node("Max", units, number(scaling.SMALLEST_UNIT))
    largest = scaling.LARGEST_RATIO
    ratios = node("Clip", node("Div", deviations, units), number(-largest), number(largest))
    unit, other_units = graph.split(units, 1, _LEVELS, axis=0)
    relative = node("Clip", node("Div", other_units, unit), number(1 / largest), number(largest))

    features = (node("Asinh", ratios), node("Log", relative), warm_up, missing_flag)
    after = (seen, moves, spreads, value_high, levels_high, value_low, levels_low)
    rows = _FEATURES + _ROWS + 1
    whole = unblocked(node("Concat", *features, *after, unit, axis=0), rows)
    every = np.eye(rows * columns, dtype=np.float32)
    first_seen, first_unit = _FEATURES * columns, (rows - 1) * columns
    chosen = [*range(first_unit), *(first_unit + i for i in targets), *(first_seen + i for i in targets)]
    one_more = range(first_seen, first_seen + 2 * columns)
    corrections = np.array([-1.0 if i in one_more else 0.0 for i in chosen], np.float32)
    turned = node("Gemm", whole, graph.array(every[:, chosen]), graph.array(corrections), transA=1)
    sizes_of_pieces = (_FEATURES * columns, _ROWS * columns, len(targets), len(targets))
    features_row, state_row, units_row, seen_row = graph.split(turned, *sizes_of_pieces)
    return ScaledStep(features_row, state_row, units_row, seen_row, unblocked(value, 1))


def fixed_scaling_step(
    graph: GraphBuilder, columns: int, targets: Sequence[int], values: Tensor, row: Tensor
) -> ScaledStep:
    """values float64 [n, columns] -> the scaled values and the next state; the state is the head of `row`, float32."""
    node, number = graph.node, graph.number
    none, one = number(0.0, np.float64), number(1.0)
    sizes = (columns, (_HIGH - 1) * columns, columns, _LEVELS * columns, columns, _LEVELS * columns)
    state = node("Slice", row, graph.integers(0), graph.integers(_ROWS * columns), graph.integers(1))
    seen, spreads, high, levels_high, low, levels_low = graph.split(state, *sizes)
    last = node("Add", _double(graph, high), _double(graph, low))
    missing = node("IsNaN", values)
    seen = node("Add", seen, node("Sub", one, _float(graph, missing)))
    high, low, high64 = _pair(graph, node("Where", missing, last, values))
    value = node("Add", high64, _double(graph, low))

    means, units = _double(graph, graph.weight("encoder.means")), _double(graph, graph.weight("encoder.units"))
    never = node("Equal", seen, number(0.0))
    features = node("Where", never, none, node("Div", node("Sub", value, means), units))
    chosen = graph.integers(*targets)
    seen_targets = node("Gather", seen, chosen, axis=1)
    units_targets = node("Gather", graph.weight("encoder.units"), chosen)
    return ScaledStep(
        _float(graph, features),
        node("Concat", seen, spreads, high, levels_high, low, levels_low, axis=1),
        node("Expand", units_targets, node("Shape", seen_targets)),
        seen_targets,
        node("Transpose", value),
    )


def _matrix(rows: Sequence[Weights], operand_rows: int, columns: int) -> npt.NDArray[np.float64]:
    """[rows * columns, operand_rows * columns]: makes rows of blocks of columns out of others."""
    weights = np.zeros((len(rows), operand_rows))
    for row, factors in enumerate(rows):
        for of, factor in factors.items():
            weights[row, of] = factor
    return np.asarray(np.kron(weights, np.eye(columns)), np.float64)


def _float(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.FLOAT)


def _double(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.DOUBLE)


def _pair(graph: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A float64 as the sum of two float32, and the first of them as float64."""
    high = _float(graph, x)
    high64 = _double(graph, high)
    return high, _float(graph, graph.node("Sub", x, high64)), high64
