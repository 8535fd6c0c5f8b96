"""Matrix products with stored weights, in float32 or in int8."""

from dataclasses import dataclass
from typing import Protocol

from hiddenstate_models.bundle import CellShapes
from hiddenstate_models.export.graph import GraphBuilder, Rows, Tensor


@dataclass(frozen=True)
class Operand:
    """A tensor [n, size] whose values lie within [-limit, limit]; or, turned, [size, n]."""

    tensor: Tensor
    limit: float
    turned: bool = False


@dataclass(frozen=True)
class Limits:
    """Bounds on what the products multiply."""

    input: float = 1.0
    """Of the encoder's output."""
    unbounded: float = 1.0
    """Of the outputs of layers whose kind sets no bound."""

    def output(self, cells: CellShapes) -> float:
        """Of a layer's output: a gate times a tanh, or an average of tanhs, is within 1."""
        return 1.0 if cells.bounded else self.unbounded


class Products(Protocol):
    """Multiplies operands by stored weights."""

    def linear(self, graph: GraphBuilder, x: Operand, weight: str, addend: Tensor, rows: Rows = None) -> Tensor:
        """x @ weight.T + addend [n, outputs]; weight names a stored tensor [outputs, inputs],
        of which only `rows` count where given."""
        ...

    def row_products(self, graph: GraphBuilder, x: Operand, weight: str, rows: Tensor) -> Tensor:
        """The products of each x with one row of the weight, numbered by rows [n] -> [n]; as `linear` gives them."""
        ...


class Float32Products:
    """Plain float32."""

    def linear(self, graph: GraphBuilder, x: Operand, weight: str, addend: Tensor, rows: Rows = None) -> Tensor:
        """See Products."""
        return graph.node("Gemm", x.tensor, graph.weight(weight, rows), addend, transA=int(x.turned), transB=1)

    def row_products(self, graph: GraphBuilder, x: Operand, weight: str, rows: Tensor) -> Tensor:
        """See Products."""
        chosen = graph.node("Gather", graph.weight(weight), rows)
        return graph.node("ReduceSum", graph.node("Mul", chosen, x.tensor), graph.integers(1), keepdims=0)
