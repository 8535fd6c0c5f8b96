"""The shapes of every weight and state that a network's configuration fixes."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from hiddenstate_models.bundle.complaints import first_complaint
from hiddenstate_models.errors import BundleCorruptError

LOG_NORMALIZER_SIZE = 1
SCALING_ROWS = 11
"""Floats of scaling state per input column."""
FEATURES = 7
"""Numbers the cells of a value model see per input column, unless its scaling is fixed."""

Shape = tuple[int, ...]

_GATES = {"none": 1, "rnn-tanh": 1, "rnn-relu": 1, "jordan": 1, "lstm": 4, "gru": 3}
_NAMES = {
    "none": "Feed-forward network",
    "rnn-tanh": "Elman network (tanh)",
    "rnn-relu": "Elman network (ReLU)",
    "jordan": "Jordan network",
    "lstm": "LSTM",
    "gru": "GRU",
}
_RECURRENT_UNITS = ("rnn-tanh", "rnn-relu", "lstm", "gru")
_CELLS_THAT_HAVE = {
    "projection": ("lstm", "jordan"),
    "layer_norm": _RECURRENT_UNITS,
    "peepholes": ("lstm",),
    "coupled": ("lstm",),
}


class CellShapes(BaseModel):
    """The part of a network's configuration that says what its cells are; the fields of `cells.CellOptions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Literal["none", "rnn-tanh", "rnn-relu", "jordan", "lstm", "gru"]
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    projection: PositiveInt | None = None
    layer_norm: bool = False
    peepholes: bool = False
    coupled: bool = False
    residual: bool = False

    # These tell how the weights were learnt and change no shape.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    variational: bool = False
    weight_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    initialisation: Literal["default", "uniform", "orthogonal", "identity", "chrono"] = "default"
    t_max: PositiveInt = 100
    forget_bias: float = 1.0

    @model_validator(mode="after")
    def _check_cell(self) -> Self:
        for option, cells in _CELLS_THAT_HAVE.items():
            if getattr(self, option) and self.cell not in cells:
                raise ValueError(f"{option} is for {' and '.join(cells)}; the cell is {self.cell}")
        if self.cell == "jordan" and len(self.hidden_sizes) > 1:
            raise ValueError("a Jordan network has one hidden layer")
        if self.residual and len(set(self.output_sizes)) > 1:
            raise ValueError(f"residual connections need layers of one size, not {self.output_sizes}")
        return self

    @property
    def description(self) -> str:
        """For people: "LSTM with 256 and 256 units, layer-normalised"."""
        parts = [f"{_NAMES[self.cell]} with {' and '.join(map(str, self.hidden_sizes))} units"]
        if self.projection:
            parts.append(f"projected to {self.projection}")
        names = {
            "layer_norm": "layer-normalised",
            "peepholes": "with peepholes",
            "coupled": "its input and forget gates coupled",
            "residual": "with residual connections",
        }
        return ", ".join(parts + [name for option, name in names.items() if getattr(self, option)])

    @property
    def output_size(self) -> int:
        """Width of the stack's output."""
        return self.output_sizes[-1]

    @property
    def output_sizes(self) -> list[int]:
        """Width of each layer's output."""
        return [self.projection or size for size in self.hidden_sizes]

    @property
    def row_sizes(self) -> list[int]:
        """Floats in each layer's part of the recurrent state; a part begins with the layer's output."""
        if self.cell == "none":
            return [0] * len(self.hidden_sizes)
        if self.cell == "lstm":
            return [output + size for output, size in zip(self.output_sizes, self.hidden_sizes, strict=True)]
        return self.output_sizes

    @property
    def state_size(self) -> int:
        """Floats in the recurrent state."""
        return sum(self.row_sizes)

    @property
    def outputs(self) -> list[slice]:
        """Where the recurrent state holds each layer's output."""
        starts = accumulate(self.row_sizes, initial=0)
        return [slice(start, start + size) for start, size in zip(starts, self.output_sizes, strict=False)]

    @property
    def holds_output(self) -> bool:
        """Whether the stack's output can be read out of the recurrent state."""
        return self.cell != "none" and not (self.residual and len(self.hidden_sizes) > 1)

    @property
    def bounded(self) -> bool:
        """Whether no layer's output ever leaves [-1, 1]."""
        return self.cell not in ("rnn-relu", "jordan") and not self.projection and not self.residual

    def cell_tensors(self, input_size: int, stack: str = "cells") -> dict[str, Shape]:
        """Names and shapes of a stack's recurrent weights."""
        gates = _GATES[self.cell] - self.coupled
        shapes: dict[str, Shape] = {}
        for layer, (size, output) in enumerate(zip(self.hidden_sizes, self.output_sizes, strict=True)):
            prefix = f"{stack}.layers.{layer}."
            shapes[prefix + "weight_ih_l0"] = (gates * size, input_size)
            shapes[prefix + "bias_ih_l0"] = (gates * size,)
            if self.cell != "none":
                shapes[prefix + "weight_hh_l0"] = (gates * size, output)
                shapes[prefix + "bias_hh_l0"] = (gates * size,)
            if self.projection or self.cell == "jordan":
                shapes[prefix + "weight_hr_l0"] = (output, size)
            if self.cell == "jordan":
                shapes[prefix + "bias_hr_l0"] = (output,)
            if self.layer_norm:
                shapes |= {prefix + name: shape for name, shape in self._norm_tensors(gates, size).items()}
            if self.peepholes:
                shapes[prefix + "peephole_l0"] = (gates - 1, size)
            input_size = output
        return shapes

    def _norm_tensors(self, gates: int, size: int) -> dict[str, Shape]:
        if self.cell not in ("lstm", "gru"):
            return {"norm_hh_l0": (size,)}
        shapes: dict[str, Shape] = {"norm_ih_l0": (gates * size,), "norm_hh_l0": (gates * size,)}
        if self.cell == "lstm":
            shapes |= {"norm_ch_l0": (size,), "bias_ch_l0": (size,)}
        return shapes


class WordNetwork(CellShapes):
    """Shapes of a next-word network."""

    task: Literal["next-word"]
    vocabulary_size: PositiveInt
    embedding_size: PositiveInt
    tied: bool
    teacher_forcing: bool = False

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state, the output if that does not hold it, the log-normaliser."""
        return self.state_size + self.kept_output_size + LOG_NORMALIZER_SIZE

    @property
    def kept_output_size(self) -> int:
        """Floats of the stack's output that a row has beside the recurrent state."""
        return 0 if self.holds_output else self.output_size

    @property
    def output(self) -> slice:
        """Where a session's row has the stack's output, from which the next word is predicted."""
        return self.outputs[-1] if self.holds_output else slice(self.state_size, self.state_size + self.output_size)

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        shapes = {"encoder.weight": (self.vocabulary_size, self.embedding_size)} | self.cell_tensors(
            self.embedding_size
        )
        if not self.tied:
            shapes["head.weight"] = (self.vocabulary_size, self.output_size)
        return shapes | {"head.bias": (self.vocabulary_size,)}


class SeriesShapes(CellShapes):
    """What fixes the shapes of a network of values, however far ahead it predicts."""

    columns: PositiveInt
    targets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    distribution: Literal["student-t", "gaussian"]

    @property
    def parameters(self) -> int:
        """Parameters of a target's distribution."""
        return {"student-t": 3, "gaussian": 2}[self.distribution]

    @property
    def scaling_size(self) -> int:
        """Floats in the scaling's state."""
        return SCALING_ROWS * self.columns

    @property
    def prediction_size(self) -> int:
        """Floats in the prediction of one step."""
        return self.parameters * len(self.targets)


class ValueNetwork(SeriesShapes):
    """Shapes of a next-value network."""

    task: Literal["next-value"]
    scaling: Literal["online", "fixed"] = "online"

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state, the scaling's state and the last prediction."""
        return self.state_size + self.scaling_size + self.prediction_size

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        outputs, fixed = self.prediction_size, self.scaling == "fixed"
        shapes = self.cell_tensors(self.columns if fixed else FEATURES * self.columns)
        if fixed:
            shapes |= {"encoder.means": (self.columns,), "encoder.units": (self.columns,)}
        return shapes | {"head.weight": (outputs, self.output_size), "head.bias": (outputs,)}


class ForecastNetwork(SeriesShapes):
    """Shapes of a forecasting network: an encoder, and a decoder that starts from its state."""

    task: Literal["forecasting"]
    horizon: PositiveInt
    seasons: tuple[Annotated[int, Field(ge=2)], ...] = ()

    @property
    def memory(self) -> int:
        """How many of the last moves are kept to know the values a season before."""
        return max(self.seasons, default=0)

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the encoder's state, the scaling's, the last moves and the last prediction."""
        return self.state_size + self.scaling_size + self.memory * len(self.targets) + self.prediction_size

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        targets, seasons = len(self.targets), len(self.seasons)
        shapes = self.cell_tensors(FEATURES * self.columns + seasons * targets)
        shapes |= self.cell_tensors((1 + seasons) * targets, "decoder")
        outputs = self.prediction_size
        shapes |= {"head.weight": (outputs, self.output_size), "head.bias": (outputs,)}
        return shapes | {"linear": (1 + seasons,)}


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


class LabelNetwork(CellShapes):
    """Shapes of a network that labels text."""

    task: Literal["classification", "tagging"]
    vocabulary_size: PositiveInt
    embedding_size: PositiveInt
    labels: Annotated[int, Field(ge=2)]
    pooling: Literal["last", "max", "mean"]

    @property
    def pool_size(self) -> int:
        """Floats that pooling keeps: the largest outputs so far, or their sum and number."""
        return {"last": 0, "max": self.output_size, "mean": self.output_size + 1}[self.pooling]

    @property
    def served_state_size(self) -> int:
        """Floats in a session's row: the recurrent state and what pooling keeps."""
        return self.state_size + self.pool_size

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of every weight."""
        shapes: dict[str, Shape] = {"encoder.weight": (self.vocabulary_size, self.embedding_size)}
        shapes |= self.cell_tensors(self.embedding_size)
        return shapes | {"head.weight": (self.labels, self.output_size), "head.bias": (self.labels,)}


Network = WordNetwork | ValueNetwork | NoteNetwork | ForecastNetwork | LabelNetwork


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
