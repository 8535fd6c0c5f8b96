"""One step of the per-session online scaling, as a graph; its formulas are those of `hiddenstate_models.scaling`."""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from hiddenstate_models import scaling
from hiddenstate_models.export.graph import GraphBuilder, Tensor

_LEVELS = len(scaling.LEVEL_RATES)


class ScaledStep(NamedTuple):
    """What the step makes of one row of values."""

    features: Tensor
    """float32 [n, features]: what the cells see."""
    anchors: Tensor
    """float64 [n, columns]: the last value seen; 0 while there is none."""
    units: Tensor
    """float32 [n, columns]: the typical size of a step."""
    seen: Tensor
    """float32 [n, columns]: how many values have been seen."""
    moves: Tensor
    """float64 [n, columns]: the value less the one before it; NaN where missing."""
    state: Tensor
    """float32 [n, state]: the scaling's next state."""


def scaling_step(graph: GraphBuilder, columns: int, values: Tensor, state: Tensor) -> ScaledStep:
    """values float64 [n, columns], state float32 [n, rows * columns] -> the scaled values and the next state."""
    node, number = graph.node, graph.number
    zero, one, zero64 = number(0.0), number(1.0), number(0.0, np.float64)

    # [rows, columns, n]: what belongs together is contiguous over the batch
    rows = node("Reshape", state, graph.integers(0, sum(scaling.STATE_ROWS), columns))
    rows = node("Transpose", rows, perm=[1, 2, 0])
    seen, moves, spreads, high, low = graph.split(rows, *scaling.STATE_ROWS, axis=0)
    references = node("Add", _double(graph, high), _double(graph, low))  # last value, moving averages
    last, _ = graph.split(references, 1, _LEVELS, axis=0)

    observed = node("Unsqueeze", node("Transpose", values), graph.integers(0))
    missing = node("IsNaN", observed)
    present = node("Cast", node("Not", missing), to=TensorProto.FLOAT)
    since_last = node("Sub", observed, last)
    value_high, value_low = _pair(graph, node("Where", missing, last, observed))
    value = node("Add", _double(graph, value_high), _double(graph, value_low))

    references = node("Where", node("Equal", seen, zero), value, references)
    deviations = node("Sub", value, references)
    move, from_levels = graph.split(deviations, 1, _LEVELS, axis=0)
    _, levels = graph.split(references, 1, _LEVELS, axis=0)
    moved = node("Cast", node("Cast", move, to=TensorProto.BOOL), to=TensorProto.FLOAT)
    seen = node("Add", seen, present)
    moves = node("Add", moves, moved)

    deviations = _float(graph, deviations)
    sizes = node("Abs", deviations)
    capped = node("Min", sizes, node("Mul", spreads, number(scaling.OUTLIER)))
    bounded = node("Where", node("Equal", moves, one), sizes, capped)
    warm_up = node("Max", _favouring_recent(graph, moves), number(scaling.SPREAD_RATE))
    warm_up = node("Min", warm_up, one)
    correction = node("Mul", node("Mul", moved, warm_up), node("Sub", bounded, spreads))
    spreads = node("Add", spreads, correction)

    slowest = graph.array(np.array(scaling.LEVEL_RATES, np.float32)[:, None, None])
    level_rates = node("Mul", node("Max", _favouring_recent(graph, seen), slowest), present)
    levels = node("Add", levels, node("Mul", _double(graph, level_rates), from_levels))
    levels_high, levels_low = _pair(graph, levels)

    magnitude = node("Where", node("Equal", value, zero64), number(1.0, np.float64), node("Abs", value))
    prior = node("Mul", _float(graph, magnitude), number(scaling.PRIOR_STEP))
    units = node("Where", node("Equal", moves, zero), prior, spreads)
    units = node("Max", units, number(scaling.SMALLEST_UNIT))
    largest = scaling.LARGEST_RATIO
    ratios = node("Clip", node("Div", deviations, units), number(-largest), number(largest))
    unit, other_units = graph.split(units, 1, _LEVELS, axis=0)
    relative = node("Clip", node("Div", other_units, unit), number(1 / largest), number(largest))

    def by_session(x: Tensor) -> Tensor:
        """[1, columns, n] -> [n, columns]."""
        return node("Transpose", node("Squeeze", x, graph.integers(0)))

    def row(*parts: Tensor) -> Tensor:
        """Parts [rows, columns, n] -> [n, all rows * columns]."""
        rows = node("Transpose", node("Concat", *parts, axis=0), perm=[2, 0, 1])
        return node("Reshape", rows, graph.integers(0, -1))

    missing_flag = node("Cast", missing, to=TensorProto.FLOAT)
    return ScaledStep(
        features=row(node("Asinh", ratios), node("Log", relative), warm_up, missing_flag),
        anchors=by_session(value),
        units=by_session(unit),
        seen=by_session(seen),
        moves=by_session(since_last),
        state=row(seen, moves, spreads, value_high, levels_high, value_low, levels_low),
    )


def _float(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.FLOAT)


def _double(graph: GraphBuilder, x: Tensor) -> Tensor:
    return graph.node("Cast", x, to=TensorProto.DOUBLE)


def _pair(graph: GraphBuilder, x: Tensor) -> tuple[Tensor, Tensor]:
    """A float64 as the sum of two float32."""
    high = _float(graph, x)
    return high, _float(graph, graph.node("Sub", x, _double(graph, high)))


def _favouring_recent(graph: GraphBuilder, count: Tensor) -> Tensor:
    """The rate 2 / (count + 1)."""
    return graph.node("Div", graph.number(2.0), graph.node("Add", count, graph.number(1.0)))
