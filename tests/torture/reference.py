"""What a session's answers must be: the same observations fed to the bundle's step alone, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hiddenstate_models.bundle import INT8_STEP_FILE, STEP_FILE, Bundle

TOLERANCE = 1e-5
TOP_K = 5

Answer = NDArray[np.float64]
"""One prediction as numbers: surprise and top probabilities, or surprise, location, scale, degrees of freedom."""


@dataclass
class Life:
    """What one session was fed, and what it answered."""

    model: str
    id: str = ""
    inputs: list[float] = field(default_factory=list)
    """In the state now: token ids or values, step 1 first."""
    answers: dict[int, Answer] = field(default_factory=dict)
    """By step; observations whose answers were lost have none."""
    final: tuple[int, Answer] | None = None
    """Step and current prediction at the end."""


class LoneModel:
    """The ONNX step of a bundle that a server chooses by itself, one session at a time."""

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        step = bundle.folder / (INT8_STEP_FILE if bundle.prefers_int8 else STEP_FILE)
        self._step = onnxruntime.InferenceSession(str(step), options, providers=["CPUExecutionProvider"])
        self._state = np.zeros((1, bundle.config.state_size), np.float32)
        self.task = bundle.config.task
        self.vocabulary = len(bundle.vocabulary) if self.task == "next-word" else 0
        if bundle.config.text is not None:
            # A new session has seen the end of a document.
            _, self._state = self._one(float(bundle.config.text.end_token), self._state)

    def answers(self, inputs: list[float]) -> list[Answer]:
        """One after each observation."""
        state, answers = self._state, []
        for x in inputs:
            answer, state = self._one(x, state)
            answers.append(answer)
        return answers

    def _one(self, x: float, state: NDArray[np.float32]) -> tuple[Answer, NDArray[np.float32]]:
        feed: dict[str, Any] = {"states": state}
        if self.task == "next-word":
            feed |= {"tokens": np.array([int(x)]), "k": np.array([TOP_K])}
            names = ["surprises", "top_probabilities", "next_states"]
        else:
            feed |= {"values": np.array([[x]])}
            names = ["surprises", "locations", "scales", "degrees_of_freedom", "next_states"]
        *columns, state = self._step.run(names, feed)
        return np.concatenate([column.reshape(-1) for column in columns]).astype(np.float64), state


def lone_models(folder: Path) -> dict[str, LoneModel]:
    """The first version of every bundle in a model folder, by name."""
    return {path.parent.name: LoneModel(Bundle.load(path)) for path in sorted(folder.glob("*/1"))}


def check(life: Life, models: Mapping[str, LoneModel]) -> None:
    """AssertionError where the session is not what an undisturbed one would be."""
    assert life.final is not None, f"{life.id} was never finished"
    step, prediction = life.final
    assert step == len(life.inputs), f"{life.id} has {step} observations in its state and was fed {len(life.inputs)}"
    expected = models[life.model].answers(life.inputs)
    wrong = [at for at, answer in sorted(life.answers.items()) if not _same(answer, expected[at - 1])]
    where = f"{life.id} ({life.model}, {step} steps, {len(life.answers)} answers)"
    assert not wrong, f"{where} answered otherwise at {len(wrong)} steps from {wrong[0]} to {wrong[-1]}"
    assert not expected or _same(prediction[1:], expected[-1][1:]), f"{where} is somewhere else at its end"


def _same(answer: Answer, expected: Answer) -> bool:
    return np.allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
