"""Matrix products with stored weights, in float32."""

from dataclasses import dataclass

from hiddenstate_models.export.graph import GraphBuilder, Rows, Tensor


@dataclass(frozen=True)
class Operand:
    """A tensor [n, size]; or, turned, [size, n]."""

    tensor: Tensor
    turned: bool = False


def linear(graph: GraphBuilder, x: Operand, weight: str, addend: Tensor, rows: Rows = None) -> Tensor:
    """x @ weight.T + addend [n, outputs]; weight names a stored tensor [outputs, inputs], of which only `rows` count
    where given.
    """
    return graph.node("Gemm", x.tensor, graph.weight(weight, rows), addend, transA=int(x.turned), transB=1)


def chosen_products(graph: GraphBuilder, x: Tensor, weight: str, bias: str, chosen: Tensor) -> Tensor:
    """What each of x [n, size] gives with some rows of a stored weight [outputs, size], chosen [n, m] -> [n, m]."""
    rows = graph.node("Gather", graph.weight(weight), chosen)
    products = graph.node("MatMul", rows, graph.node("Unsqueeze", x, graph.integers(2)))
    return graph.node(
        "Add", graph.node("Squeeze", products, graph.integers(2)), graph.node("Gather", graph.weight(bias), chosen)
    )
