"""Weights of LSTM, GRU and RNN nodes out of an ONNX graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hiddenstate_models.errors import DataError
from hiddenstate_models.importing.source import Floats, Inputs, Layer, Parts, only

Array = npt.NDArray[np.generic]

_ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates are among ONNX's: i f g o among i o f c, r z n among z r h."""
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
_X, _W, _R, _B, _, _H, _C, _P = range(8)
_PLAIN = {
    *("LSTM", "GRU", "RNN", "Gather", "MatMul", "Gemm", "Add", "Softmax", "LogSoftmax", "Cast", "Constant", "Shape"),
    *("ConstantOfShape", "Expand", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Concat"),
}


class OnnxSource:
    """An ONNX model; `run` is onnxruntime on the file as it is."""

    def __init__(self, path: Path, task: str, roles: Mapping[str, str]) -> None:
        """roles: the graph's own names of the initializers that are "embedding" and "output".

        Raises:
            DataError: the file cannot be read, or has recurrent nodes of a kind that bundles do not have.
        """
        try:
            self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self._graph = onnx.load(path).graph
        except Exception as error:  # the errors of onnx and of onnxruntime share no class but this
            raise DataError(f"cannot read {path} as an ONNX model: {error}") from error
        self._path = path
        self._made_by = {name: node for node in self._graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in self._graph.initializer}
        self._constants: dict[str, Array | None] = {}
        nodes = [node for node in self._graph.node if node.op_type in _ORDERS]
        kinds = {self._kind(node) for node in nodes}
        if len(kinds) != 1:
            found = " and ".join(sorted(kinds)) or "no LSTM, GRU or RNN node"
            raise DataError(f"a bundle has cells of one kind, but {path} has {found}")
        layers = [self._layer(node) for node in nodes]
        embedding = self._find_embedding(layers[0], roles) if task == "next-word" else None
        output, bias = self._find_output(layers[-1], roles)
        self.parts = Parts(cell=kinds.pop(), layers=layers, output=output, bias=bias, embedding=embedding)

    @property
    def also_computes(self) -> Sequence[str]:
        """See Source."""
        return sorted({node.op_type for node in self._graph.node} - _PLAIN)

    def run(self, inputs: Inputs) -> list[Floats]:
        """See Source; the sequence may lie along the first axis or, batch first, along the second."""
        answers, complaint = [], ""
        for axis in (1, 0):
            try:
                answers.append(self._run(inputs, axis))
            except Exception as error:  # onnxruntime's own errors share no class but this
                complaint = str(error)
        if not answers:
            raise DataError(
                f"{self._path} cannot be run on a sequence of {len(inputs)} observations in a batch of one, which the "
                f"check needs: {complaint}. Export it with dynamic axes"
            )
        return answers

    def _run(self, inputs: Inputs, axis: int) -> Floats:
        """axis: where the batch of one is."""
        width = len(self.parts.output)
        whole = self._answer(np.expand_dims(inputs, axis))
        if whole.size == len(inputs) * width:
            return whole.reshape(len(inputs), width)
        if whole.size == width:  # of the last step alone
            steps = [self._answer(np.expand_dims(inputs[: end + 1], axis)) for end in range(len(inputs))]
            return np.stack(steps).reshape(len(inputs), width)
        raise ValueError(f"its first output has the shape {list(whole.shape)}, not {len(inputs)} x {width}")

    def _answer(self, inputs: Inputs) -> Floats:
        first, *states = self._session.get_inputs()
        kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(double)": np.float64}
        feeds = {first.name: inputs.astype(kinds.get(first.type, np.float32))}
        for state in states:
            shape = [size if isinstance(size, int) else 1 for size in state.shape]
            feeds[state.name] = np.zeros(shape, kinds.get(state.type, np.float32))
        answer: Floats = self._session.run(None, feeds)[0]
        return np.asarray(answer, np.float32)

    def _kind(self, node: NodeProto) -> str:
        """Name of the bundle's cell.

        Raises:
            DataError: a bundle's cell computes something else than the node.
        """
        told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kind = node.op_type

        def refuse(what: str) -> DataError:
            return DataError(f"{kind} node {node.name or node.output[0]!r} of {self._path} {what}")

        if told.get("direction", b"forward") != b"forward":
            raise refuse(
                f"is {told['direction'].decode()}; reading backwards needs the future, which no session has yet"
            )
        if kind == "GRU" and not told.get("linear_before_reset"):
            raise refuse("resets the state before its product (linear_before_reset=0); a bundle's GRU does it after")
        for name in ("clip", "input_forget"):
            if told.get(name):
                raise refuse(f"has {name}={told[name]}, which a bundle's cells have not")
        if len(node.input) > _P and node.input[_P]:
            raise refuse("has peepholes, which the importer does not take")
        for place in (_H, _C):
            start = self._constant(node.input[place]) if len(node.input) > place else None
            if start is not None and np.any(start):
                raise refuse("starts from a state that is not zero; a bundle's sessions start from zeros")
        functions = [name.decode() for name in told.get("activations", [])]
        if kind == "RNN":
            if functions not in ([], ["Tanh"], ["Relu"]):
                raise refuse(f"has the activation {functions[0]}; a bundle's RNN has Tanh or Relu")
            return "rnn-relu" if functions == ["Relu"] else "rnn-tanh"
        if functions not in ([], _ACTIVATIONS[kind]):
            raise refuse(f"has the activations {', '.join(functions)} instead of {', '.join(_ACTIVATIONS[kind])}")
        return kind.lower()

    def _layer(self, node: NodeProto) -> Layer:
        w, r = (self._constant(node.input[place]) for place in (_W, _R))
        if w is None or r is None:
            raise DataError(f"the weights of {node.name or node.output[0]!r} are computed while {self._path} runs")
        b = self._constant(node.input[_B]) if len(node.input) > _B and node.input[_B] else None
        order, units = _ORDERS[node.op_type], r.shape[-1]
        gates = len(order)
        b = np.zeros((1, 2 * gates * units), np.float32) if b is None else b
        halves = b[0].reshape(2, gates, units)[:, order].reshape(2, -1)

        def ordered(weights: Array) -> Floats:
            reordered = weights[0].reshape(gates, units, -1)[list(order)].reshape(gates * units, -1)
            return np.ascontiguousarray(reordered, np.float32)

        return Layer(ordered(w), ordered(r), *(np.ascontiguousarray(half, np.float32) for half in halves))

    def _find_embedding(self, first: Layer, roles: Mapping[str, str]) -> Floats:
        size = first.weight_ih.shape[1]
        tables = {}
        for node in self._graph.node:
            table = self._constant(node.input[0]) if node.op_type == "Gather" else None
            if table is not None and table.ndim == 2 and table.shape[1] == size:
                tables[node.input[0]] = table
        name = only([roles["embedding"]] if "embedding" in roles else list(tables), f"the embedding [words, {size}]",
                    "embedding")  # fmt: skip
        if name not in tables:
            raise DataError(f"{self._path} looks no words up in {name!r}; there are {', '.join(tables) or 'none'}")
        return np.ascontiguousarray(tables[name], np.float32)

    def _find_output(self, last: Layer, roles: Mapping[str, str]) -> tuple[Floats, Floats]:
        size, found = last.weight_hh.shape[1], {}
        for node in self._graph.node:
            if node.op_type in ("MatMul", "Gemm") and (matrix := self._constant(node.input[1])) is not None:
                attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
                matrix = matrix if attributes.get("transB") else matrix.T
                if matrix.ndim == 2 and matrix.shape[1] == size:
                    found[node.input[1]] = (np.ascontiguousarray(matrix, np.float32), self._bias(node, len(matrix)))
        name = only([roles["output"]] if "output" in roles else list(found), f"the output layer [outputs, {size}]",
                    "output")  # fmt: skip
        if name not in found:
            raise DataError(f"{self._path} multiplies nothing by {name!r}; there are {', '.join(found) or 'none'}")
        return found[name]

    def _bias(self, product: NodeProto, outputs: int) -> Floats:
        """What is added to a product: by itself, or by the node after it."""
        addends = list(product.input[2:])
        for node in self._graph.node:
            if node.op_type == "Add" and product.output[0] in node.input:
                addends += [name for name in node.input if name != product.output[0]]
        for name in addends:
            if (bias := self._constant(name)) is not None and bias.size == outputs:
                return np.ascontiguousarray(bias.reshape(-1), np.float32)
        return np.zeros(outputs, np.float32)

    def _constant(self, name: str) -> Array | None:
        """A tensor that does not depend on the inputs: stored, or computed from stored ones; None for any other."""
        if name not in self._constants:
            self._constants[name] = self._fold(name)
        return self._constants[name]

    def _fold(self, name: str) -> Array | None:
        if name in self._stored:
            folder = str(self._path.parent)
            array: Array = numpy_helper.to_array(self._stored[name], base_dir=folder)
            return array
        node = self._made_by.get(name)
        if node is None or node.op_type in _ORDERS:
            return None
        operands = {operand: self._constant(operand) for operand in node.input if operand}
        if any(value is None for value in operands.values()):
            return None
        results = ReferenceEvaluator(node).run(None, operands)
        value: Array = list(results)[list(node.output).index(name)]
        return value
