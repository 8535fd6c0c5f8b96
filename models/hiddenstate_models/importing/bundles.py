"""From a model trained elsewhere to a bundle that is checked against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from hiddenstate_models.bundle import Bundle, TextSettings, ValueSettings
from hiddenstate_models.data import sources, text
from hiddenstate_models.data.series import read_series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.export import BundleContents, write_bundle
from hiddenstate_models.export.sources import next_version
from hiddenstate_models.importing.agreement import STEPS, Doubles, check_values, check_words
from hiddenstate_models.importing.onnx_files import OnnxSource
from hiddenstate_models.importing.source import Parts, Source
from hiddenstate_models.importing.torch_files import TorchSource
from hiddenstate_models.networks.distributions import SMALLEST_SCALE
from hiddenstate_models.networks.values import NextValueConfig, NextValueNetwork
from hiddenstate_models.networks.words import NextWordConfig
from hiddenstate_models.reference import ReferenceValueStep, reference_step


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a file of weights does not tell about its model."""

    name: str
    version: int | None = None
    """None: one more than the newest there is."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """"cells", "embedding", "output" -> the model's own name for it."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Of a torch.nn.RNN."""
    licence: str | None = None

    vocabulary: Path | None = None
    """Words, one a line in the order of their ids, or a word-level tokenizer.json."""
    lowercase: bool = False
    unknown: str = text.UNKNOWN
    """The word that stands for all others."""
    end: str = text.END
    """The word between documents or sentences."""

    columns: Sequence[str] = ()
    targets: Sequence[str] = ()
    """Columns that are predicted; empty: all."""
    means: Sequence[float] = ()
    """What the model's inputs were centred by, for each column; empty: zeros."""
    stds: Sequence[float] = ()
    """What they were divided by; empty: ones."""
    errors: Sequence[float] = ()
    """Standard deviation of each target's predictions from what came; empty: measured on `data`."""
    data: Sequence[str] = ()


def import_model(file: Path, models: Path, task: Literal["next-word", "next-value"], options: ImportOptions) -> Bundle:
    """Writes models/NAME/VERSION, once its step agrees with the model in `file` run by the library it is from.

    Raises:
        DataError: the file cannot be read, is of a kind that bundles do not have, or computes something else.
        ConfigurationError: an option is missing or does not fit the model.
        BundleError: see `write_bundle`.
    """
    source: Source
    if file.suffix == ".onnx":
        source = OnnxSource(file, task, options.roles)
    else:
        source = TorchSource(file, task, options.roles, options.activation)
    version = options.version or next_version(models / options.name)
    with TemporaryDirectory() as scratch:
        if task == "next-word":
            contents = _words(source.parts, options, version)
            difference = check_words(write_bundle(Path(scratch), contents), source)
        else:
            contents, mean, std = _values(source.parts, options, version)
            draft = write_bundle(Path(scratch), contents)
            targets = tuple(contents.network["targets"])
            difference = check_values(draft, source, mean, std, targets)
            errors = _errors(draft, options, contents.values)
            _set_scales(contents, errors / std[list(targets)])
    origin = (
        f"Imported from {file.name}; over {STEPS} random steps its outputs and the bundle's differ by {difference:.1g}"
    )
    training = {"data": [origin]} | ({"licence": options.licence} if options.licence else {})
    return write_bundle(models, replace(contents, training=training))


def _words(parts: Parts, options: ImportOptions, version: int) -> BundleContents:
    assert parts.embedding is not None
    if options.vocabulary is None:
        raise ConfigurationError("a next-word model needs its words: name them by --vocabulary, one a line, by id")
    words, embedding = _vocabulary(options.vocabulary), parts.embedding
    if len(words) != len(embedding):
        raise DataError(f"{options.vocabulary} has {len(words):,} words, but the embedding {len(embedding):,} rows")
    if len(parts.output) != len(embedding):
        raise DataError(f"the output layer has {len(parts.output):,} words, but the embedding {len(embedding):,}")
    for flag, word in (("unknown", options.unknown), ("end", options.end)):
        if word not in words:
            raise ConfigurationError(f"{word!r} is none of the words: name the one that is meant by --{flag}")
    config = NextWordConfig.from_dict(
        parts.cells() | {"vocabulary_size": len(words), "embedding_size": embedding.shape[1], "tied": parts.tied}
    )
    weights = parts.tensors() | {"head.bias": parts.bias} | ({} if parts.tied else {"head.weight": parts.output})
    settings = TextSettings(
        lowercase=options.lowercase,
        unknown_token=words.index(options.unknown),
        end_token=words.index(options.end),
        word_pattern=text.WORD_PATTERN,
    )
    tokenizer = text.word_tokenizer(words, lowercase=options.lowercase, unknown=options.unknown)
    return BundleContents(
        name=options.name,
        version=version,
        network=config.to_dict(),
        weights=weights,
        tokenizer=tokenizer.to_str(),
        text=settings,
    )


def _vocabulary(path: Path) -> list[str]:
    try:
        if path.suffix == ".json":
            words = text.vocabulary(Tokenizer.from_file(str(path)))
        else:
            words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except Exception as error:  # the tokenizers library raises nothing more special
        raise DataError(f"cannot read words from {path}: {error}") from error
    if len(set(words)) != len(words):
        twice = next(word for i, word in enumerate(words) if word in words[:i])
        raise DataError(f"{path} has {twice!r} twice; each line is the word of one id")
    return words


def _values(parts: Parts, options: ImportOptions, version: int) -> tuple[BundleContents, Doubles, Doubles]:
    """The contents, with a scale of 1 for every prediction, and the means and units of all columns."""
    size = parts.layers[0].weight_ih.shape[1]
    columns = tuple(options.columns) or tuple(["value"] if size == 1 else [f"value-{i + 1}" for i in range(size)])
    if len(columns) != size:
        raise ConfigurationError(f"the model reads {size} values a step, but --columns names {len(columns)}")
    names = tuple(options.targets) or columns
    if unknown := [name for name in names if name not in columns]:
        raise ConfigurationError(f"no column {unknown[0]!r} to predict; there are {', '.join(columns)}")
    if len(parts.output) != len(names):
        raise ConfigurationError(
            f"the model gives {len(parts.output)} values a step, and {len(names)} are to be predicted "
            f"({', '.join(names)}): name by --targets what they are of"
        )
    mean, std = _per_column("mean", options.means, size, 0.0), _per_column("std", options.stds, size, 1.0)
    if not (std > 0).all():
        raise ConfigurationError("every --std must be greater than 0")
    targets = tuple(columns.index(name) for name in names)
    fields = {"columns": size, "targets": targets, "distribution": "gaussian", "scaling": "fixed"}
    config = NextValueConfig.from_dict(parts.cells() | fields)
    weights = parts.tensors() | {
        "encoder.means": mean.astype(np.float32),
        "encoder.units": std.astype(np.float32),
        "head.weight": np.concatenate([parts.output, np.zeros_like(parts.output)]),
        "head.bias": np.concatenate([parts.bias, _raw_scales(np.ones(len(names)))]),
    }
    contents = BundleContents(
        name=options.name,
        version=version,
        network=config.to_dict(),
        weights=weights,
        values=ValueSettings(columns=columns, targets=targets),
    )
    return contents, mean, std


def _per_column(flag: str, told: Sequence[float], size: int, default: float) -> Doubles:
    if len(told) not in (0, size):
        raise ConfigurationError(f"--{flag} needs a number for each of the {size} columns, not {len(told)}")
    # As they are stored.
    return np.array(told or [default] * size, np.float32).astype(np.float64)


def _errors(draft: Bundle, options: ImportOptions, settings: ValueSettings | None) -> Doubles:
    """Standard deviation of what came from what was predicted [targets], told or measured."""
    assert settings is not None
    targets = list(settings.targets)
    if options.errors:
        if len(options.errors) != len(targets) or min(options.errors) <= 0:
            raise ConfigurationError(f"--error needs a number above 0 for each of the {len(targets)} targets")
        return np.array(options.errors)
    if not options.data:
        raise ConfigurationError(
            "the model predicts values and not how sure it is of them: name data it was not trained on by --data, or "
            "its typical error by --error"
        )
    step = reference_step(draft)
    assert isinstance(step, ReferenceValueStep)
    network: NextValueNetwork = step.network
    series = read_series(sources.expand(options.data), columns=tuple(options.columns), layout="joint")
    squares, counts = np.zeros(len(targets)), np.zeros(len(targets))
    for one in series:
        if one.values.shape[1] != len(settings.columns):
            raise DataError(
                f"--data has {one.values.shape[1]} columns ({', '.join(one.columns)}), but the model reads "
                f"{len(settings.columns)}: choose them by --columns"
            )
        with torch.no_grad():
            forecast, _ = network(torch.from_numpy(one.values[:-1]).unsqueeze(1), network.initial_state(1))
        misses = one.values[1:, targets] - forecast.prediction.locations.squeeze(1).numpy()
        squares += np.nansum(misses**2, axis=0)
        counts += (~np.isnan(misses)).sum(axis=0)
    if not counts.all():
        raise DataError("--data holds no two values in a row of a column to be predicted")
    return np.asarray(np.sqrt(squares / counts))


def _set_scales(contents: BundleContents, scales: Doubles) -> None:
    """Makes predictions as wide as errors are, in units of the normalisation [targets]."""
    contents.weights["head.bias"][len(scales) :] = _raw_scales(scales)


def _raw_scales(scales: Doubles) -> np.typing.NDArray[np.float32]:
    """What a head puts out for these scales: the inverse of softplus; none is below the smallest that there is."""
    above = np.maximum(scales - SMALLEST_SCALE, 1e-6)
    return np.log(np.expm1(above)).astype(np.float32)
