"""A small builder for ONNX graphs whose weights stay in a safetensors file."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from hiddenstate_models.bundle import StoredTensor

OPSET = 20
IR_VERSION = 10
MICROSOFT_DOMAIN = "com.microsoft"

Tensor: TypeAlias = str
"""Name of a value in the graph under construction."""

Rows: TypeAlias = tuple[int, int] | None
"""A range of a stored tensor's rows; None for all."""

Signature: TypeAlias = Mapping[str, tuple[int, Sequence[int | str]]]
"""Graph inputs or outputs: name -> (element type, shape)."""

_END = int(np.iinfo(np.int64).max)

_ELEMENT_TYPES = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT, "I8": TensorProto.INT8}


class GraphBuilder:
    """Collects nodes and initialisers; its methods return the names of the tensors they make."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        """tensors: the weights, by name."""
        self._tensors = tensors
        self._outer: list[NodeProto] = []
        """Nodes of the graph itself."""
        self._nodes = self._outer
        """Those of the graph, or of the body of a loop, that is being built."""
        self._count = 0
        self._initializers: dict[str, TensorProto] = {}
        self._weights: dict[str, Tensor] = {}

    def holds(self, name: str) -> bool:
        """Whether there is a weight of this name."""
        return name in self._tensors

    def nodes(
        self, operator: str, inputs: Sequence[Tensor], outputs: int, *, domain: str = "", **attributes: Any
    ) -> tuple[Tensor, ...]:
        """Adds a node with several outputs."""
        names = self._names(operator, outputs)
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names

    def node(self, operator: str, *inputs: Tensor, domain: str = "", **attributes: Any) -> Tensor:
        """Adds a node with one output."""
        return self.nodes(operator, inputs, 1, domain=domain, **attributes)[0]

    def output(self, name: str, x: Tensor) -> None:
        """Makes x the graph's output of this name."""
        self._nodes.append(helper.make_node("Identity", [x], [name]))

    def array(self, values: npt.NDArray[np.generic]) -> Tensor:
        """An array kept inside the graph; equal ones are kept once."""
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        name = f"{values.dtype}{list(values.shape)}_{digest}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def integers(self, *values: int) -> Tensor:
        """An int64 vector: axes, sizes, shapes."""
        return self.array(np.array(values, np.int64))

    def number(self, value: float, dtype: npt.DTypeLike = np.float32) -> Tensor:
        """A scalar."""
        return self.array(np.array(value, dtype))

    def weight(self, name: str, rows: Rows = None) -> Tensor:
        """A stored tensor, or some of its rows, float16 as float32; a conversion is folded at session start."""
        key = name if rows is None else f"{name}[{rows[0]}:{rows[1]}]"
        if key not in self._weights:
            raw = self._external(key, self._tensors[name], rows)
            if self._tensors[name].dtype == "F16":
                (converted,) = self._names("cast", 1)
                self._outer.append(helper.make_node("Cast", [raw], [converted], to=TensorProto.FLOAT))
                raw = converted
            self._weights[key] = raw
        return self._weights[key]

    def split(self, x: Tensor, *sizes: int, axis: int = -1) -> tuple[Tensor, ...]:
        """Cuts an axis into pieces of these sizes."""
        return self.nodes("Split", [x, self.integers(*sizes)], len(sizes), axis=axis)

    def last(self, x: Tensor, axis: int = 0) -> Tensor:
        """The last of [n, ...], as [1, ...]; or of another axis than the first."""
        return self._piece(x, -1, _END, axis)

    def rest(self, x: Tensor) -> Tensor:
        """All but the first of [..., n]."""
        return self._piece(x, 1, _END, -1)

    def shifted(self, first: Tensor, x: Tensor, axis: int = 0) -> Tensor:
        """What was before each of x [n, ...]: `first` [1, ...] and all but the last; or of another axis."""
        return self.node("Concat", first, self._piece(x, 0, -1, axis), axis=axis)

    def scan(
        self,
        state: Sequence[Tensor],
        sequences: Sequence[tuple[Tensor, int]],
        step: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]],
        outputs: int,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Steps through sequences [t, ...], given with their element types: the float32 state after the last step, and
        `outputs` float32 sequences [t, ...].

        `step` makes the nodes of one step: of a state and elements of the sequences, the next state and outputs.
        """
        outer, self._nodes = self._nodes, []
        befores, elements = self._names("before", len(state)), self._names("element", len(sequences))
        afters, produced = step(befores, elements)
        if len(produced) != outputs:
            raise ValueError(f"a step makes {len(produced)} outputs, not {outputs}")
        # What goes through unchanged, or goes out twice, needs a name of its own.
        ends = [self.node("Identity", x) for x in (*afters, *produced)]
        kinds = [TensorProto.FLOAT] * len(state) + [kind for _, kind in sequences]
        body = helper.make_graph(
            self._nodes,
            "one_step",
            [_untold(name, kind) for name, kind in zip((*befores, *elements), kinds, strict=True)],
            [_untold(name, TensorProto.FLOAT) for name in ends],
        )
        self._nodes = outer
        operands = [*state, *(sequence for sequence, _ in sequences)]
        results = self.nodes("Scan", operands, len(ends), body=body, num_scan_inputs=len(sequences))
        return results[: len(state)], results[len(state) :]

    def repeat(
        self, state: Sequence[Tensor], kind: int, step: Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]
    ) -> Sequence[Tensor]:
        """The state, tensors of one element type, after as many steps as it takes until one says that it was the last.

        `step` makes the nodes of one step: of a state, whether another one is to come (bool [1]), and the next state.
        """
        outer, self._nodes = self._nodes, []
        (count, going), befores = self._names("round", 2), self._names("before", len(state))
        more, afters = step(befores)
        ends = [self.node("Identity", x) for x in (more, *afters)]
        body = helper.make_graph(
            self._nodes,
            "one_round",
            [
                helper.make_tensor_value_info(count, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, [1]),
                *(_untold(name, kind) for name in befores),
            ],
            [
                helper.make_tensor_value_info(ends[0], TensorProto.BOOL, [1]),
                *(_untold(name, kind) for name in ends[1:]),
            ],
        )
        self._nodes = outer
        return self.nodes("Loop", ["", self.number(True, np.bool_), *state], len(afters), body=body)

    def model(self, inputs: Signature, outputs: Signature) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._outer,
            "step",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
            list(self._initializers.values()),
        )
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="hiddenstate")

    def _piece(self, x: Tensor, start: int, end: int, axis: int) -> Tensor:
        return self.node("Slice", x, self.integers(start), self.integers(end), self.integers(axis))

    def _names(self, stem: str, count: int) -> tuple[Tensor, ...]:
        self._count += 1
        return tuple(f"{stem.lower()}_{self._count}_{i}" for i in range(count))

    def _external(self, key: str, stored: StoredTensor, rows: Rows) -> Tensor:
        start, end = rows or (0, stored.shape[0])
        row_bytes = stored.bytes // stored.shape[0]
        proto = TensorProto(
            name=key,
            dims=(end - start, *stored.shape[1:]),
            data_type=_ELEMENT_TYPES[stored.dtype],
            data_location=TensorProto.EXTERNAL,
        )
        offset, length = stored.offset + start * row_bytes, (end - start) * row_bytes
        for entry, value in (("location", stored.file), ("offset", offset), ("length", length)):
            proto.external_data.add(key=entry, value=str(value))
        self._initializers[key] = proto
        return key


def _untold(name: str, kind: int) -> ValueInfoProto:
    """A value whose shape follows from the outer graph."""
    return helper.make_tensor_value_info(name, kind, None)
