"""The model folder: NAME/VERSION bundles, loaded, checked and turned into runtimes."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hiddenstate_models.bundle import (
    CONFIG_FILE,
    INT8_SEQUENCE_FILE,
    INT8_STEP_FILE,
    SEQUENCE_FILE,
    STEP_FILE,
    Bundle,
    ForecastNetwork,
    LabelNetwork,
    NoteNetwork,
)
from hiddenstate_models.errors import BundleError
from hiddenstate_server.errors import StartError
from hiddenstate_server.runtimes import InputArray, Runtime
from hiddenstate_server.runtimes.head import WordHead
from hiddenstate_server.runtimes.onnx import OnnxLabels, OnnxNotes, OnnxValues, OnnxWords
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.engine import calibrated_batch, calibrated_run
from hiddenstate_server.stepping.model import LabelsInfo, ModelInfo, NotesInfo, TextInfo


class LoadedModel(NamedTuple):
    """A model ready to be served."""

    info: ModelInfo
    runtime: Runtime
    max_batch: int
    max_run: int


def load_models(settings: Settings) -> list[LoadedModel]:
    """Every bundle of the model folder, by name and version; StartError where one cannot be served."""
    folders = list(bundle_folders(settings.model_folder))
    if not folders:
        raise StartError(
            f"{settings.model_folder} holds no model: expected folders NAME/VERSION with a config.json, "
            "VERSION a positive integer"
        )
    return [load_model(folder, settings) for folder in folders]


def bundle_folders(folder: Path) -> Iterator[Path]:
    """The NAME/VERSION folders below the model folder, whatever they hold; StartError if it is missing."""
    if not folder.is_dir():
        raise StartError(f"the model folder {folder} does not exist; name an existing one with --models")
    for name in sorted(path for path in folder.iterdir() if path.is_dir()):
        versions = [path for path in name.iterdir() if path.is_dir() and path.name.isdigit() and int(path.name) > 0]
        yield from sorted(versions, key=lambda path: int(path.name))


def bundle_digest(folder: Path) -> str:
    """SHA-256 of a bundle's config.json, which holds those of all its other files."""
    return hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()


def load_model(folder: Path, settings: Settings) -> LoadedModel:
    """A bundle checked, loaded and warm; StartError if it cannot be served."""
    try:
        bundle = Bundle.load(folder)
        runtime = _runtime(bundle, settings)
        info = _info(bundle)
        example = np.zeros((1, *info.empty_input.shape[1:]), info.empty_input.dtype)
        _check(folder, runtime, example)
    except BundleError as error:
        raise StartError(str(error)) from error
    max_batch = settings.max_batch or calibrated_batch(runtime, example)
    return LoadedModel(info, runtime, max_batch, calibrated_run(runtime, example))


def _check(folder: Path, runtime: Runtime, example: InputArray) -> None:
    """Raises StartError unless a step leads to finite numbers."""
    _, state = runtime.initial()
    _, state = runtime.step(example, state)
    if not np.isfinite(state).all():
        raise StartError(f"{folder} computes infinite numbers or NaN; export it again from a good checkpoint")


def _runtime(bundle: Bundle, settings: Settings) -> Runtime:
    if settings.runtime != "onnx":
        runtime = _torch_runtime(bundle, settings)
        if runtime is not None:
            return runtime
    return _onnx_runtime(bundle, settings)


def _torch_runtime(bundle: Bundle, settings: Settings) -> Runtime | None:
    """The torch runtime if asked for, or, for `auto`, if torch is there and sees a CUDA device."""
    if settings.runtime == "auto" and not _cuda_driver():
        return None
    if importlib.util.find_spec("torch") is None:
        if settings.runtime == "torch":
            raise StartError("--runtime torch needs PyTorch; install hiddenstate[train] or use --runtime onnx")
        return None
    # Imported here because it takes a second or more and the CPU image has none.
    from hiddenstate_server.runtimes.torch import TorchRuntime, cuda_available

    cuda = cuda_available()
    if settings.runtime == "auto" and not cuda:
        return None
    if settings.precision == "int8":
        raise StartError("--precision int8 is for --runtime onnx; choose one of the two")
    return TorchRuntime(bundle, top_k=settings.top_k, device="cuda" if cuda else "cpu")


def _cuda_driver() -> bool:
    """Whether the driver of CUDA devices is there; to ask torch itself takes longer than all the rest of a start."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _onnx_runtime(bundle: Bundle, settings: Settings) -> Runtime:
    config = bundle.config
    if settings.precision == "int8" and not bundle.has_int8:
        raise StartError(f"{bundle.folder} has no int8 step; serve it with --precision auto, or export it again")
    int8 = settings.precision == "int8" or (settings.precision == "auto" and bundle.prefers_int8)
    precision = "int8" if int8 else "fp32"
    step = bundle.folder / (INT8_STEP_FILE if int8 else STEP_FILE)
    sequence_file = INT8_SEQUENCE_FILE if int8 else SEQUENCE_FILE
    sequence = bundle.folder / sequence_file if sequence_file in config.files else None
    network = bundle.network
    if isinstance(network, LabelNetwork):
        assert config.text is not None
        return OnnxLabels(
            step, sequence, state_size=config.state_size, end_token=config.text.end_token, precision=precision
        )
    if config.text is not None:
        return OnnxWords(
            step,
            sequence,
            WordHead(bundle),
            state_size=config.state_size,
            top_k=min(settings.top_k, len(bundle.vocabulary)),
            end_token=config.text.end_token,
            precision=precision,
        )
    if isinstance(network, NoteNetwork):
        return OnnxNotes(step, sequence, state_size=config.state_size, notes=network.notes, precision=precision)
    assert config.values is not None
    return OnnxValues(
        step, sequence, state_size=config.state_size, columns=len(config.values.columns), precision=precision
    )


def _info(bundle: Bundle) -> ModelInfo:
    config = bundle.config
    description = f"{bundle.network.description}, {config.parameters:,} parameters"
    text, values, labels, shapes = config.text, config.values, config.labels, bundle.network
    return ModelInfo(
        name=config.name,
        version=str(config.version),
        digest=bundle_digest(bundle.folder),
        task=config.task,
        description=description,
        parameters=config.parameters,
        state_size=config.state_size,
        text=None
        if text is None
        else TextInfo(
            vocabulary=bundle.vocabulary,
            token_ids={word: token for token, word in enumerate(bundle.vocabulary)},
            lowercase=text.lowercase,
            unknown_token=text.unknown_token,
            end_token=text.end_token,
            word_pattern=text.word_pattern,
            spelling_suffixes=text.spelling_suffixes,
        ),
        columns=() if values is None else values.columns,
        targets=() if values is None else values.targets,
        horizon=shapes.horizon if isinstance(shapes, ForecastNetwork) else 1,
        labels=None if labels is None else LabelsInfo(labels.names, labels.look_ahead),
        notes=NotesInfo(shapes.lowest, shapes.notes) if isinstance(shapes, NoteNetwork) else None,
    )
