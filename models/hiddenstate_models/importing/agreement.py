"""Whether a bundle computes what the model computes that it was made of."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hiddenstate_models.bundle import STEP_FILE, Bundle
from hiddenstate_models.errors import DataError
from hiddenstate_models.importing.source import Floats, Source

STEPS = 24
TOLERANCE = 1e-3
"""Of log-probabilities, and of values in units of the normalisation: far above float32's rounding in any order."""

Doubles = npt.NDArray[np.float64]


def check_words(bundle: Bundle, source: Source) -> float:
    """Feeds the same random words to both; the largest difference between log-probabilities of next words.

    Raises:
        DataError: they disagree.
    """
    words = len(bundle.vocabulary)
    tokens = np.random.default_rng(0).integers(0, words, STEPS)
    step, state = _step(bundle)
    ours = np.empty((STEPS, words))
    for t, token in enumerate(tokens):
        feeds = {"tokens": np.array([token]), "states": state, "k": np.array([words])}
        _, top, probabilities, state = step.run(None, feeds)
        ours[t, top[0]] = np.log(np.maximum(probabilities[0], np.finfo(np.float32).tiny))
    return _smallest_difference(source, tokens, lambda answer: ours - _log_probabilities(answer), "log-probabilities")


def check_values(bundle: Bundle, source: Source, mean: Doubles, std: Doubles, targets: tuple[int, ...]) -> float:
    """Feeds the same random values to both; the largest difference of predictions, in units of the normalisation.

    Raises:
        DataError: they disagree.
    """
    scaled = np.random.default_rng(0).normal(size=(STEPS, len(mean))).cumsum(0) / 2
    step, state = _step(bundle)
    ours = np.empty((STEPS, len(targets)))
    for t, row in enumerate(scaled * std + mean):
        _, locations, _, _, state = step.run(None, {"values": row[None], "states": state})
        ours[t] = (locations[0] - mean[list(targets)]) / std[list(targets)]
    return _smallest_difference(source, scaled.astype(np.float32), lambda answer: ours - answer, "predictions")


def _step(bundle: Bundle) -> tuple[ort.InferenceSession, Floats]:
    """The served step and the state of a new session."""
    session = ort.InferenceSession(str(bundle.folder / STEP_FILE), providers=["CPUExecutionProvider"])
    return session, np.zeros((1, bundle.config.state_size), np.float32)


def _smallest_difference(
    source: Source, inputs: npt.NDArray[np.generic], difference: Callable[[Floats], Doubles], what: str
) -> float:
    largest = min(float(np.abs(difference(answer)).max()) for answer in source.run(inputs))
    if not largest < TOLERANCE:
        also = f" The model also computes {', '.join(source.also_computes)}." if source.also_computes else ""
        raise DataError(
            f"the bundle and the model it was made of disagree: over {STEPS} steps their {what} differ by up to "
            f"{largest:.3g}. A bundle has recurrent layers between embedded words, or normalised values, and one "
            f"linear output layer, and starts from a state of zeros.{also}"
        )
    return largest


def _log_probabilities(answer: Floats) -> Doubles:
    """Of logits, log-probabilities or probabilities [T, words]."""
    wide = answer.astype(np.float64)
    if wide.min() >= 0 and np.allclose(wide.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(wide, np.finfo(np.float32).tiny)))
    wide -= wide.max(1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(1, keepdims=True)))
