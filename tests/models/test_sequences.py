"""A sequence in one graph gives what its steps give, whatever is served."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from tests.models.test_reference import FIXED_NETWORKS, NOTE_NETWORKS, VALUE_NETWORKS, WORD_NETWORKS, session

from hiddenstate_models.bundle import INT8_SEQUENCE_FILE, INT8_STEP_FILE, SEQUENCE_FILE, STEP_FILE
from hiddenstate_models.export import random_bundle

Feed = dict[str, npt.NDArray[Any]]
LENGTHS = (1, 2, 30)


def check(step: ort.InferenceSession, sequence: ort.InferenceSession, inputs: Feed, state: Any, rest: Feed) -> None:
    """Reads inputs [n, ...] in sequences of LENGTHS, and one by one."""
    ((name, column),) = inputs.items()
    start = 0
    for length in LENGTHS:
        piece = column[start : start + length]
        start += length
        *together, after = sequence.run(None, {name: piece, "states": state, **rest})
        steps = []
        for row in piece:
            *outputs, state = step.run(None, {name: row[None], "states": state, **rest})
            steps.append(outputs)
        assert [output.shape[0] for output in together] == [length] * len(together)
        for alone, whole in zip(zip(*steps, strict=True), together, strict=True):
            np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("network", WORD_NETWORKS.values(), ids=WORD_NETWORKS.keys())
def test_words(tmp_path: Path, network: dict[str, Any], dtype: str) -> None:
    bundle = random_bundle(tmp_path, "next-word", dtype=dtype, **network)
    tokens = np.random.default_rng(1).integers(0, len(bundle.vocabulary), sum(LENGTHS))
    state = np.zeros((1, bundle.config.state_size), np.float32)
    files = STEP_FILE, SEQUENCE_FILE
    step, sequence = (session(bundle, name) for name in files)
    check(step, sequence, {"tokens": tokens}, state, {"k": np.array([3])})


def test_words_in_int8(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path, "next-word", int8=True, hidden_sizes=[32, 32], embedding_size=32)
    tokens = np.random.default_rng(1).integers(0, len(bundle.vocabulary), sum(LENGTHS))
    state = np.zeros((1, bundle.config.state_size), np.float32)
    files = INT8_STEP_FILE, INT8_SEQUENCE_FILE
    step, sequence = (session(bundle, name) for name in files)
    check(step, sequence, {"tokens": tokens}, state, {"k": np.array([3])})


@pytest.mark.parametrize("network", [*VALUE_NETWORKS.values(), *FIXED_NETWORKS.values()])
def test_values(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "next-value", **network)
    rng = np.random.default_rng(1)
    values = rng.normal(20, 5, (sum(LENGTHS), network.get("columns", 1)))
    values[rng.random(values.shape) < 0.2] = np.nan
    values[0] = np.nan
    state = np.zeros((1, bundle.config.state_size), np.float32)
    check(session(bundle), session(bundle, SEQUENCE_FILE), {"values": values}, state, {})


@pytest.mark.parametrize("network", NOTE_NETWORKS.values(), ids=NOTE_NETWORKS.keys())
def test_notes(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "music", **network)
    frames = (np.random.default_rng(1).random((sum(LENGTHS), network.get("notes", 88))) < 0.1).astype(np.float64)
    state = np.zeros((1, bundle.config.state_size), np.float32)
    check(session(bundle), session(bundle, SEQUENCE_FILE), {"values": frames}, state, {})
