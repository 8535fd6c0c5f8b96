"""One step of a stack of cells, as a graph.

Plain products and gates are faster in ONNX Runtime than its own LSTM and GRU operators, and the recurrent
product takes the input's as the matrix it adds to, which saves a pass over the gates.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from onnx import TensorProto

from hiddenstate_models.bundle import CellShapes
from hiddenstate_models.export.graph import GraphBuilder, Tensor
from hiddenstate_models.export.products import Limits, Operand, Products

_LayerStep: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""(graph, products, prefix of the weights' names, units, input, h, the rest of the state) -> state, h first."""


def split_state(graph: GraphBuilder, cells: CellShapes, row: Tensor) -> list[tuple[Tensor, ...]]:
    """The recurrent state [n, state_size] as one tuple per layer: (h, c) of an LSTM, (h,) of the others."""
    if cells.cell != "lstm":
        return [(h,) for h in graph.split(row, *cells.hidden_sizes)]
    sizes = [width for pair in zip(cells.output_sizes, cells.hidden_sizes, strict=True) for width in pair]
    pieces = graph.split(row, *sizes)
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def stack_step(
    graph: GraphBuilder,
    cells: CellShapes,
    products: Products,
    x: Operand,
    state: list[tuple[Tensor, ...]],
    limits: Limits,
) -> tuple[Operand, list[tuple[Tensor, ...]]]:
    """Steps all layers once: the stack's output and its new state."""
    step = _STEPS[cells.cell]
    limit = limits.output(cells)
    after = []
    for layer, before in enumerate(state):
        h, *rest = before
        now = step(graph, products, f"cells.layers.{layer}.", cells.hidden_sizes[layer], x, Operand(h, limit), *rest)
        after.append(now)
        x = Operand(now[0], limit)
    return x, after


def stack_run(
    graph: GraphBuilder,
    cells: CellShapes,
    products: Products,
    x: Operand,
    state: list[tuple[Tensor, ...]],
    limits: Limits,
) -> tuple[Operand, list[tuple[Tensor, ...]]]:
    """Steps all layers through x [n, input] from one row of state: outputs [n, output] and the last state."""
    step = _STEPS[cells.cell]
    limit = limits.output(cells)
    after = []
    for layer, before in enumerate(state):
        name = f"cells.layers.{layer}."

        def one(
            state: Sequence[Tensor],
            elements: Sequence[Tensor],
            name: str = name,
            size: int = cells.hidden_sizes[layer],
            input_limit: float = x.limit,
        ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            h, *rest = state
            now = step(graph, products, name, size, Operand(elements[0], input_limit), Operand(h, limit), *rest)
            return now, now[:1]

        axis = graph.integers(1)
        rows = graph.node("Unsqueeze", x.tensor, axis)
        now, (outputs,) = graph.scan(before, [(rows, TensorProto.FLOAT)], one, 1)
        after.append(tuple(now))
        x = Operand(graph.node("Squeeze", outputs, axis), limit)
    return x, after


def _affine(graph: GraphBuilder, products: Products, prefix: str, x: Operand, h: Operand) -> Tensor:
    """What a layer's gates make of input and state together, before their functions."""
    bias = graph.node("Add", graph.weight(prefix + "bias_ih_l0"), graph.weight(prefix + "bias_hh_l0"))
    from_x = products.linear(graph, x, prefix + "weight_ih_l0", bias)
    return products.linear(graph, h, prefix + "weight_hh_l0", from_x)


def _elman(function: str) -> _LayerStep:
    def step(
        graph: GraphBuilder, products: Products, prefix: str, _size: int, x: Operand, h: Operand
    ) -> tuple[Tensor, ...]:
        return (graph.node(function, _affine(graph, products, prefix, x, h)),)

    return step


def _lstm(
    graph: GraphBuilder, products: Products, prefix: str, size: int, x: Operand, h: Operand, c: Tensor
) -> tuple[Tensor, ...]:
    gates = _affine(graph, products, prefix, x, h)
    i, f, g, o = graph.split(gates, size, size, size, size)
    kept = graph.node("Mul", graph.node("Sigmoid", f), c)
    added = graph.node("Mul", graph.node("Sigmoid", i), graph.node("Tanh", g))
    c = graph.node("Add", kept, added)
    output = graph.node("Mul", graph.node("Sigmoid", o), graph.node("Tanh", c))
    if graph.holds(prefix + "weight_hr_l0"):
        zero = graph.number(0.0)
        output = products.linear(graph, Operand(output, 1.0), prefix + "weight_hr_l0", zero)
    return output, c


def _gru(graph: GraphBuilder, products: Products, prefix: str, size: int, x: Operand, h: Operand) -> tuple[Tensor, ...]:
    def product(of: Operand, kind: str, rows: tuple[int, int], addend: Tensor) -> Tensor:
        return products.linear(graph, of, f"{prefix}weight_{kind}_l0", addend, rows)

    def bias(kind: str, rows: tuple[int, int]) -> Tensor:
        return graph.weight(f"{prefix}bias_{kind}_l0", rows)

    gates, candidate = (0, 2 * size), (2 * size, 3 * size)
    gates_bias = graph.node("Add", bias("ih", gates), bias("hh", gates))
    both = product(h, "hh", gates, product(x, "ih", gates, gates_bias))
    r, z = graph.split(graph.node("Sigmoid", both), size, size)
    from_x = product(x, "ih", candidate, bias("ih", candidate))
    from_h = product(h, "hh", candidate, bias("hh", candidate))
    n = graph.node("Tanh", graph.node("Add", from_x, graph.node("Mul", r, from_h)))
    change = graph.node("Mul", z, graph.node("Sub", h.tensor, n))
    return (graph.node("Add", n, change),)


_STEPS: Mapping[str, _LayerStep] = {
    "rnn-tanh": _elman("Tanh"),
    "rnn-relu": _elman("Relu"),
    "lstm": _lstm,
    "gru": _gru,
}
