"""Labels over the SDK and the command, on the real server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.conftest import real_server

from hiddenstate import AsyncClient, Client, InvalidInput, LabelPrediction, spelling
from hiddenstate_models import spelling as theirs
from hiddenstate_models.export import random_bundle


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with a model that classifies and one that tags with a look-ahead of 1."""
    models = tmp_path_factory.mktemp("labels")
    random_bundle(models, "classification", seed=1)
    random_bundle(models, "tagging", seed=2)
    random_bundle(models, "next-word", seed=3)
    with real_server(models, tmp_path_factory.mktemp("log")) as address:
        yield address


def test_the_verdict_runs_along(labels: str) -> None:
    with Client(labels) as client, client.session("classification") as session, session.fork() as other:
        assert session.model.label_names == ("label-0", "label-1")
        before = session.peek()
        assert isinstance(before, LabelPrediction)
        verdicts = session.label("the w9 , a W12")
        assert verdicts.probabilities.shape == (5, 2)
        assert [verdict.label for verdict in verdicts] == verdicts.labels.tolist()
        for word, verdict in zip(["the", "w9", ",", "a", "w12"], verdicts, strict=True):
            observed: object = other.observe(word)
            assert observed == verdict
        last = verdicts[-1]
        assert sum(last.probabilities.values()) == pytest.approx(1)
        assert last.probability == last.probabilities[last.label] == max(last.probabilities.values())
        text: object = session.observe("the w9")
        assert text == other.label(["the", "w9"])[-1]
        assert session.rewind(7) == before
        with pytest.raises(InvalidInput, match="labels whole texts"):
            session.tag("the w9")


def test_tags_belong_to_their_words(labels: str) -> None:
    with Client(labels) as client, client.session("tagging") as session:
        words = ["the", "Johnson", "w12", "Rome", "1996-08-22"]
        tagged = session.tag(words)
        assert [one.word for one in tagged] == words
        assert (session.step, session.tag(words)) == (0, tagged)
        vocabulary = session.model.vocabulary
        assert vocabulary is not None
        assert [vocabulary.words[token] for token in vocabulary.tokens(words)] == [
            "the", "<Aa-on>", "w12", "<Aa>", "<0-0-0>",
        ]  # fmt: skip
        answers = session.label([*words, vocabulary.words[vocabulary.end_token]])
        for one, answer in zip(tagged, answers[1:], strict=True):
            assert one.label == answer.label
            assert one.probability == pytest.approx(answer.probability)
        assert [one.word for one in session.tag("the w12.")] == ["the", "w12", "."]
        assert session.tag("") == []


async def test_awaited(labels: str) -> None:
    async with AsyncClient(labels) as client, client.session("tagging") as session:
        tagged = await session.tag("the w12")
        assert len(tagged) == 2
        assert len(await session.label("the w12")) == 2


def test_fleets_of_labels(labels: str) -> None:
    with Client(labels) as client, client.fleet("classification") as fleet, client.session("classification") as one:
        predictions = fleet.observe(["a", "b", "a"], ["the", "w9", "w8"])
        assert not predictions.errors
        third: object = predictions[2]
        assert third == one.label(["the", "w8"])[1]


def test_what_labels_cannot_do_is_refused(labels: str) -> None:
    with Client(labels) as client, client.session("classification") as session, client.session("next-word") as words:
        with pytest.raises(InvalidInput, match="generates nothing"):
            session.generate(3)
        with pytest.raises(InvalidInput, match="takes words"):
            session.observe(3.5)
        for refused in (words.label, words.tag):
            with pytest.raises(InvalidInput, match="labels nothing"):
                refused("the")


def command(server: str, *arguments: str, text: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).with_name("hiddenstate")), *arguments]
    environment = {**os.environ, "HIDDENSTATE_SERVER": server, "PYTHONUTF8": "1"}
    done = subprocess.run(program, input=text, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    return done


def test_the_command_labels_lines(labels: str) -> None:
    shown = command(labels, "label", "--model", "classification", text="the w9\n\na\n").stdout
    rows = [line.split() for line in shown.splitlines()]
    with Client(labels) as client, client.session("classification") as session, session.fork() as other:
        verdicts = [*session.label("the w9"), *other.label("a")]
    expected = [
        [word, verdict.label, f"{verdict.probability:.1%}"]
        for word, verdict in zip(["the", "w9", "a"], verdicts, strict=True)
    ]
    assert [row for row in rows if row] == expected
    assert rows.index([]) == 2
    tags = command(labels, "label", "--model", "tagging", text="the Johnson\n").stdout
    assert [line.split()[0] for line in tags.splitlines() if line] == ["the", "Johnson"]
    assert "labels nothing" in command(labels, "label", "--model", "next-word", text="the\n", code=1).stderr
    assert "predicts no words" in command(labels, "type", "--model", "tagging", text="the\n", code=1).stderr
    assert "label-4" in command(labels, "models").stdout


@given(st.text(max_size=12), st.lists(st.integers(0, 5), max_size=4))
def test_sdk_and_server_spell_alike(word: str, suffixes: list[int]) -> None:
    assert list(spelling.classes(word, suffixes)) == list(theirs.classes(word, suffixes))


def test_rows_without_an_answer_have_no_label(labels: str) -> None:
    with Client(labels) as client, client.session("classification") as session:
        column = session.label(["the"])
        column.probabilities = np.full((1, 2), np.nan, np.float32)
        assert column.labels.tolist() == [None]
