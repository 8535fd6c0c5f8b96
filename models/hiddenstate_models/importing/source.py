"""What is taken from somebody's model, in torch's layout, and what any kind of file has to give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hiddenstate_models.errors import DataError

Floats = npt.NDArray[np.float32]
Inputs = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Layer:
    """Weights of one recurrent layer, gates in torch's order; biases of zeros where the model has none."""

    weight_ih: Floats
    weight_hh: Floats
    bias_ih: Floats
    bias_hh: Floats
    weight_hr: Floats | None = None

    @property
    def units(self) -> int:
        """Hidden units."""
        recurrent = self.weight_hh if self.weight_hr is None else self.weight_hr
        return int(recurrent.shape[1])

    def tensors(self, prefix: str) -> dict[str, Floats]:
        """By their names in a bundle."""
        found = {
            "weight_ih": self.weight_ih,
            "weight_hh": self.weight_hh,
            "bias_ih": self.bias_ih,
            "bias_hh": self.bias_hh,
            "weight_hr": self.weight_hr,
        }
        return {f"{prefix}{name}_l0": array for name, array in found.items() if array is not None}


@dataclass(frozen=True)
class Parts:
    """A model taken apart: embedding (of words), recurrent layers, linear output layer."""

    cell: str
    layers: Sequence[Layer]
    output: Floats
    """[outputs, units]"""
    bias: Floats
    """[outputs]"""
    embedding: Floats | None = None
    """[words, size]"""

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return self.embedding is not None and np.array_equal(self.embedding, self.output)

    def cells(self) -> dict[str, Any]:
        """The cells as fields of a network's configuration."""
        last = self.layers[-1]
        return {
            "cell": self.cell,
            "hidden_sizes": [layer.units for layer in self.layers],
            "projection": None if last.weight_hr is None else len(last.weight_hr),
        }

    def tensors(self) -> dict[str, Floats]:
        """Everything but the output layer's weights, by their names in a bundle."""
        found = {} if self.embedding is None else {"encoder.weight": self.embedding}
        for depth, layer in enumerate(self.layers):
            found |= layer.tensors(f"cells.layers.{depth}.")
        return found


class Source(Protocol):
    """A file with somebody's model in it."""

    parts: Parts

    def run(self, inputs: Inputs) -> list[Floats]:
        """The model's own outputs [T, outputs] for one sequence, computed by the library it is from.

        inputs are tokens int64 [T] or values float32 [T, columns]. Several answers where the file leaves open how the
        inputs lie.
        """
        ...

    @property
    def also_computes(self) -> Sequence[str]:
        """Operations in the model that a bundle has no place for, where the file tells."""
        ...


def only(candidates: Sequence[str], what: str, flag: str) -> str:
    """The one candidate.

    Raises:
        DataError: there is none, or several.
    """
    if len(candidates) == 1:
        return candidates[0]
    found = f"several could be it: {', '.join(candidates)}" if candidates else "there is none of the right shape"
    raise DataError(f"cannot tell which is {what}: {found}. Name it by --map {flag}=NAME")
