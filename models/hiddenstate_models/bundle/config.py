"""config.json of a bundle, field by field, and the names of its files."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
STEP_FILE = "step.onnx"
SEQUENCE_FILE = "sequence.onnx"
INT8_WEIGHTS_FILE = "model.int8.safetensors"
INT8_STEP_FILE = "step.int8.onnx"
INT8_SEQUENCE_FILE = "sequence.int8.onnx"
CARD_FILE = "card.md"
CURVE_FILE = "learning-curve.png"

LEAST_RECALL, MOST_PERPLEXITY = 0.999, 1.005
"""Of the int8 step where it is served unasked; perplexity is a ratio to float64's."""

Task = Literal["next-word", "next-value", "music", "forecasting", "classification", "tagging"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSettings(_Frozen):
    """How a model that reads words sees text."""

    lowercase: bool
    unknown_token: Annotated[int, Field(ge=0)]
    end_token: Annotated[int, Field(ge=0)]
    word_pattern: str
    spelling_suffixes: tuple[Annotated[int, Field(ge=0, le=16)], ...] = ()
    """Spelling classes of unknown words, see `spelling.classes`; empty where all are the unknown token."""


class ValueSettings(_Frozen):
    """How a value model sees values: names of its input columns and which of them it predicts."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    targets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class LabelSettings(_Frozen):
    """What a model of labels says."""

    names: Annotated[tuple[str, ...], Field(min_length=2)]
    """In the order of their probabilities."""
    look_ahead: Annotated[int, Field(ge=0)] = 0
    """Tagging: a word's label comes with the answer to the observation so many steps after it."""


class Int8Scores(BaseModel):
    """What the int8 step lost, as far as it decides whether that is served unasked."""

    model_config = ConfigDict(frozen=True)

    recall_at_5: float
    """Share of float64's five best words that are among int8's."""
    perplexity: Annotated[float, Field(gt=0)]
    float64_perplexity: Annotated[float, Field(gt=0)]

    @property
    def negligible(self) -> bool:
        """Whether it finds the same words, and they are as probable."""
        return self.recall_at_5 >= LEAST_RECALL and self.perplexity <= MOST_PERPLEXITY * self.float64_perplexity


class FileFacts(_Frozen):
    """What a file of the bundle must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class BundleConfig(_Frozen):
    """config.json."""

    format: Literal[1]
    name: Name
    version: PositiveInt
    task: Task
    network: dict[str, Any]
    state_size: PositiveInt
    parameters: PositiveInt
    text: TextSettings | None = None
    values: ValueSettings | None = None
    labels: LabelSettings | None = None
    scores: dict[str, Any]
    training: dict[str, Any]
    files: dict[FileName, FileFacts]
