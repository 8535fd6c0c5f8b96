"""Which files an ONNX model reads its weights from, found without the onnx package.

The fields below are those of onnx.proto through which a TensorProto can be reached; the rest is skipped.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from hiddenstate_models.errors import BundleCorruptError

_Message: TypeAlias = Mapping[int, str]

# Message -> field number -> message in that field.
_FIELDS: Mapping[str, _Message] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_KEY, _VALUE = 1, 2
_FIXED_SIZES = {1: 8, 5: 4}
_VARINT, _LENGTH_DELIMITED = 0, 2


def external_files(model: bytes) -> set[str]:
    """Locations of the external data that any tensor in a serialised model refers to.

    Raises:
        BundleCorruptError: the bytes are no ONNX model.
    """
    try:
        return set(_locations(memoryview(model), "Model"))
    except (IndexError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise BundleCorruptError("it is no whole ONNX model; export the bundle again") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "Entry":
        fields = {number: bytes(value).decode() for number, value in _submessages(message)}
        if fields[_KEY] == "location":
            yield fields[_VALUE]
        return
    inner = _FIELDS[kind]
    for number, value in _submessages(message):
        if number in inner:
            yield from _locations(value, inner[number])


def _submessages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field numbers and contents of a message's length-delimited fields."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(message, position)
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
        else:
            size = _FIXED_SIZES[wire_type]
        if position + size > len(message):
            raise IndexError("a field reaches over the message's end")
        if wire_type == _LENGTH_DELIMITED:
            yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A base-128 integer and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
