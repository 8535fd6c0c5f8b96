"""Networks that label text: sequence and step agree, what is served is what was trained, and graphs agree with both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.test_reference import session
from tests.models.test_sequences import LENGTHS, check

from hiddenstate_models.bundle import SEQUENCE_FILE, STEP_FILE, Bundle
from hiddenstate_models.errors import BundleCorruptError, ConfigurationError
from hiddenstate_models.export import random_bundle
from hiddenstate_models.networks.labels import LabellingConfig, LabellingNetwork
from hiddenstate_models.reference import reference_step

NETWORKS: dict[str, dict[str, Any]] = {
    "lstm-max": {"hidden_sizes": [8, 6], "pooling": "max"},
    "lstm-mean-projected": {"hidden_sizes": [8], "projection": 5, "pooling": "mean"},
    "gru-last": {"cell": "gru", "hidden_sizes": [7], "pooling": "last", "labels": 9},
    "elman-mean": {"cell": "rnn-relu", "hidden_sizes": [6], "pooling": "mean"},
}
WORDS = ["<unk>", "<eos>", *(f"word{i}" for i in range(28)), "x" * 50, "Ünï日本"]


def network(**changed: Any) -> LabellingNetwork:
    fields: dict[str, Any] = {"task": "tagging", "hidden_sizes": (6,), "embedding_size": 5, "labels": 4} | changed
    torch.manual_seed(0)
    return LabellingNetwork(LabellingConfig(vocabulary_size=len(WORDS), **fields), WORDS)


@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
@pytest.mark.parametrize("characters", [0, 7])
def test_steps_agree_with_the_sequence(pooling: str, characters: int) -> None:
    labelling = network(pooling=pooling, characters=characters).double().eval()
    tokens = torch.randint(len(WORDS), (9, 3))
    state = labelling.initial_state(3)
    first, middle = labelling(tokens[:4], state)
    rest, last = labelling(tokens[4:], middle)
    for x, expected in zip(tokens, torch.cat((first, rest)), strict=True):
        logits, state = labelling.step(x, state)
        torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(state, last)


def test_characters_are_folded_into_the_embedding() -> None:
    labelling = network(characters=7, pooling="max").eval()
    served = LabellingNetwork(LabellingConfig.from_dict(labelling.config.served()))
    served.load_state_dict(labelling.served_weights())
    tokens = torch.randint(len(WORDS), (9, 3))
    expected, _ = labelling(tokens, labelling.initial_state(3))
    torch.testing.assert_close(served.eval()(tokens, served.initial_state(3))[0], expected)


def test_a_sentence_is_read_backwards_whatever_pads_it() -> None:
    labelling = network(bidirectional=True).eval()
    tokens = torch.randint(len(WORDS), (9, 2))
    tokens[5:, 1] = -1
    together, _ = labelling(tokens, labelling.initial_state(2))
    alone, _ = labelling(tokens[:5, 1:], labelling.initial_state(1))
    torch.testing.assert_close(together[:5, 1], alone[:, 0])
    tokens[4, 1] = (tokens[4, 1] + 1) % len(WORDS)
    changed, _ = labelling(tokens, labelling.initial_state(2))
    assert not torch.allclose(changed[0, 1], together[0, 1])


def test_a_taught_jordan_network_reads_the_label_before() -> None:
    """Only in training, and nothing where that label does not count."""
    labelling = network(cell="jordan", dropout=0.0, teacher_forcing=True)
    assert labelling.taught
    tokens = torch.randint(len(WORDS), (5, 2))
    targets = torch.tensor([[-100, 2], [0, 3], [1, -100], [2, 0], [3, 1]])
    taught, _ = labelling(tokens, labelling.initial_state(2), targets)
    fed_back = labelling.initial_state(2)
    for token, labels, expected in zip(tokens, targets, taught, strict=True):
        output, _ = labelling.cells.step(labelling.encoder(token), fed_back)
        torch.testing.assert_close(labelling.head(output), expected)
        fed_back = torch.stack(
            [labelling.head.weight[label] if label >= 0 else torch.zeros(6) for label in labels.tolist()]
        )
    assert not torch.allclose(labelling(tokens, labelling.initial_state(2))[0][1:], taught[1:])
    assert "teacher_forcing" not in labelling.config.served()


def test_training_forgets_words() -> None:
    labelling = network(dropout=0.0)
    in_place = torch.zeros(len(WORDS), dtype=torch.int64)
    labelling.encoder.forget(in_place, torch.ones(len(WORDS)))
    tokens = torch.randint(2, len(WORDS), (9, 3))
    forgotten, _ = labelling(tokens, labelling.initial_state(3))
    labelling.eval()
    expected, _ = labelling(torch.zeros_like(tokens), labelling.initial_state(3))
    torch.testing.assert_close(forgotten, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "classification", "crf": True},
        {"bidirectional": True, "pooling": "max"},
        {"teacher_forcing": True},
        {"teacher_forcing": True, "cell": "jordan", "bidirectional": True},
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        network(**fields)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_served_step_agrees_with_float64(tmp_path: Path, fields: dict[str, Any], dtype: str) -> None:
    bundle = random_bundle(tmp_path, "classification", dtype=dtype, **fields)
    step, reference = session(bundle), reference_step(bundle, dtype=torch.float64)
    states = np.zeros((6, bundle.config.state_size), np.float32)
    exact = torch.zeros(states.shape, dtype=torch.float64)
    for tokens in np.random.default_rng(1).integers(0, len(bundle.vocabulary), (15, 6)):
        probabilities, states = step.run(None, {"tokens": tokens, "states": states})
        expected, exact = reference(torch.from_numpy(tokens), exact)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(states, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_sequence_gives_what_its_steps_give(tmp_path: Path, fields: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "tagging", **fields)
    tokens = np.random.default_rng(1).integers(0, len(bundle.vocabulary), sum(LENGTHS))
    state = np.zeros((1, bundle.config.state_size), np.float32)
    step, sequence = session(bundle, STEP_FILE), session(bundle, SEQUENCE_FILE)
    check(step, sequence, {"tokens": tokens}, state, {})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('"labels": {', '"lables": {'), "Extra inputs are not permitted"),
        (('"label-1"', '"label-0"'), "labels must name 2 different labels"),
        (('"pooling": "max"', '"pooling": "median"'), "pooling"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    bundle = random_bundle(tmp_path, "classification")
    path = bundle.folder / "config.json"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(BundleCorruptError, match=complaint):
        Bundle.load(bundle.folder)
