"""Steps of a stack of cells, as a graph.

Plain products and gates are faster in ONNX Runtime than its own LSTM and GRU operators, and the recurrent
product takes the input's as the matrix it adds to, which saves a pass over the gates.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from hiddenstate_models.bundle import CellShapes
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products
from hiddenstate_models.export.traversal import State, Traversal


class _Layer(NamedTuple):
    """A layer whose weights' names begin with `prefix`."""

    graph: GraphBuilder
    products: Products
    prefix: str
    units: int
    limit: float
    """Of its output."""

    def weight(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.graph.weight(self.prefix + name, rows)

    def product(self, x: Operand, name: str, addend: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        return self.products.linear(self.graph, x, self.prefix + name, addend, rows)


class _Cell(NamedTuple):
    """A kind of layer, in two parts: only the second needs one step after the other."""

    project: Callable[[_Layer, Operand], tuple[Tensor, ...]]
    """What inputs [n, input] contribute."""
    advance: Callable[[_Layer, Sequence[Tensor], State], tuple[Tensor, ...]]
    """That and the state -> the next state, its output first."""


def split_state(graph: GraphBuilder, cells: CellShapes, row: Tensor) -> list[tuple[Tensor, ...]]:
    """The recurrent state [n, state_size] as one tuple per layer: (h, c) of an LSTM, (h,) of the others."""
    if cells.cell != "lstm":
        return [(h,) for h in graph.split(row, *cells.hidden_sizes)]
    sizes = [width for pair in zip(cells.output_sizes, cells.hidden_sizes, strict=True) for width in pair]
    pieces = graph.split(row, *sizes)
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def stack(
    graph: GraphBuilder,
    cells: CellShapes,
    products: Products,
    x: Operand,
    state: list[tuple[Tensor, ...]],
    limits: Limits,
    traversal: Traversal,
    name: str = "cells",
) -> tuple[Operand, list[tuple[Tensor, ...]]]:
    """Takes all layers of a stack through x [n, input]: its outputs [n, output] and its state afterwards."""
    cell = _CELLS[cells.cell]
    limit = limits.output(cells)
    after = []
    for number, before in enumerate(state):
        layer = _Layer(graph, products, f"{name}.layers.{number}.", cells.hidden_sizes[number], limit)
        output, now = traversal.through(graph, partial(cell.advance, layer), cell.project(layer, x), before)
        after.append(tuple(now))
        x = Operand(output, limit)
    return x, after


def _all_gates(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    bias = layer.graph.node("Add", layer.weight("bias_ih_l0"), layer.weight("bias_hh_l0"))
    return (layer.product(x, "weight_ih_l0", bias),)


def _elman(function: str) -> _Cell:
    def advance(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
        (from_x,), (h,) = inputs, state
        affine = layer.product(Operand(h, layer.limit), "weight_hh_l0", from_x)
        return (layer.graph.node(function, affine),)

    return _Cell(_all_gates, advance)


def _lstm(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
    graph, units, (from_x,), (h, c) = layer.graph, layer.units, inputs, state
    gates = layer.product(Operand(h, layer.limit), "weight_hh_l0", from_x)
    i, f, g, o = graph.split(gates, units, units, units, units)
    kept = graph.node("Mul", graph.node("Sigmoid", f), c)
    added = graph.node("Mul", graph.node("Sigmoid", i), graph.node("Tanh", g))
    c = graph.node("Add", kept, added)
    output = graph.node("Mul", graph.node("Sigmoid", o), graph.node("Tanh", c))
    if graph.holds(layer.prefix + "weight_hr_l0"):
        output = layer.product(Operand(output, 1.0), "weight_hr_l0", graph.number(0.0))
    return output, c


def _gru_inputs(layer: _Layer, x: Operand) -> tuple[Tensor, ...]:
    gates, candidate = _gru_rows(layer)
    gates_bias = layer.graph.node("Add", layer.weight("bias_ih_l0", gates), layer.weight("bias_hh_l0", gates))
    return (
        layer.product(x, "weight_ih_l0", gates_bias, gates),
        layer.product(x, "weight_ih_l0", layer.weight("bias_ih_l0", candidate), candidate),
    )


def _gru(layer: _Layer, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, ...]:
    graph, units, (h,) = layer.graph, layer.units, state
    gates_from_x, from_x = inputs
    gates, candidate = _gru_rows(layer)
    operand = Operand(h, layer.limit)
    both = layer.product(operand, "weight_hh_l0", gates_from_x, gates)
    r, z = graph.split(graph.node("Sigmoid", both), units, units)
    from_h = layer.product(operand, "weight_hh_l0", layer.weight("bias_hh_l0", candidate), candidate)
    n = graph.node("Tanh", graph.node("Add", from_x, graph.node("Mul", r, from_h)))
    change = graph.node("Mul", z, graph.node("Sub", h, n))
    return (graph.node("Add", n, change),)


def _gru_rows(layer: _Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows of the weights: of both gates, and of the candidate."""
    return (0, 2 * layer.units), (2 * layer.units, 3 * layer.units)


_CELLS: Mapping[str, _Cell] = {
    "rnn-tanh": _elman("Tanh"),
    "rnn-relu": _elman("Relu"),
    "lstm": _Cell(_all_gates, _lstm),
    "gru": _Cell(_gru_inputs, _gru),
}
