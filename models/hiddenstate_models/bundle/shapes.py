"""The shapes of every weight and state that a network's configuration fixes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveInt, TypeAdapter, ValidationError

from hiddenstate_models.bundle.complaints import first_complaint
from hiddenstate_models.errors import BundleCorruptError

LOG_NORMALIZER_SIZE = 1
SCALING_ROWS = 11
"""Floats of scaling state per input column."""
FEATURES = 7
"""Numbers the cells of a value model see per input column."""

Shape = tuple[int, ...]


class CellShapes(BaseModel):
    """The part of a network's configuration that fixes the shapes of its recurrent weights."""

    cell: Literal["lstm", "gru"]
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    projection: PositiveInt | None = None

    @property
    def output_size(self) -> int:
        """Width of the stack's output."""
        return self.projection or self.hidden_sizes[-1]

    @property
    def state_size(self) -> int:
        """Floats in the recurrent state."""
        if self.cell == "gru":
            return sum(self.hidden_sizes)
        return sum((self.projection or size) + size for size in self.hidden_sizes)

    def cell_tensors(self, input_size: int) -> dict[str, Shape]:
        """Names and shapes of the recurrent weights."""
        gates = {"lstm": 4, "gru": 3}[self.cell]
        shapes: dict[str, Shape] = {}
        for layer, size in enumerate(self.hidden_sizes):
            output = self.projection or size
            prefix = f"cells.layers.{layer}."
            shapes[prefix + "weight_ih_l0"] = (gates * size, input_size)
            shapes[prefix + "weight_hh_l0"] = (gates * size, output)
            shapes[prefix + "bias_ih_l0"] = shapes[prefix + "bias_hh_l0"] = (gates * size,)
            if self.projection:
                shapes[prefix + "weight_hr_l0"] = (self.projection, size)
            input_size = output
        return shapes


class WordNetwork(CellShapes):
    """Shapes of a next-word network."""

    task: Literal["next-word"]
    vocabulary_size: PositiveInt
    embedding_size: PositiveInt
    tied: bool

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state and the log-normaliser of the next prediction."""
        return self.state_size + LOG_NORMALIZER_SIZE

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        shapes = {"encoder.weight": (self.vocabulary_size, self.embedding_size)} | self.cell_tensors(
            self.embedding_size
        )
        if not self.tied:
            shapes["head.weight"] = (self.vocabulary_size, self.output_size)
        return shapes | {"head.bias": (self.vocabulary_size,)}


class ValueNetwork(CellShapes):
    """Shapes of a next-value network."""

    task: Literal["next-value"]
    columns: PositiveInt
    targets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    distribution: Literal["student-t", "gaussian"]

    @property
    def parameters(self) -> int:
        """Parameters of a target's distribution."""
        return {"student-t": 3, "gaussian": 2}[self.distribution]

    @property
    def scaling_size(self) -> int:
        """Floats in the online scaling's state."""
        return SCALING_ROWS * self.columns

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state, the scaling's state and the last prediction."""
        return self.state_size + self.scaling_size + self.parameters * len(self.targets)

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        outputs = self.parameters * len(self.targets)
        shapes = self.cell_tensors(FEATURES * self.columns)
        return shapes | {"head.weight": (outputs, self.output_size), "head.bias": (outputs,)}


class NoteNetwork(CellShapes):
    """Shapes of a music network."""

    task: Literal["music"]
    lowest: Annotated[int, Field(ge=0, le=127)]
    notes: Annotated[int, Field(ge=1, le=128)]

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state and the logits of the next frame."""
        return self.state_size + self.notes

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        shapes = self.cell_tensors(self.notes)
        return shapes | {"head.weight": (self.notes, self.output_size), "head.bias": (self.notes,)}


Network = WordNetwork | ValueNetwork | NoteNetwork


def network_shapes(network: Mapping[str, Any]) -> Network:
    """The shapes a network's configuration fixes.

    Raises:
        BundleCorruptError: the configuration lacks a field or has one out of range.
    """
    try:
        return _NETWORK.validate_python(network)
    except ValidationError as error:
        raise BundleCorruptError(f"network: {first_complaint(error)}") from error


_NETWORK: TypeAdapter[Network] = TypeAdapter(Annotated[Network, Field(discriminator="task")])
