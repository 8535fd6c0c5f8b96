"""The header of a safetensors file: where each tensor lies."""

import json
from dataclasses import dataclass
from pathlib import Path

from hiddenstate_models.bundle.shapes import Shape
from hiddenstate_models.errors import BundleCorruptError

_HEADER_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file, in bytes from its start."""

    file: str
    """The file's name."""
    dtype: str
    shape: Shape
    offset: int
    bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, types, shapes and places of the tensors in a safetensors file.

    Raises:
        BundleCorruptError: the file is not whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _HEADER_LIMIT):
            raise BundleCorruptError(f"{path} is no safetensors file, or it is cut short; export the bundle again")
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(
                file=path.name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                offset=8 + length + entry["data_offsets"][0],
                bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BundleCorruptError(f"{path} has a damaged header; export the bundle again") from error
    if any(tensor.offset + tensor.bytes > size for tensor in tensors.values()):
        raise BundleCorruptError(f"{path} is cut short; export the bundle again")
    return tensors
