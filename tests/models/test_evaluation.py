"""Scores beside baselines, from the command line."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hiddenstate_models.baselines.kneser_ney import KneserNey
from hiddenstate_models.cli import app
from hiddenstate_models.data import text
from hiddenstate_models.data.sources import File
from hiddenstate_models.errors import DataError
from hiddenstate_models.evaluation.words import baseline_scores, network_scores
from hiddenstate_models.networks.words import NextWordNetwork
from hiddenstate_models.training.next_word import NextWordOptions, mean_loss
from hiddenstate_models.training.runs import load_run

LINES = [f"U\tw{i % 7} w{i % 5} w{i % 3} ." + ("\n" if i % 4 == 3 else "") for i in range(160)]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture
def run(tmp_path: Path, corpus_file: Path) -> Path:
    folder = tmp_path / "run"
    flags = "--epochs 1 --lanes 4 --hidden 6 --embedding 6 --vocabulary 20 --accelerator cpu"
    arguments = ["train", "next-word", "--data", str(corpus_file), "--out", str(folder), *flags.split()]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


def test_scores_of_a_network_are_those_of_its_loss_and_its_guesses(corpus_file: Path) -> None:
    documents = list(text.read_documents([File(corpus_file)]))
    tokenizer = text.train_tokenizer(documents, 20, lowercase=True)
    corpus = text.encode(tokenizer, documents)
    torch.manual_seed(0)
    network = NextWordNetwork(NextWordOptions(hidden="6", embedding=6).network(tokenizer.get_vocab_size()))
    scores = network_scores(network, [corpus])
    assert scores["perplexity"] == pytest.approx(math.exp(mean_loss(network, corpus)), rel=1e-5)
    hits = words = 0
    for document in corpus.documents():
        state = network.initial_state(1)
        for token, following in itertools.pairwise(document):
            with torch.no_grad():
                output, state = network.step(torch.tensor([int(token)]), state)
                hits += int(network.head(output).argmax()) == following
            words += 1
    assert scores["top-1 accuracy"] == pytest.approx(hits / words)
    assert scores["top-1 accuracy"] <= scores["top-3 accuracy"] <= 1


def test_the_baseline_learns_what_a_table_can(corpus_file: Path) -> None:
    documents = list(text.read_documents([File(corpus_file)]))
    tokenizer = text.train_tokenizer(documents, 20, lowercase=True)
    corpus = text.encode(tokenizer, documents)
    scores = baseline_scores(KneserNey.fit(corpus, tokenizer.get_vocab_size()), [corpus])
    uniform = np.log(tokenizer.get_vocab_size())
    assert 1 < scores["perplexity"] < math.exp(uniform) / 2


def test_a_run_keeps_its_scores_for_the_card(run: Path, corpus_file: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run), "--data", str(corpus_file), "--json"])
    assert result.exit_code == 0, result.output
    kept = json.loads((run / "scores.json").read_text())
    assert kept == json.loads(result.stdout)
    assert set(kept) == {"corpus.txt"}
    assert set(kept["corpus.txt"]) == {"model", "Kneser-Ney 5-gram"}


def test_a_run_is_scored_on_what_it_held_out(run: Path) -> None:
    """Every twentieth document, and the baseline learns from the others."""
    result = CliRunner().invoke(app, ["evaluate", str(run), "--json"], catch_exceptions=False)
    scores = json.loads(result.stdout)
    assert set(scores) == {"held out"}
    assert scores["held out"]["model"]["perplexity"] == pytest.approx(load_run(run).best["perplexity"], rel=1e-4)
    assert scores["held out"]["Kneser-Ney 5-gram"]["perplexity"] > 1


def test_scores_of_parts_are_those_of_the_whole(corpus_file: Path) -> None:
    documents = list(text.read_documents([File(corpus_file)]))
    tokenizer = text.train_tokenizer(documents, 20, lowercase=True)
    whole = text.encode(tokenizer, documents)
    parts = list(text.encode_in_parts(tokenizer, documents, 100))
    assert len(parts) > 5
    assert all(len(part.tokens) < 200 for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert sum(len(part.starts) for part in parts) == len(whole.starts)
    torch.manual_seed(0)
    network = NextWordNetwork(NextWordOptions(hidden="6", embedding=6).network(tokenizer.get_vocab_size()))
    assert network_scores(network, parts) == pytest.approx(network_scores(network, [whole]), rel=1e-5)
    baseline = KneserNey.fit(whole, tokenizer.get_vocab_size())
    expected = baseline_scores(baseline, [whole])["perplexity"]
    assert baseline_scores(baseline, parts)["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_bundle_scores_like_its_run(run: Path, corpus_file: Path, tmp_path: Path) -> None:
    exported = ["export", str(run), "--out", str(tmp_path / "bundles"), "--dtype", "float32", "--no-int8"]
    assert CliRunner().invoke(app, exported).exit_code == 0
    results = [
        CliRunner().invoke(app, ["evaluate", str(source), "--data", str(corpus_file), "--json"])
        for source in (run, tmp_path / "bundles" / "next-word" / "1")
    ]
    first, second = (json.loads(result.stdout)["corpus.txt"]["model"] for result in results)
    assert second == pytest.approx(first, rel=1e-6)


def test_what_cannot_be_evaluated_is_said(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match="neither a training run"):
        CliRunner().invoke(app, ["evaluate", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(DataError, match="no file matches"):
        CliRunner().invoke(app, ["evaluate", str(run), "--data", str(tmp_path / "absent.txt")], catch_exceptions=False)
