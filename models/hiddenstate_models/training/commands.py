"""What the train commands do: read the data, build the network, train, and say what to do next."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from rich.console import Console
from tokenizers import Tokenizer
from torch import nn

from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.data import text
from hiddenstate_models.data.music import Piece, has_parts, read_pieces
from hiddenstate_models.data.series import Series, read_series
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.networks.music import MusicNetwork
from hiddenstate_models.networks.values import NextValueNetwork
from hiddenstate_models.networks.words import NextWordNetwork
from hiddenstate_models.training import run
from hiddenstate_models.training.loop import Task
from hiddenstate_models.training.music import MusicOptions, MusicTask
from hiddenstate_models.training.next_value import NextValueOptions, NextValueTask, names
from hiddenstate_models.training.next_word import NextWordOptions, NextWordTask
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.report import summary_table

_HELD_OUT = 20
"""Without validation files every so-many-th document is held out."""
_LAST_PART = 10
"""Without validation files the last such part of every series is held out."""


def train_next_word(
    data: list[str],
    valid: list[str],
    folder: Path,
    resume: bool,
    words: NextWordOptions,
    options: TrainingOptions,
    *,
    max_updates: int | None = None,
) -> bool:
    """Trains in `folder`; True when finished, False when stopped half-way with a checkpoint to resume from."""
    data, valid, words, options = _told("next-word", folder, resume, data, valid, words, options)
    fabric = run.make_fabric(options)
    training, validation = _documents(data, valid, words.documents)
    tokenizer_path = folder / "tokenizer.json"
    if resume:
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer = text.train_tokenizer(training, words.vocabulary, lowercase=words.lowercase)
    vocabulary_size = tokenizer.get_vocab_size()
    config = words.network(vocabulary_size)
    if fabric.global_rank == 0 and not resume:
        read = {"training": data, "validation": valid, "options": asdict(words)}
        run.RunRecord("next-word", config.to_dict(), asdict(options), read, run.command_line()).save(folder)
        tokenizer.save(str(tokenizer_path))
    corpus, held_out = text.encode(tokenizer, training), text.encode(tokenizer, validation)
    torch.manual_seed(options.seed)
    network = NextWordNetwork(config)
    task = NextWordTask(corpus, held_out, vocabulary_size, options, words)
    unknown = float((corpus.tokens == tokenizer.token_to_id(text.UNKNOWN)).mean())
    facts = {
        "documents": len(corpus.starts),
        "tokens an epoch": task.lanes.steps_per_epoch,
        "validation tokens": len(held_out.tokens),
        "vocabulary": f"{vocabulary_size:,} words, {unknown:.2%} of the text unknown",
    }
    return _fit(folder, network, task, options, fabric, facts, resume=resume, unit="tokens", max_updates=max_updates)


def train_next_value(
    data: list[str],
    valid: list[str],
    folder: Path,
    resume: bool,
    values: NextValueOptions,
    options: TrainingOptions,
    *,
    max_updates: int | None = None,
) -> bool:
    """Trains in `folder`; True when finished, False when stopped half-way with a checkpoint to resume from."""
    data, valid, values, options = _told("next-value", folder, resume, data, valid, values, options)
    if options.precision != "32-true":
        raise ConfigurationError(
            "next-value needs --precision 32-true: mixed precision would round the values it reads"
        )
    fabric = run.make_fabric(options)
    training, validation = _series(data, valid, values)
    columns = training[0].columns
    # Series of one value each are of many kinds and share no name.
    config = values.network(columns if values.layout == "joint" else ("value",))
    if fabric.global_rank == 0 and not resume:
        read = {"training": data, "validation": valid, "options": asdict(values)}
        read["columns"] = list(columns if values.layout == "joint" else ("value",))
        run.RunRecord("next-value", config.to_dict(), asdict(options), read, run.command_line()).save(folder)
    torch.manual_seed(options.seed)
    network = NextValueNetwork(config)
    task = NextValueTask([s.values for s in training], [s.values for s in validation], config, options, values)
    facts = {
        "series": len(training),
        "values an epoch": task.lanes.steps_per_epoch * len(config.targets),
        "validation series": len(validation),
    }
    return _fit(folder, network, task, options, fabric, facts, resume=resume, unit="values", max_updates=max_updates)


def train_music(
    data: list[str],
    valid: list[str],
    folder: Path,
    resume: bool,
    music: MusicOptions,
    options: TrainingOptions,
    *,
    max_updates: int | None = None,
) -> bool:
    """Trains in `folder`; True when finished, False when stopped half-way with a checkpoint to resume from."""
    data, valid, music, options = _told("music", folder, resume, data, valid, music, options)
    fabric = run.make_fabric(options)
    if not valid and all(has_parts(path) for path in text.expand(data)):
        valid = data
    training, validation = _pieces(data, valid, music.frames_per_beat)
    config = music.network()
    if fabric.global_rank == 0 and not resume:
        read = {"training": data, "validation": valid, "options": asdict(music)}
        run.RunRecord("music", config.to_dict(), asdict(options), read, run.command_line()).save(folder)
    torch.manual_seed(options.seed)
    network = MusicNetwork(config)
    network.expect(torch.from_numpy(NoteBaseline.frequencies(training).probabilities[0]))
    task = MusicTask(training, validation, options, music)
    facts = {
        "pieces": len(training),
        "frames an epoch": task.lanes.steps_per_epoch,
        "validation pieces": len(validation),
    }
    return _fit(folder, network, task, options, fabric, facts, resume=resume, unit="frames", max_updates=max_updates)


def _fit(
    folder: Path,
    network: nn.Module,
    task: Task,
    options: TrainingOptions,
    fabric: Fabric,
    facts: Mapping[str, object],
    *,
    resume: bool,
    unit: str,
    max_updates: int | None,
) -> bool:
    """Says what is about to be learnt, trains, and says what to do next."""
    console = Console(quiet=fabric.global_rank != 0)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    device = f"{fabric.device}, {options.precision}"
    console.print(summary_table({**facts, "parameters": parameters, "device": device}))
    finished = run.train(
        folder,
        network,
        task,
        options,
        fabric=fabric,
        console=console,
        resume=resume,
        unit=unit,
        max_updates=max_updates,
    )
    if finished:
        console.print(f"Done. Learning curve: {folder}/learning-curve.png. Next: hiddenstate-models export {folder}")
    else:
        console.print(f"Stopped and saved. Go on with: --out {folder} --resume")
    return finished


Settings = TypeVar("Settings", NextWordOptions, NextValueOptions, MusicOptions)


def _told(
    task: str,
    folder: Path,
    resume: bool,
    data: list[str],
    valid: list[str],
    settings: Settings,
    options: TrainingOptions,
) -> tuple[list[str], list[str], Settings, TrainingOptions]:
    """Data, validation data and settings of a run: those given, or those of the run that is resumed."""
    if resume:
        record = run.RunRecord.load(folder)
        if record.task != task:
            raise ConfigurationError(f"{folder} holds a {record.task} run: resume it by `train {record.task}`")
        read = record.data
        return (
            read["training"],
            read["validation"],
            type(settings)(**read["options"]),
            TrainingOptions(**record.training),
        )
    if (folder / "run.json").exists():
        raise ConfigurationError(f"{folder} holds a run already: go on with it by --resume, or choose another --out")
    if not data:
        raise ConfigurationError("nothing to learn from: name files with --data")
    return data, valid, settings, options


def _series(data: list[str], valid: list[str], values: NextValueOptions) -> tuple[list[Series], list[Series]]:
    """Series to learn from and to validate on: files of their own, or the last tenth of every series."""
    held_out = text.expand(valid)
    paths = [path for path in text.expand(data) if path not in held_out]
    if not paths:
        raise DataError("every file to learn from is also one to validate on")
    columns = names(values.columns)
    training = read_series(paths, columns=columns, layout=values.layout)
    if held_out:
        return training, read_series(held_out, columns=columns, layout=values.layout)
    ends = [len(one.values) - len(one.values) // _LAST_PART for one in training]
    return (
        [replace(one, values=one.values[:end]) for one, end in zip(training, ends, strict=True)],
        [replace(one, values=one.values[end:]) for one, end in zip(training, ends, strict=True)],
    )


def _pieces(data: list[str], valid: list[str], frames_per_beat: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces to learn from and to validate on: the parts of the files, files of their own, or every twentieth piece."""
    held_out = [path for path in text.expand(valid) if not has_parts(path)]
    paths = [path for path in text.expand(data) if path not in held_out]
    pieces = read_pieces(paths, "train", frames_per_beat=frames_per_beat)
    if valid:
        return pieces, read_pieces(text.expand(valid), "valid", frames_per_beat=frames_per_beat)
    if len(pieces) < _HELD_OUT:
        raise DataError(f"{len(pieces)} pieces are too few to hold some out: name validation files with --valid")
    return [piece for i, piece in enumerate(pieces) if (i + 1) % _HELD_OUT], pieces[_HELD_OUT - 1 :: _HELD_OUT]


def _documents(data: list[str], valid: list[str], ends: str) -> tuple[list[list[str]], list[list[str]]]:
    documents = list(text.read_documents(text.expand(data), ends))
    if valid:
        return documents, list(text.read_documents(text.expand(valid), ends))
    if len(documents) < _HELD_OUT:
        raise DataError(
            f"{len(documents)} documents are too few to hold some out: name validation text with --valid, "
            "or say where documents end with --documents"
        )
    return [d for i, d in enumerate(documents) if (i + 1) % _HELD_OUT], documents[_HELD_OUT - 1 :: _HELD_OUT]
