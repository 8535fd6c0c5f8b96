"""The ONNX step against the same step in float64 PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch

from hiddenstate_models.bundle import STEP_FILE, Bundle
from hiddenstate_models.export import random_bundle
from hiddenstate_models.reference import reference_step

WORD_NETWORKS: dict[str, dict[str, Any]] = {
    "lstm-1": {"hidden_sizes": [8]},
    "lstm-2": {"hidden_sizes": [8, 8]},
    "lstm-3-uneven": {"hidden_sizes": [5, 9, 8]},
    "lstm-projected": {"hidden_sizes": [12, 10], "projection": 8},
    "lstm-untied": {"hidden_sizes": [6, 5], "tied": False},
    "gru-1": {"cell": "gru", "hidden_sizes": [8]},
    "rnn-tanh-2": {"cell": "rnn-tanh", "hidden_sizes": [5, 8]},
    "rnn-relu-2-untied": {"cell": "rnn-relu", "hidden_sizes": [8, 6], "tied": False},
    "jordan": {"cell": "jordan", "hidden_sizes": [12], "projection": 8},
    "none-2": {"cell": "none", "hidden_sizes": [8, 8]},
    "none-untied": {"cell": "none", "hidden_sizes": [5], "tied": False},
    "rnn-tanh-norm": {"cell": "rnn-tanh", "layer_norm": True},
    "gru-norm-residual": {"cell": "gru", "layer_norm": True, "residual": True},
    "lstm-norm": {"layer_norm": True},
    "lstm-norm-projected": {"hidden_sizes": [12, 10], "projection": 8, "layer_norm": True},
    "lstm-peepholes": {"peepholes": True},
    "lstm-coupled": {"coupled": True},
    "lstm-residual": {"residual": True},
    "lstm-everything": {"layer_norm": True, "peepholes": True, "coupled": True, "residual": True, "projection": 8},
    "gru-3-untied": {"cell": "gru", "hidden_sizes": [4, 7, 6], "tied": False},
    "vocabulary-of-blocks": {"vocabulary_size": 300},
    "vocabulary-between-blocks": {"vocabulary_size": 257},
    "vocabulary-tiny": {"vocabulary_size": 3},
}


def session(bundle: Bundle, file: str = STEP_FILE) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(bundle.folder / file), options, providers=["CPUExecutionProvider"])


def words(step: ort.InferenceSession, tokens: npt.NDArray[np.int64], states: Any, k: int) -> Any:
    return step.run(None, {"tokens": tokens, "states": states, "k": np.array([k])})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("network", WORD_NETWORKS.values(), ids=WORD_NETWORKS.keys())
def test_word_step_agrees_with_float64(tmp_path: Path, network: dict[str, Any], dtype: str) -> None:
    bundle = random_bundle(tmp_path, "next-word", dtype=dtype, **network)
    size = len(bundle.vocabulary)
    step, reference = session(bundle), reference_step(bundle, dtype=torch.float64)
    rng = np.random.default_rng(1)
    n, k = 9, min(5, size)
    states = np.zeros((n, bundle.config.state_size), np.float32)
    exact = torch.zeros(n, bundle.config.state_size, dtype=torch.float64)
    for _ in range(12):
        tokens = rng.integers(0, size, n)
        surprises, top, probabilities, states = words(step, tokens, states, k)
        expected = reference(torch.from_numpy(tokens), exact, k)
        exact = expected.next_states
        np.testing.assert_allclose(surprises, expected.surprises, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(top, expected.top_tokens)
        np.testing.assert_allclose(probabilities, expected.top_probabilities, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 7, 100, 257])
def test_top_k_is_exact_and_probabilities_are_normalised(tmp_path: Path, k: int) -> None:
    bundle = random_bundle(tmp_path, "next-word", vocabulary_size=257)
    step = session(bundle)
    states = np.random.default_rng(2).normal(0, 0.5, (6, bundle.config.state_size)).astype(np.float32)
    tokens = np.arange(6)
    _, everything, all_probabilities, _ = words(step, tokens, states, 257)
    np.testing.assert_allclose(all_probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (np.sort(everything, axis=1) == np.arange(257)).all()
    _, top, probabilities, _ = words(step, tokens, states, k)
    np.testing.assert_array_equal(top, everything[:, :k])
    np.testing.assert_array_equal(probabilities, all_probabilities[:, :k])


def test_surprise_is_the_log_probability_of_the_prediction_before(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word", vocabulary_size=130, tied=False)
    step = session(bundle)
    states = np.zeros((130, bundle.config.state_size), np.float32)
    _, top, probabilities, states = words(step, np.full(130, 1), states, 130)
    surprises, *_ = words(step, np.arange(130), states, 1)
    order = np.argsort(top[0])
    np.testing.assert_allclose(surprises, -np.log(probabilities[0][order]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["rnn-tanh", "rnn-relu", "lstm", "gru"])
def test_rows_alone_equal_rows_in_batches(tmp_path: Path, cell: str) -> None:
    bundle = random_bundle(
        tmp_path, "next-word", cell=cell, hidden_sizes=[32, 32], embedding_size=32, vocabulary_size=1000
    )
    step = session(bundle)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 1000, 65)
    states = rng.normal(0, 0.5, (65, bundle.config.state_size)).astype(np.float32)
    together = words(step, tokens, states, 5)
    for start, end in [(0, 1), (1, 2), (2, 5), (5, 22), (22, 65)]:
        alone = words(step, tokens[start:end], states[start:end], 5)
        for part, whole in zip(alone, together, strict=True):
            np.testing.assert_allclose(part, whole[start:end], rtol=1e-5, atol=1e-5)


VALUE_NETWORKS: dict[str, dict[str, Any]] = {
    "gru-1": {},
    "gru-2-gaussian": {"hidden_sizes": [8, 6], "distribution": "gaussian"},
    "lstm-1": {"cell": "lstm"},
    "lstm-projected-gaussian": {"cell": "lstm", "projection": 4, "distribution": "gaussian"},
    "rnn-tanh-1": {"cell": "rnn-tanh"},
    "rnn-relu-1": {"cell": "rnn-relu"},
    "jordan": {"cell": "jordan", "projection": 3},
    "none-2": {"cell": "none", "hidden_sizes": [8, 6]},
    "gru-norm": {"layer_norm": True},
    "gru-residual": {"hidden_sizes": [8, 8], "residual": True},
    "lstm-everything": {"cell": "lstm", "layer_norm": True, "peepholes": True, "coupled": True, "projection": 4},
    "columns-3-targets-2": {"columns": 3, "targets": [2, 0]},
    "columns-2-targets-2-gaussian": {"columns": 2, "targets": [0, 1], "distribution": "gaussian"},
}

FIXED_NETWORKS: dict[str, dict[str, Any]] = {
    "gru-1-gaussian": {"distribution": "gaussian", "scaling": "fixed"},
    "lstm-columns-3-targets-2": {"cell": "lstm", "columns": 3, "targets": [2, 0], "scaling": "fixed"},
}


@pytest.mark.parametrize("network", FIXED_NETWORKS.values(), ids=FIXED_NETWORKS.keys())
def test_value_step_with_a_fixed_scaling_agrees_with_float64(tmp_path: Path, network: dict[str, Any]) -> None:
    """Its means and units are near 0 and 1, and so are the values."""
    test_value_step_agrees_with_float64(tmp_path, network, 0.0, 1.0)


@pytest.mark.parametrize(("offset", "move"), [(0.0, 1.0), (1.7e9, 1.0), (-3e12, 1e3), (0.0, 1e-20), (5.0, 0.0)])
@pytest.mark.parametrize("network", VALUE_NETWORKS.values(), ids=VALUE_NETWORKS.keys())
def test_value_step_agrees_with_float64(tmp_path: Path, network: dict[str, Any], offset: float, move: float) -> None:
    bundle = random_bundle(tmp_path, "next-value", **network)
    step, reference = session(bundle), reference_step(bundle, dtype=torch.float64)
    rng = np.random.default_rng(4)
    n, columns = 7, network.get("columns", 1)
    states = np.zeros((n, bundle.config.state_size), np.float32)
    exact = torch.zeros(n, bundle.config.state_size, dtype=torch.float64)
    walk = offset + move * rng.normal(size=(40, n, columns)).cumsum(axis=0)
    walk[rng.random(walk.shape) < 0.15] = np.nan
    for values in walk:
        surprises, locations, scales, freedom, states = step.run(None, {"values": values, "states": states})
        expected = reference(torch.from_numpy(values), exact)
        exact = expected.next_states
        np.testing.assert_allclose(surprises, expected.surprises, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scales, expected.scales, rtol=1e-4)
        error = np.abs(locations - expected.locations.numpy()) / expected.scales.numpy()
        assert np.nanmax(error, initial=0.0) < 1e-4
        np.testing.assert_array_equal(np.isnan(locations), expected.locations.isnan())
        np.testing.assert_allclose(freedom, expected.degrees_of_freedom, rtol=1e-5)
        np.testing.assert_allclose(states[:, : bundle.network.state_size],
                                   exact[:, : bundle.network.state_size], rtol=1e-5, atol=1e-5)  # fmt: skip


NOTE_NETWORKS: dict[str, dict[str, Any]] = {
    "gru-1": {},
    "lstm-2": {"cell": "lstm", "hidden_sizes": [9, 7]},
    "lstm-projected-octave": {"cell": "lstm", "projection": 5, "lowest": 60, "notes": 12},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("network", NOTE_NETWORKS.values(), ids=NOTE_NETWORKS.keys())
def test_note_step_agrees_with_float64(tmp_path: Path, network: dict[str, Any], dtype: str) -> None:
    bundle = random_bundle(tmp_path, "music", dtype=dtype, **network)
    step, reference = session(bundle), reference_step(bundle, dtype=torch.float64)
    rng = np.random.default_rng(5)
    n, notes = 6, network.get("notes", 88)
    states = np.zeros((n, bundle.config.state_size), np.float32)
    exact = torch.zeros(n, bundle.config.state_size, dtype=torch.float64)
    before = np.full((n, notes), 0.5)
    for frames in (rng.random((15, n, notes)) < 0.1).astype(np.float64):
        surprises, probabilities, states = step.run(None, {"values": frames, "states": states})
        expected = reference(torch.from_numpy(frames), exact)
        exact = expected.next_states
        np.testing.assert_allclose(surprises, expected.surprises, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(surprises, -np.log(np.abs(1 - frames - before)).sum(axis=1), rtol=1e-4)
        np.testing.assert_allclose(probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states, exact, rtol=1e-5, atol=1e-5)
        before = probabilities


FORECAST_NETWORKS: dict[str, dict[str, Any]] = {
    "gru-seasons": {"seasons": [4, 9], "horizon": 13},
    "gru-2-gaussian": {"hidden_sizes": [8, 6], "distribution": "gaussian", "seasons": []},
    "lstm-projected": {"cell": "lstm", "projection": 4, "horizon": 3},
    "elman": {"cell": "rnn-tanh", "horizon": 1},
    "columns-3-targets-2": {"columns": 3, "targets": [2, 0], "seasons": [3]},
    "columns-2-gaussian": {"columns": 2, "targets": [1], "distribution": "gaussian", "seasons": [2, 5]},
}


@pytest.mark.parametrize(("offset", "move"), [(0.0, 1.0), (1.7e9, 1.0), (-3e12, 1e3), (5.0, 0.0)])
@pytest.mark.parametrize("network", FORECAST_NETWORKS.values(), ids=FORECAST_NETWORKS.keys())
def test_forecast_step_agrees_with_float64(tmp_path: Path, network: dict[str, Any], offset: float, move: float) -> None:
    bundle = random_bundle(tmp_path, "forecasting", **network)
    step, reference = session(bundle), reference_step(bundle, dtype=torch.float64)
    rng = np.random.default_rng(4)
    n, columns = 7, network.get("columns", 1)
    states = np.zeros((n, bundle.config.state_size), np.float32)
    exact = torch.zeros(n, bundle.config.state_size, dtype=torch.float64)
    walk = offset + move * rng.normal(size=(30, n, columns)).cumsum(axis=0)
    walk[rng.random(walk.shape) < 0.15] = np.nan
    for values in walk:
        surprises, locations, scales, freedom, states = step.run(None, {"values": values, "states": states})
        expected = reference(torch.from_numpy(values), exact)
        exact = expected.next_states
        np.testing.assert_allclose(surprises, expected.surprises, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scales, expected.scales, rtol=1e-3)
        error = np.abs(locations - expected.locations.numpy()) / expected.scales.numpy()
        assert np.nanmax(error, initial=0.0) < 1e-3
        np.testing.assert_array_equal(np.isnan(locations), expected.locations.isnan())
        np.testing.assert_allclose(freedom, expected.degrees_of_freedom, rtol=1e-4)
        np.testing.assert_allclose(states[:, : bundle.network.state_size],
                                   exact[:, : bundle.network.state_size], rtol=1e-4, atol=1e-4)  # fmt: skip
