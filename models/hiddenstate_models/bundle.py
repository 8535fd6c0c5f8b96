"""A bundle: a folder NAME/VERSION with everything needed to serve a trained network, checked when loaded.

    config.json         what the network is, how it was trained, its scores, and the hashes of the other files
    model.safetensors   the weights, once
    tokenizer.json      the vocabulary, for word models
    step.onnx           one served step; its weights are read from model.safetensors
    step.int8.onnx      the same with int8 weights of its own, where exported
    card.md             for people: data, licence, scores beside baselines, the command that trained it

Neither torch nor onnx is needed to load one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from hiddenstate_models.errors import BundleCorruptError, BundleFormatError
from hiddenstate_models.onnx_files import external_files

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
STEP_FILE = "step.onnx"
INT8_STEP_FILE = "step.int8.onnx"
CARD_FILE = "card.md"
CURVE_FILE = "learning-curve.png"

LOG_NORMALIZER_SIZE = 1
SCALING_ROWS = 11
"""Floats of scaling state per input column."""
FEATURES = 7
"""Numbers the cells of a value model see per input column."""
_HEADER_LIMIT = 16 * 2**20

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Shape = tuple[int, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSettings(_Frozen):
    """How a word model sees text."""

    lowercase: bool
    unknown_token: Annotated[int, Field(ge=0)]
    end_token: Annotated[int, Field(ge=0)]
    word_pattern: str


class ValueSettings(_Frozen):
    """How a value model sees values: names of its input columns and which of them it predicts."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    targets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class FileFacts(_Frozen):
    """What a file of the bundle must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class BundleConfig(_Frozen):
    """config.json."""

    format: Literal[1]
    name: Name
    version: PositiveInt
    task: Literal["next-word", "next-value"]
    network: dict[str, Any]
    state_size: PositiveInt
    parameters: PositiveInt
    text: TextSettings | None = None
    values: ValueSettings | None = None
    scores: dict[str, Any]
    training: dict[str, Any]
    files: dict[FileName, FileFacts]


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


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in model.safetensors, in bytes from the file's start."""

    dtype: str
    shape: Shape
    offset: int
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked against its config."""

    folder: Path
    config: BundleConfig
    tensors: dict[str, StoredTensor]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Opens a bundle and checks its format, versions, files, hashes, tensors and vocabulary.

        Raises:
            BundleFormatError: the folder is no bundle, or one of another format.
            BundleCorruptError: its files are missing, changed, or do not fit each other.
        """
        config = _read_config(folder)
        _check_place(folder, config)
        for name, facts in config.files.items():
            _check_file(folder, name, facts)
        _check_listed(folder, config)
        bundle = cls(folder, config, read_header(folder / WEIGHTS_FILE))
        bundle._check_references()
        bundle._check_tensors()
        bundle._check_task()
        return bundle

    @cached_property
    def network(self) -> WordNetwork | ValueNetwork:
        """The shapes of the network."""
        try:
            return network_shapes(self.config.network)
        except BundleCorruptError as error:
            raise BundleCorruptError(f"{self.folder / CONFIG_FILE}: {error}") from error

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Words by id; empty for value models."""
        if self.config.text is None:
            return ()
        path = self.folder / TOKENIZER_FILE
        try:
            ids: dict[str, int] = json.loads(path.read_bytes())["model"]["vocab"]
            words = tuple(sorted(ids, key=ids.__getitem__))
            complete = [ids[word] for word in words] == list(range(len(ids)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleCorruptError(f"{path} is no word-level tokenizer; export the bundle again") from error
        if not complete:
            raise BundleCorruptError(f"{path} does not number its words from 0 without gaps; export the bundle again")
        return words

    @property
    def has_int8(self) -> bool:
        """Whether an int8 step was exported."""
        return INT8_STEP_FILE in self.config.files

    def _check_references(self) -> None:
        for name in self.config.files:
            if not name.endswith(".onnx"):
                continue
            path = self.folder / name
            try:
                foreign = external_files(path.read_bytes()) - {WEIGHTS_FILE}
            except BundleCorruptError as error:
                raise BundleCorruptError(f"{path}: {error}") from error
            if foreign:
                raise BundleCorruptError(
                    f"{path} reads weights from {min(foreign)!r}; only {WEIGHTS_FILE} of its own folder is allowed"
                )

    def _check_tensors(self) -> None:
        path, expected = self.folder / WEIGHTS_FILE, self.network.tensors()
        for name in expected.keys() ^ self.tensors.keys():
            what = "lacks" if name in expected else "holds the unexpected"
            raise BundleCorruptError(f"{path} {what} tensor {name!r}; it belongs to another config.json")
        for name, shape in expected.items():
            stored = self.tensors[name]
            if stored.shape != shape:
                raise BundleCorruptError(
                    f"{path}: {name} has shape {list(stored.shape)}, but config.json asks for {list(shape)}"
                )
            if stored.dtype not in ("F16", "F32"):
                raise BundleCorruptError(f"{path}: {name} has dtype {stored.dtype}; it must be F16 or F32")

    def _check_task(self) -> None:
        path, config, network = self.folder / CONFIG_FILE, self.config, self.network
        if config.task != network.task:
            raise BundleCorruptError(f"{path}: task is {config.task!r}, but the network's is {network.task!r}")
        if config.state_size != network.served_state_size:
            raise BundleCorruptError(
                f"{path}: state_size is {config.state_size}, but this network needs {network.served_state_size}"
            )
        if isinstance(network, WordNetwork):
            self._check_text(network)
        else:
            self._check_values(network)

    def _check_text(self, network: WordNetwork) -> None:
        path, text, size = self.folder / CONFIG_FILE, self.config.text, network.vocabulary_size
        if text is None:
            raise BundleCorruptError(f"{path}: a next-word bundle needs the field 'text'")
        if len(self.vocabulary) != size:
            raise BundleCorruptError(
                f"{self.folder / TOKENIZER_FILE} has {len(self.vocabulary)} words, but the network {size}"
            )
        if max(text.unknown_token, text.end_token) >= size:
            raise BundleCorruptError(f"{path}: unknown_token and end_token must be below {size}")

    def _check_values(self, network: ValueNetwork) -> None:
        path, values = self.folder / CONFIG_FILE, self.config.values
        if values is None:
            raise BundleCorruptError(f"{path}: a next-value bundle needs the field 'values'")
        if len(values.columns) != network.columns or values.targets != network.targets:
            raise BundleCorruptError(f"{path}: the columns and targets of 'values' are not the network's")
        if max(values.targets) >= network.columns:
            raise BundleCorruptError(f"{path}: a target is not among the {network.columns} columns")


def network_shapes(network: Mapping[str, Any]) -> WordNetwork | ValueNetwork:
    """The shapes a network's configuration fixes.

    Raises:
        BundleCorruptError: the configuration lacks a field or has one out of range.
    """
    try:
        return _NETWORK.validate_python(network)
    except ValidationError as error:
        raise BundleCorruptError(f"network: {_first(error)}") from error


_NETWORK: TypeAdapter[WordNetwork | ValueNetwork] = TypeAdapter(
    Annotated[WordNetwork | ValueNetwork, Field(discriminator="task")]
)


def shipped_bundles() -> Path:
    """The folder of the bundles that come with the package."""
    return Path(str(resources.files("hiddenstate_models"))) / "bundles"


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
                entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BundleCorruptError(f"{path} has a damaged header; export the bundle again") from error
    if any(tensor.offset + tensor.bytes > size for tensor in tensors.values()):
        raise BundleCorruptError(f"{path} is cut short; export the bundle again")
    return tensors


def file_facts(path: Path) -> FileFacts:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(sha256=digest, bytes=path.stat().st_size)


def _read_config(folder: Path) -> BundleConfig:
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleFormatError(f"{folder} is no bundle: it has no {CONFIG_FILE}") from error
    except (OSError, ValueError) as error:
        raise BundleFormatError(f"{path} cannot be read as JSON: {error}") from error
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != FORMAT:
        raise BundleFormatError(
            f"{path} has format {found!r}, but this release reads format {FORMAT}; "
            "export the bundle again with the hiddenstate-models of this release"
        )
    try:
        return BundleConfig.model_validate(fields)
    except ValidationError as error:
        raise BundleCorruptError(f"{path}: {_first(error)}") from error


def _check_place(folder: Path, config: BundleConfig) -> None:
    """A folder called by a number stands in the layout NAME/VERSION and must be what its path says."""
    folder = folder.absolute()
    if folder.name.isdigit() and (folder.parent.name, folder.name) != (config.name, str(config.version)):
        raise BundleCorruptError(
            f"{folder} holds version {config.version} of {config.name!r}; "
            f"move it to {config.name}/{config.version}, or renumber it with `hiddenstate-models export --version`"
        )


def _check_file(folder: Path, name: str, facts: FileFacts) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleCorruptError(f"{folder} lacks {name}, which its {CONFIG_FILE} lists")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleCorruptError(f"{path} points out of the bundle; put the file itself there")
    size = path.stat().st_size
    if size != facts.bytes:
        raise BundleCorruptError(f"{path} has {size} bytes instead of {facts.bytes}; copy or export the bundle again")
    if file_facts(path) != facts:
        raise BundleCorruptError(f"{path} was changed after the bundle was written: its SHA-256 differs")


def _check_listed(folder: Path, config: BundleConfig) -> None:
    needed = [WEIGHTS_FILE, STEP_FILE] + [TOKENIZER_FILE] * (config.task == "next-word")
    for name in needed:
        if name not in config.files:
            raise BundleCorruptError(f"{folder / CONFIG_FILE} does not list {name}, which a {config.task} bundle needs")


def _first(error: ValidationError) -> str:
    """The first complaint of a validation, as `field: what`."""
    complaint = error.errors()[0]
    where = ".".join(map(str, complaint["loc"]))
    return f"{where}: {complaint['msg']}" if where else complaint["msg"]
