"""ONNX Runtime and torch agree, and a row does not depend on its batch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hiddenstate_models.bundle import CONFIG_FILE, SEQUENCE_FILE, Bundle
from hiddenstate_models.export import random_bundle
from hiddenstate_server.runtimes import Runtime
from hiddenstate_server.settings import Settings
from hiddenstate_server.stepping.engine import BATCH_SIZES, RUN_LENGTHS, calibrated_batch, calibrated_run
from hiddenstate_server.versions.repository import LoadedModel, load_models

Precision = Literal["auto", "fp32", "int8"]


def inputs_of(model: LoadedModel, steps: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if model.info.text is not None:
        return rng.integers(0, len(model.info.text.vocabulary), (steps, rows))
    if model.info.notes is not None:
        return (rng.random((steps, rows, model.info.notes.count)) < 0.05).astype(np.float64)
    return rng.normal(20, 5, (steps, rows, len(model.info.columns)))


def run(runtime: Runtime, inputs: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    _, state = runtime.initial()
    states = np.repeat(state, inputs.shape[1], axis=0)
    seen = []
    for row in inputs:
        outputs, states = runtime.step(row, states)
        seen.append((*outputs, states))
    return seen


@pytest.mark.parametrize("index", range(6))
def test_a_row_is_the_same_alone_and_in_a_batch(loaded: list[LoadedModel], index: int) -> None:
    model = loaded[index]
    inputs = inputs_of(model, 5, 33)
    together = run(model.runtime, inputs)
    for row in (0, 16, 32):
        for one, all_ in zip(run(model.runtime, inputs[:, row : row + 1]), together, strict=True):
            for alone, column in zip(one, all_, strict=True):
                np.testing.assert_allclose(alone[0], column[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", range(6))
def test_a_few_rows_give_the_same_again_and_are_kept(loaded: list[LoadedModel], index: int) -> None:
    """Whatever the memory they come in and whatever is asked next: few rows go through buffers of the runtime's own."""
    model = loaded[index]
    first, other = inputs_of(model, 2, 3)
    _, state = model.runtime.initial()
    states = np.repeat(state, 3, axis=0)
    turned, turned_states = np.asfortranarray(first), np.asfortranarray(states)
    outputs, after = model.runtime.step(turned, turned_states)
    kept = [np.copy(column) for column in (*outputs, after)]
    model.runtime.step(np.asfortranarray(other), np.asfortranarray(after))
    again, after_again = model.runtime.step(first, states)
    for column, same, copy in zip((*outputs, after), (*again, after_again), kept, strict=True):
        np.testing.assert_array_equal(column, copy)
        np.testing.assert_array_equal(column, same)


@pytest.mark.parametrize("index", range(6))
def test_torch_agrees_with_onnx(loaded: list[LoadedModel], bundles: Path, index: int) -> None:
    from hiddenstate_server.runtimes.torch import TorchRuntime

    model = loaded[index]
    torch = TorchRuntime(Bundle.load(bundles / model.info.name / model.info.version), top_k=5, device="cpu")
    inputs = inputs_of(model, 5, 9)
    for ours, theirs in zip(run(torch, inputs), run(model.runtime, inputs), strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


def test_cuda_agrees_with_onnx(loaded: list[LoadedModel], bundles: Path) -> None:
    from hiddenstate_server.runtimes.torch import TorchRuntime, cuda_available

    if not cuda_available():
        pytest.skip("there is no CUDA device here")
    for model in loaded:
        bundle = Bundle.load(bundles / model.info.name / model.info.version)
        torch = TorchRuntime(bundle, top_k=5, device="cuda")
        for rows in (1, 3, 64, 3000):
            inputs = inputs_of(model, 3, rows)
            for ours, theirs in zip(run(torch, inputs), run(model.runtime, inputs), strict=True):
                for left, right in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


def test_without_a_driver_torch_is_not_even_asked(bundles: Path) -> None:
    script = (
        "import ctypes, sys; from pathlib import Path\n"
        "def no_driver(name): raise OSError\n"
        "ctypes.CDLL = no_driver\n"
        "from hiddenstate_server.settings import Settings\n"
        "from hiddenstate_server.versions.repository import load_models\n"
        f"models = load_models(Settings(models=Path({str(bundles)!r}), max_batch=8))\n"
        "print({model.runtime.description.split()[0] for model in models}, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'onnxruntime'} False"


def test_torch_can_be_asked_for(bundles: Path) -> None:
    models = load_models(Settings(models=bundles, runtime="torch", max_batch=8))
    assert {model.runtime.description.split()[0] for model in models} == {"torch"}


def test_int8_is_served_where_it_lost_next_to_nothing(tmp_path: Path) -> None:
    def served(precision: Precision) -> str:
        settings = Settings(models=tmp_path, precision=precision, max_batch=1)
        return load_models(settings)[0].runtime.description

    folder = random_bundle(tmp_path, "next-word", int8=True).folder
    assert served("auto").endswith("int8")
    assert served("int8").endswith("int8")
    assert served("fp32").endswith("fp32")
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["scores"]["int8"]["recall_at_5"] = 0.98
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert served("auto").endswith("fp32")
    assert served("int8").endswith("int8")


def test_calibration_chooses_a_batch_size(loaded: list[LoadedModel]) -> None:
    model = loaded[0]
    example = np.zeros((1, *model.info.empty_input.shape[1:]), model.info.empty_input.dtype)
    assert calibrated_batch(model.runtime, example, target=1e9) == BATCH_SIZES[-1]
    assert calibrated_batch(model.runtime, example, target=0.0) == BATCH_SIZES[0]


def test_calibration_chooses_the_length_of_a_run(loaded: list[LoadedModel]) -> None:
    model = loaded[0]
    example = np.zeros((1, *model.info.empty_input.shape[1:]), model.info.empty_input.dtype)
    assert calibrated_run(model.runtime, example, target=1e9) == RUN_LENGTHS[-1]
    assert calibrated_run(model.runtime, example, target=0.0) == RUN_LENGTHS[0]


def test_a_bundle_without_a_sequence_is_stepped_through(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word")
    config = json.loads((bundle.folder / CONFIG_FILE).read_text())
    del config["files"][SEQUENCE_FILE]
    (bundle.folder / CONFIG_FILE).write_text(json.dumps(config))
    (bundle.folder / SEQUENCE_FILE).unlink()
    (model,) = load_models(Settings(models=tmp_path, max_batch=8))
    assert model.max_run == 0


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"projection": 5, "tied": False},
        {"cell": "gru", "hidden_sizes": [8, 6], "tied": False},
        {"cell": "jordan", "hidden_sizes": [9], "projection": 8},
        {"cell": "none"},
        {"residual": True},
    ],
)
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_state_holds_the_whole_prediction(tmp_path: Path, name: Literal["onnx", "torch"], network: Any) -> None:
    random_bundle(tmp_path, "next-word", **network)
    (model,) = load_models(Settings(models=tmp_path, runtime=name, max_batch=8, top_k=50))
    runtime: Any = model.runtime
    _, state = runtime.initial()
    for states in (state, run(runtime, inputs_of(model, 3, 7))[-1][-1]):
        tokens = np.arange(len(states)) + 2
        outputs, after = runtime.step(tokens, states)
        held = runtime.log_probabilities(states)
        assert held.shape == (len(states), 50)
        np.testing.assert_allclose(-held[np.arange(len(states)), tokens], outputs.surprises, rtol=1e-4, atol=1e-5)
        sorted_ = np.take_along_axis(runtime.log_probabilities(after), outputs.top_tokens.astype(np.int64), axis=1)
        np.testing.assert_allclose(np.exp(sorted_), outputs.top_probabilities, rtol=1e-4, atol=1e-6)
