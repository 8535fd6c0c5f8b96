"""Labels: of a text so far and of words, over words and tokens, taken back, forked, moved; nothing is generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.conftest import Serve
from tests.server.test_generate import Client
from tests.server.wire import fork, generate, opening, peek, rewind, texts, values, words

from hiddenstate_models.bundle import Bundle
from hiddenstate_models.export import random_bundle
from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server.limits import Limits
from hiddenstate_server.metrics import Metrics
from hiddenstate_server.sessions.host import Host
from hiddenstate_server.settings import Settings
from hiddenstate_server.versions.repository import LoadedModel, load_models

TASKS = ("classification", "tagging")


@pytest.fixture(scope="module")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("labels")
    random_bundle(folder, "classification", seed=1, pooling="mean")
    random_bundle(folder, "tagging", seed=2)
    return folder


@pytest.fixture(scope="module")
def models(labelling: Path) -> list[LoadedModel]:
    return load_models(Settings(models=labelling, max_batch=64))


@pytest.fixture
def client(models: list[LoadedModel]) -> Iterator[Client]:
    host = Host(Limits(max_sessions=100), Metrics("test"))
    for model in models:
        host.add_model(*model)
    yield Client(host)
    host.check_integrity()
    for stream in list(host.streams.values()):
        host.disconnect(stream)


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_those_of_the_runtime(client: Client, models: list[LoadedModel], task: str) -> None:
    (model,) = (one for one in models if one.info.task == task)
    outputs: Any
    outputs, state = model.runtime.initial()
    client.send(opening([0], task), peek([0]))
    first = client.run().peeked[0].columns
    np.testing.assert_array_equal(first["probabilities"], outputs.probabilities[0])
    assert np.isnan(first["surprises"]).all()
    for token in (3, 9, 0, 4):
        client.send(words([0], [token]))
        outputs, state = model.runtime.step(np.array([token]), state)
        answer = client.run().observed[-1]
        np.testing.assert_allclose(answer.columns["probabilities"], outputs.probabilities[0], rtol=1e-5)
        assert answer.columns["probabilities"].sum() == pytest.approx(1)
        assert not answer.words


@pytest.mark.parametrize("task", TASKS)
def test_torch_agrees_with_onnx(labelling: Path, models: list[LoadedModel], task: str) -> None:
    from hiddenstate_server.runtimes.torch import TorchRuntime

    (model,) = (one for one in models if one.info.task == task)
    torch = TorchRuntime(Bundle.load(labelling / task / "1"), top_k=5, device="cpu")
    ours: Any
    theirs: Any
    (ours, state), (theirs, expected) = torch.initial(), model.runtime.initial()
    tokens = np.random.default_rng(0).integers(0, 50, (6, 9))
    state, expected = np.repeat(state, 9, axis=0), np.repeat(expected, 9, axis=0)
    for column in tokens:
        for left, right in [(ours.probabilities, theirs.probabilities), (state, expected)]:
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
        ours, state = torch.step(column, state)
        theirs, expected = model.runtime.step(column, expected)


def test_unknown_words_count_as_their_spelling_class(client: Client, models: list[LoadedModel]) -> None:
    (model,) = (one for one in models if one.info.task == "tagging")
    assert model.info.text is not None
    ids = model.info.text.token_ids
    spelled = ["Robinson", "Rome", "1996-08-22", "the", "The", "zebra"]
    tokens = [ids["<Aa-on>"], ids["<Aa>"], ids["<0-0-0>"], ids["the"], ids["<Aa>"], ids["<unk>"]]
    client.send(opening([0, 1], "tagging"))
    for word, token in zip(spelled, tokens, strict=True):
        client.send(texts([0], [word]), words([1], [token]))
        one, other = client.run().observed[-2:]
        np.testing.assert_array_equal(one.columns["probabilities"], other.columns["probabilities"])
        assert not one.words


@pytest.mark.parametrize("task", TASKS)
def test_forks_and_rewinds_are_where_the_session_was(client: Client, task: str) -> None:
    client.send(opening([0], task), words([0] * 3, [3, 4, 5]))
    there = client.run().observed[-1].columns["probabilities"]
    client.send(fork([0], [1]))
    client.run()
    client.send(words([0, 0], [6, 7]), rewind([0], [3]), peek([1]))
    client.run()
    np.testing.assert_array_equal(client.replies.peeked[-1].columns["probabilities"], there)
    np.testing.assert_allclose(client.replies.rewound[-1].columns["probabilities"], there, rtol=1e-5)


def test_nothing_is_generated(client: Client) -> None:
    client.send(opening([0], "classification"), generate(0, 5, 3))
    (fault,) = client.run().faults
    assert (fault.reason, fault.call) == ("INPUT_INVALID", 5)
    assert "labels what it reads" in fault.message


def test_values_are_refused(client: Client) -> None:
    client.send(opening([0], "tagging"), values([0], [[1.0]]), words([0], [50]))
    assert ["takes words" in fault.message for fault in client.run().faults] == [True, False]


async def test_models_are_described_and_other_labels_are_no_relatives(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    random_bundle(folder, "tagging", version=1, seed=1)
    random_bundle(folder, "tagging", version=2, seed=2)
    random_bundle(folder, "tagging", version=3, seed=2, labels=6)
    serving = await serve(models=folder)
    model = (await serving.stub.GetModel(pb.GetModelRequest(name="tagging", version="1"))).model
    assert (model.task, model.labels.look_ahead, model.text.top_k) == (pb.TASK_TAGGING, 1, 0)
    assert list(model.labels.names) == [f"label-{i}" for i in range(5)]
    assert list(model.text.spelling_suffixes) == [2, 0]
    wire = serving.wire()
    await wire.send(opening([0], "tagging", version="1", shadow_version="2"), words([0] * 4, [3, 4, 5, 6]))
    await wire.until(lambda wire: len(wire.observed) == 4)
    await wire.send(opening([1], "tagging", version="1", shadow_version="3"))
    await wire.until(lambda wire: wire.faults)
    assert wire.faults[0].reason == "INPUT_INVALID"
    assert "other labels" in wire.faults[0].message
