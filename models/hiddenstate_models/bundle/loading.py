"""Opening a bundle: every file is checked before anything of it is used."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from hiddenstate_models.bundle.complaints import first_complaint
from hiddenstate_models.bundle.config import (
    CONFIG_FILE,
    FORMAT,
    INT8_STEP_FILE,
    INT8_WEIGHTS_FILE,
    STEP_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    FileFacts,
    Int8Scores,
)
from hiddenstate_models.bundle.onnx_files import external_files
from hiddenstate_models.bundle.shapes import LabelNetwork, Network, SeriesShapes, WordNetwork, network_shapes
from hiddenstate_models.bundle.weights import StoredTensor, read_header
from hiddenstate_models.errors import BundleCorruptError, BundleFormatError


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
        bundle._check_int8_tensors()
        bundle._check_task()
        return bundle

    @cached_property
    def network(self) -> Network:
        """The shapes of the network."""
        try:
            return network_shapes(self.config.network)
        except BundleCorruptError as error:
            raise BundleCorruptError(f"{self.folder / CONFIG_FILE}: {error}") from error

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Words by id; empty where the model reads none."""
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

    @property
    def prefers_int8(self) -> bool:
        """Whether there is an int8 step that was found to lose next to nothing, since it is the faster one."""
        try:
            return self.has_int8 and Int8Scores.model_validate(self.config.scores.get("int8")).negligible
        except ValidationError:  # those of older exports say nothing of float64
            return False

    def _check_references(self) -> None:
        for name in self.config.files:
            if not name.endswith(".onnx"):
                continue
            path = self.folder / name
            try:
                foreign = external_files(path.read_bytes()) - (
                    {WEIGHTS_FILE, INT8_WEIGHTS_FILE} & self.config.files.keys()
                )
            except BundleCorruptError as error:
                raise BundleCorruptError(f"{path}: {error}") from error
            if foreign:
                raise BundleCorruptError(
                    f"{path} reads weights from {min(foreign)!r}; only {WEIGHTS_FILE} and {INT8_WEIGHTS_FILE} "
                    "of its own folder, as its config.json lists them, are allowed"
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

    def _check_int8_tensors(self) -> None:
        """Those of the int8 step are matrices of the network, as NAME.int8, and a scale for each of their rows."""
        if INT8_WEIGHTS_FILE not in self.config.files:
            return
        path, shapes = self.folder / INT8_WEIGHTS_FILE, self.network.tensors()
        for name, stored in read_header(path).items():
            of, _, kind = name.rpartition(".")
            shape = shapes.get(of, ())
            expected = {"int8": ("I8", shape), "scales": ("F32", shape[:1])}.get(kind)
            if len(shape) != 2 or (stored.dtype, stored.shape) != expected:
                raise BundleCorruptError(
                    f"{path}: {name} is {stored.dtype} {list(stored.shape)}, which does not belong to the network of "
                    "config.json; export the bundle again"
                )

    def _check_task(self) -> None:
        path, config, network = self.folder / CONFIG_FILE, self.config, self.network
        if config.task != network.task:
            raise BundleCorruptError(f"{path}: task is {config.task!r}, but the network's is {network.task!r}")
        if config.state_size != network.served_state_size:
            raise BundleCorruptError(
                f"{path}: state_size is {config.state_size}, but this network needs {network.served_state_size}"
            )
        if isinstance(network, WordNetwork | LabelNetwork):
            self._check_text(network)
        if isinstance(network, LabelNetwork):
            self._check_labels(network)
        elif isinstance(network, SeriesShapes):
            self._check_values(network)

    def _check_text(self, network: WordNetwork | LabelNetwork) -> None:
        path, text, size = self.folder / CONFIG_FILE, self.config.text, network.vocabulary_size
        if text is None:
            raise BundleCorruptError(f"{path}: a {network.task} bundle needs the field 'text'")
        if len(self.vocabulary) != size:
            raise BundleCorruptError(
                f"{self.folder / TOKENIZER_FILE} has {len(self.vocabulary)} words, but the network {size}"
            )
        if max(text.unknown_token, text.end_token) >= size:
            raise BundleCorruptError(f"{path}: unknown_token and end_token must be below {size}")

    def _check_labels(self, network: LabelNetwork) -> None:
        path, labels = self.folder / CONFIG_FILE, self.config.labels
        if labels is None:
            raise BundleCorruptError(f"{path}: a {network.task} bundle needs the field 'labels'")
        if len(set(labels.names)) != network.labels:
            raise BundleCorruptError(f"{path}: labels must name {network.labels} different labels, as the network has")

    def _check_values(self, network: SeriesShapes) -> None:
        path, values = self.folder / CONFIG_FILE, self.config.values
        if values is None:
            raise BundleCorruptError(f"{path}: a {self.config.task} bundle needs the field 'values'")
        if len(values.columns) != network.columns or values.targets != network.targets:
            raise BundleCorruptError(f"{path}: the columns and targets of 'values' are not the network's")
        if max(values.targets) >= network.columns:
            raise BundleCorruptError(f"{path}: a target is not among the {network.columns} columns")


def shipped_bundles() -> Path:
    """The folder of the bundles that come with the package."""
    return Path(str(resources.files("hiddenstate_models"))) / "bundles"


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
        raise BundleCorruptError(f"{path}: {first_complaint(error)}") from error


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
    needed = [WEIGHTS_FILE, STEP_FILE] + [TOKENIZER_FILE] * (config.text is not None)
    for name in needed:
        if name not in config.files:
            raise BundleCorruptError(f"{folder / CONFIG_FILE} does not list {name}, which a {config.task} bundle needs")
