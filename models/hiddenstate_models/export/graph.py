"""A small builder for ONNX graphs whose weights stay in a safetensors file."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hiddenstate_models.bundle import WEIGHTS_FILE, StoredTensor

OPSET = 20
IR_VERSION = 10
MICROSOFT_DOMAIN = "com.microsoft"

Tensor: TypeAlias = str
"""Name of a value in the graph under construction."""

Rows: TypeAlias = tuple[int, int] | None
"""A range of a stored tensor's rows; None for all."""

Signature: TypeAlias = Mapping[str, tuple[int, Sequence[int | str]]]
"""Graph inputs or outputs: name -> (element type, shape)."""

_ELEMENT_TYPES = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT}


class GraphBuilder:
    """Collects nodes and initialisers; its methods return the names of the tensors they make."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        """tensors: what model.safetensors holds, by name."""
        self._tensors = tensors
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._weights: dict[str, Tensor] = {}

    def holds(self, name: str) -> bool:
        """Whether model.safetensors has a tensor of this name."""
        return name in self._tensors

    def nodes(
        self, operator: str, inputs: Sequence[Tensor], outputs: int, *, domain: str = "", **attributes: Any
    ) -> tuple[Tensor, ...]:
        """Adds a node with several outputs."""
        names = tuple(f"{operator.lower()}_{len(self._nodes)}_{i}" for i in range(outputs))
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
        """A stored tensor, or some of its rows, as float32; a conversion is folded at session start."""
        key = name if rows is None else f"{name}[{rows[0]}:{rows[1]}]"
        if key not in self._weights:
            raw = self._external(key, self._tensors[name], rows)
            is_float32 = self._tensors[name].dtype == "F32"
            self._weights[key] = raw if is_float32 else self.node("Cast", raw, to=TensorProto.FLOAT)
        return self._weights[key]

    def split(self, x: Tensor, *sizes: int, axis: int = -1) -> tuple[Tensor, ...]:
        """Cuts an axis into pieces of these sizes."""
        return self.nodes("Split", [x, self.integers(*sizes)], len(sizes), axis=axis)

    def model(self, inputs: Signature, outputs: Signature) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes,
            "step",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
            list(self._initializers.values()),
        )
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="hiddenstate")

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
        for entry, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
            proto.external_data.add(key=entry, value=str(value))
        self._initializers[key] = proto
        return key
