"""A sequence in one graph gives what its steps give, whatever is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
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
    """Cells' own operators round otherwise than steps, which shows where outputs are rounded to 8 bits."""
    bundle = random_bundle(tmp_path, "next-word", int8=True, hidden_sizes=[32, 32], embedding_size=32)
    tokens = np.random.default_rng(1).integers(0, len(bundle.vocabulary), sum(LENGTHS))
    state = np.zeros((1, bundle.config.state_size), np.float32)
    files = INT8_STEP_FILE, INT8_SEQUENCE_FILE
    step, sequence = (session(bundle, name) for name in files)
    check(step, sequence, {"tokens": tokens}, state, {"k": np.array([3])})
    for name, there in ((SEQUENCE_FILE, True), (INT8_SEQUENCE_FILE, False)):
        graph = onnx.load(bundle.folder / name, load_external_data=False).graph
        assert ("LSTM" in {node.op_type for node in graph.node}) == there


@pytest.mark.parametrize("network", [*VALUE_NETWORKS.values(), *FIXED_NETWORKS.values()])
def test_values(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "next-value", **network)
    rng = np.random.default_rng(1)
    values = rng.normal(20, 5, (sum(LENGTHS), network.get("columns", 1)))
    values[rng.random(values.shape) < 0.2] = np.nan
    values[0] = np.nan
    state = np.zeros((1, bundle.config.state_size), np.float32)
    check(session(bundle), session(bundle, SEQUENCE_FILE), {"values": values}, state, {})


def _counter(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return 1.7e9 + rng.integers(0, 3, 150).cumsum().astype(np.float64)


def _glitches(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Outliers that count as less than they are, also right after the first move."""
    series = rng.normal(20.0, 1.0, 150)
    series[[2, 3, 40, 41, 42, 90]] = 1e6, -1e9, 1e5, 1e5, -1e12, 1e20
    return series


def _stairs(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Stands still for long, from zero on."""
    return np.repeat(np.array([0.0, 0.0, 5.0, 0.0, -3e7]), 30) + np.where(rng.random(150) < 0.1, np.nan, 0.0)


def _late(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Nothing is known for as long as a run, and much is missing later."""
    series = 1e7 + 1e-2 * rng.normal(size=150).cumsum()
    series[:40] = np.nan
    return np.where(rng.random(150) < 0.4, np.nan, series)


KINDS: dict[str, Callable[[np.random.Generator], npt.NDArray[np.float64]]] = {
    "a counter": _counter,
    "glitches": _glitches,
    "stairs": _stairs,
    "a late start": _late,
    "a constant": lambda _: np.full(150, 21.5),
    "nothing": lambda _: np.full(150, np.nan),
    "an explosion": lambda _: 1.5 ** np.arange(150.0),
    "tiny moves": lambda rng: 1e-20 * rng.normal(size=150).cumsum(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 2])
def test_kinds_of_series(tmp_path: Path, kind: str, columns: int) -> None:
    """Runs from many places, so that first values and first moves lie at the start, within and before them."""
    bundle = random_bundle(tmp_path, "next-value", columns=columns, targets=[0], hidden_sizes=[32])
    step, sequence = session(bundle), session(bundle, SEQUENCE_FILE)
    rng = np.random.default_rng(1)
    series = np.stack([KINDS[kind](rng), rng.normal(size=150)][:columns], axis=1)
    states, columns_of = [np.zeros((1, bundle.config.state_size), np.float32)], []
    for row in series:
        *outputs, state = step.run(None, {"values": row[None], "states": states[-1]})
        states.append(state)
        columns_of.append(outputs)
    surprises, locations, scales, freedom = (np.concatenate(column) for column in zip(*columns_of, strict=True))
    for start in range(0, 86, 5):
        some = slice(start, start + 64)
        feed = {"values": series[some], "states": states[start]}
        together = sequence.run(None, feed)
        np.testing.assert_allclose(together[0], surprises[some], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together[1] / scales[some], locations[some] / scales[some], rtol=1e-12, atol=1e-4)
        np.testing.assert_allclose(together[2], scales[some], rtol=1e-4)
        np.testing.assert_allclose(together[3], freedom[some], rtol=1e-4)
        for part, expected in zip(_parts(together[4], columns), _parts(states[start + 64], columns), strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-4)


def _parts(state: npt.NDArray[np.float32], columns: int) -> list[npt.NDArray[np.float64]]:
    """The parts of a row, each pair of floats as one number."""
    pairs = slice(32 + 5 * columns, 32 + 8 * columns), slice(32 + 8 * columns, 32 + 11 * columns)
    high, low = (state[:, piece].astype(np.float64) for piece in pairs)
    return [state[:, : pairs[0].start].astype(np.float64), high + low, state[:, pairs[1].stop :].astype(np.float64)]


@pytest.mark.parametrize("network", NOTE_NETWORKS.values(), ids=NOTE_NETWORKS.keys())
def test_notes(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "music", **network)
    frames = (np.random.default_rng(1).random((sum(LENGTHS), network.get("notes", 88))) < 0.1).astype(np.float64)
    state = np.zeros((1, bundle.config.state_size), np.float32)
    check(session(bundle), session(bundle, SEQUENCE_FILE), {"values": frames}, state, {})
