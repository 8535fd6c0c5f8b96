"""Steps of a stack of cells, as a graph.

Plain products and gates are faster in ONNX Runtime than its own LSTM and GRU operators, and the recurrent
product takes the input's as the matrix it adds to, which saves a pass over the gates.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from hiddenstate_models.bundle import CellShapes
from hiddenstate_models.export.graph import GraphBuilder, Rows, Tensor
from hiddenstate_models.export.products import Operand, linear
from hiddenstate_models.export.traversal import State, Traversal

_NORM_EPSILON = 1e-5
"""torch's own."""


class _Layer(NamedTuple):
    """A layer whose weights' names begin with `prefix`."""

    graph: GraphBuilder
    cells: CellShapes
    prefix: str
    units: int

    @property
    def plain(self) -> bool:
        """Whether it is as its first authors made it."""
        cells = self.cells
        return not (cells.layer_norm or cells.peepholes or cells.coupled or cells.projection)

    def weight(self, name: str, rows: Rows = None) -> Tensor:
        return self.graph.weight(self.prefix + name, rows)

    def bias(self, rows: Rows = None) -> Tensor:
        """Of input and state together."""
        return self.graph.node("Add", self.weight("bias_ih_l0", rows), self.weight("bias_hh_l0", rows))

    def norm(self, x: Tensor, name: str, rows: Rows = None) -> Tensor:
        """Layer normalisation of x [n, size] with a gain and no offset."""
        return self.graph.node("LayerNormalization", x, self.weight(name, rows), axis=-1, epsilon=_NORM_EPSILON)

    def contribution(self, x: Operand, kind: str, addend: Tensor, rows: Rows = None) -> Tensor:
        """What the input ("ih") or the state ("hh") contributes to gates, normalised where cells are, + addend."""
        if not self.cells.layer_norm:
            return self.product(x, f"weight_{kind}_l0", addend, rows)
        product = self.product(x, f"weight_{kind}_l0", self.graph.number(0.0), rows)
        return self.graph.node("Add", self.norm(product, f"norm_{kind}_l0", rows), addend)

    def product(self, x: Operand, name: str, addend: Tensor, rows: Rows = None) -> Tensor:
        return linear(self.graph, x, self.prefix + name, addend, rows)


class _Cell(NamedTuple):
    """A kind of layer, in two parts: only the second needs one step after the other. Some have an operator for both."""

    project: Callable[[_Layer, Operand], tuple[Tensor, ...]]
    """What inputs [n, input] contribute."""
    advance: Callable[[_Layer, Sequence[Tensor], State], tuple[Tensor, ...]]
    """That and the state -> the next state, its output first."""
    operator: str | None = None
    """ONNX's own, for layers without extras."""
    gates: tuple[int, ...] = ()
    """Which of the weights' blocks of rows each of the operator's is."""


def split_state(graph: GraphBuilder, cells: CellShapes, row: Tensor) -> list[tuple[Tensor, ...]]:
    """The recurrent state [n, state_size] as one tuple per layer: (h, c) of an LSTM, (h,) of others, () of none."""
    if cells.cell == "none":
        return [()] * len(cells.hidden_sizes)
    if cells.cell != "lstm":
        return [(h,) for h in graph.split(row, *cells.row_sizes)]
    sizes = [width for pair in zip(cells.output_sizes, cells.hidden_sizes, strict=True) for width in pair]
    pieces = graph.split(row, *sizes)
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def stack(
    graph: GraphBuilder,
    cells: CellShapes,
    x: Operand,
    state: list[tuple[Tensor, ...]],
    traversal: Traversal,
    name: str = "cells",
    *,
    as_steps: bool = False,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Takes all layers of a stack through x [n, input]: its outputs [n, output] and its state afterwards.

    `as_steps`: a sequence is to round as its steps do, which the cells' own operators do not.
    """
    cell = _CELLS[cells.cell]
    after = []
    for number, before in enumerate(state):
        layer = _Layer(graph, cells, f"{name}.layers.{number}.", cells.hidden_sizes[number])
        now: State
        if traversal.is_sequence and cell.operator and layer.plain and not as_steps:
            output, now = _through(layer, cell, x, before)
        else:
            output, *inputs = cell.project(layer, x)
            now = ()
            if before:
                output, now = traversal.through(graph, partial(cell.advance, layer), [output, *inputs], before)
        after.append(tuple(now))
        x = Operand(graph.node("Add", output, x.tensor) if number and cells.residual else output)
    return x.tensor, after


def _through(layer: _Layer, cell: _Cell, x: Operand, state: State) -> tuple[Tensor, State]:
    """Takes a layer through x [n, input] by its own operator: outputs [n, units] and the state afterwards.

    It is slower than plain products and gates for a step of many sessions, and several times as fast for many of one.
    """
    node, graph = layer.graph.node, layer.graph
    first, second = graph.integers(0), graph.integers(1)

    def weight(name: str) -> Tensor:
        blocks = [layer.weight(name, (gate * layer.units, (gate + 1) * layer.units)) for gate in cell.gates]
        return node("Concat", *blocks, axis=0)

    matrices = [node("Unsqueeze", weight(f"weight_{kind}_l0"), first) for kind in ("ih", "hh")]
    bias = node("Unsqueeze", node("Concat", weight("bias_ih_l0"), weight("bias_hh_l0"), axis=0), first)
    inputs = node("Unsqueeze", node("Transpose", x.tensor) if x.turned else x.tensor, second)
    befores = [node("Unsqueeze", piece, first) for piece in state]
    options: dict[str, Any] = {"linear_before_reset": 1} if cell.operator == "GRU" else {}
    operands = [inputs, *matrices, bias, "", *befores]
    outputs, *after = graph.nodes(cell.operator or "", operands, 1 + len(state), hidden_size=layer.units, **options)
    return node("Squeeze", outputs, graph.integers(1, 2)), [node("Squeeze", piece, first) for piece in after]


def _inputs(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    return (layer.contribution(x, "ih", layer.bias()),)


def _without_memory(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    return (layer.graph.node("Tanh", layer.product(x, "weight_ih_l0", layer.weight("bias_ih_l0"))),)


def _nothing(_layer: _Layer, _inputs: Sequence[Tensor], _state: State) -> tuple[Tensor, ...]:
    return ()


def _elman_inputs(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    # normalised is the sum of both contributions
    addend = layer.graph.number(0.0) if layer.cells.layer_norm else layer.bias()
    return (layer.product(x, "weight_ih_l0", addend),)


def _elman(function: str) -> _Cell:
    def advance(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
        (from_x,), (h,) = inputs, state
        affine = layer.product(Operand(h), "weight_hh_l0", from_x)
        if layer.cells.layer_norm:
            affine = layer.graph.node("Add", layer.norm(affine, "norm_hh_l0"), layer.bias())
        return (layer.graph.node(function, affine),)

    return _Cell(_elman_inputs, advance)


def _jordan(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
    (from_x,), (output,) = inputs, state
    h = layer.graph.node("Tanh", layer.product(Operand(output), "weight_hh_l0", from_x))
    return (layer.product(Operand(h), "weight_hr_l0", layer.weight("bias_hr_l0")),)


def _lstm(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
    node, cells, (from_x,), (h, c) = layer.graph.node, layer.cells, inputs, state
    gates = layer.contribution(Operand(h), "hh", from_x)
    *inner, g, o = layer.graph.split(gates, *[layer.units] * (3 if cells.coupled else 4))
    opened = [node("Sigmoid", _peeped(layer, gate, place, c)) for place, gate in enumerate(inner)]
    candidate, forget = node("Tanh", g), opened[-1]
    if cells.coupled:
        c = node("Add", candidate, node("Mul", forget, node("Sub", c, candidate)))
    else:
        c = node("Add", node("Mul", forget, c), node("Mul", opened[0], candidate))
    o = node("Sigmoid", _peeped(layer, o, len(inner), c))
    shown = node("Add", layer.norm(c, "norm_ch_l0"), layer.weight("bias_ch_l0")) if cells.layer_norm else c
    output = node("Mul", o, node("Tanh", shown))
    if cells.projection:
        output = layer.product(Operand(output), "weight_hr_l0", layer.graph.number(0.0))
    return output, c


def _peeped(layer: _Layer, gate: Tensor, place: int, c: Tensor) -> Tensor:
    if not layer.cells.peepholes:
        return gate
    return layer.graph.node("Add", gate, layer.graph.node("Mul", layer.weight("peephole_l0", (place, place + 1)), c))


def _gru_inputs(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    gates, candidate = _gru_rows(layer)
    return (
        layer.contribution(x, "ih", layer.bias(gates), gates),
        layer.contribution(x, "ih", layer.weight("bias_ih_l0", candidate), candidate),
    )


def _gru(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
    graph, units, (h,) = layer.graph, layer.units, state
    gates_from_x, from_x = inputs
    gates, candidate = _gru_rows(layer)
    operand = Operand(h)
    both = layer.contribution(operand, "hh", gates_from_x, gates)
    r, z = graph.split(graph.node("Sigmoid", both), units, units)
    from_h = layer.contribution(operand, "hh", layer.weight("bias_hh_l0", candidate), candidate)
    n = graph.node("Tanh", graph.node("Add", from_x, graph.node("Mul", r, from_h)))
    change = graph.node("Mul", z, graph.node("Sub", h, n))
    return (graph.node("Add", n, change),)


def _gru_rows(layer: _Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows of the weights: of both gates, and of the candidate."""
    return (0, 2 * layer.units), (2 * layer.units, 3 * layer.units)


_CELLS: Mapping[str, _Cell] = {
    "none": _Cell(_without_memory, _nothing),
    "rnn-tanh": _elman("Tanh"),
    "rnn-relu": _elman("Relu"),
    "jordan": _Cell(_inputs, _jordan),
    "lstm": _Cell(_inputs, _lstm, "LSTM", (0, 3, 1, 2)),
    "gru": _Cell(_gru_inputs, _gru, "GRU", (1, 0, 2)),
}
