"""Classification and tagging from training to evaluation, bundle and tags, by the commands that people type."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hiddenstate_models.baselines.labels import BagOfWords, TagOfWord
from hiddenstate_models.bundle import INT8_STEP_FILE, Bundle
from hiddenstate_models.cli import app
from hiddenstate_models.data.labelled import LabelledText, TaggedSentence
from hiddenstate_models.errors import DataError, ModelError
from hiddenstate_models.training import commands
from hiddenstate_models.training.classification import CLASSIFICATION, ClassificationOptions
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Told
from hiddenstate_models.training.runs import load_run
from hiddenstate_models.training.tagging import TAGGING, TaggingOptions

SMALL = ("--hidden", 16, "--embedding", 8, "--characters", 6, "--lanes", 8, "--learning-rate", 0.02, "--warmup", 5)


def run(*arguments: object, text: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def reviews(path: Path, count: int, seed: int) -> Path:
    """A text is what its last word of praise or blame says."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        words = list(rng.choice(["the", "film", "is", "was", "so"], rng.integers(2, 9)))
        label = int(rng.integers(2))
        words.insert(int(rng.integers(len(words) + 1)), ["dull", "fine"][label])
        lines.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(lines))
    return path


def visits(path: Path, count: int, seed: int) -> Path:
    """A capitalised word is a place if what follows it is "fell", else a person; names are seldom seen twice."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        name = "".join(rng.choice(list("abcdefgh"), 5)).capitalize()
        place = rng.random() < 0.5
        for word, tag in [("when", "O"), (name, "I-LOC" if place else "I-PER"), ("fell" if place else "came", "O")]:
            lines.append(f"{word} X {tag}")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def turns(path: Path, count: int) -> Path:
    """The first word says which of two tags it has, and every other one has the other tag than the word before it."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(count):
        first = int(rng.integers(2))
        lines += [f"{'on' if first else 'off'} T{first}", *(f"turn T{(first + i) % 2}" for i in range(1, 6)), ""]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("taught", [True, False])
def test_a_jordan_network_learns_what_the_label_before_says(tmp_path: Path, taught: bool) -> None:
    out = tmp_path / "run"
    flags = ["--teacher-forcing"] if taught else []
    run("train", "tagging", "--data", turns(tmp_path / "data", 200), "--out", out, "--cell", "jordan", *flags, *SMALL,
        "--look-ahead", 0, "--epochs", 8, "--patience", 8)  # fmt: skip
    assert load_run(out).record.network["teacher_forcing"] is taught
    assert load_run(out).best["error"] < 0.01


def test_classifies_evaluates_and_exports(tmp_path: Path) -> None:
    data, valid = reviews(tmp_path / "train.tsv", 200, 0), reviews(tmp_path / "valid.tsv", 60, 1)
    out = tmp_path / "run"
    run("train", "classification", "--data", data, "--valid", valid, "--out", out, "--epochs", 6, *SMALL)
    scores = json.loads(run("evaluate", out, "--json"))["valid.tsv"]
    assert list(scores) == ["model", "bag of words and pairs", "most frequent label"]
    assert scores["model"]["accuracy"] > 0.95
    assert scores["most frequent label"]["accuracy"] < 0.75
    run("export", out, "--out", tmp_path / "bundles", "--name", "reviews")
    bundle = Bundle.load(tmp_path / "bundles" / "reviews" / "1")
    assert INT8_STEP_FILE not in bundle.config.files
    assert bundle.config.labels is not None
    assert set(bundle.config.labels.names) == {"0", "1"}
    assert "2 labels" in (bundle.folder / "card.md").read_text()
    again = json.loads(run("evaluate", bundle.folder, "--data", valid, "--json"))["valid.tsv"]
    assert again == {"model": scores["model"]}
    copied = run("export", bundle.folder, "--out", tmp_path / "bundles", "--name", "again")
    assert "labels" in copied


def test_tags_with_a_look_ahead(tmp_path: Path) -> None:
    data, valid = visits(tmp_path / "train.conll", 150, 0), visits(tmp_path / "valid.conll", 50, 1)
    out = tmp_path / "run"
    run("train", "tagging", "--data", data, "--valid", valid, "--out", out, "--epochs", 6, "--look-ahead", 1, *SMALL)
    scores = json.loads(run("evaluate", out, "--json"))["valid.conll"]
    assert scores["model"]["F1"] > 0.95
    assert scores["a word's most frequent tag"]["F1"] < 0.8
    run("export", out, "--out", tmp_path / "bundles", "--name", "visits")
    folder = tmp_path / "bundles" / "visits" / "1"
    config = Bundle.load(folder).config
    assert config.labels is not None
    assert config.text is not None
    assert (config.labels.look_ahead, config.text.spelling_suffixes) == (1, (3, 2, 0))
    assert "characters" not in config.network
    for source in (out, folder):
        found = run("tag", source, text="when Abcde fell\n\nwhen Hgfed came\n")
        assert found == "when\tO\nAbcde\tB-LOC\nfell\tO\n\nwhen\tO\nHgfed\tB-PER\ncame\tO\n\n"
    tagged = run("tag", folder, "--columns", "--data", valid).split("\n\n")
    assert tagged[0].split("\n")[1].split("\t")[1] in ("B-LOC", "B-PER")


def test_both_directions_and_a_random_field_are_for_offline_use(tmp_path: Path) -> None:
    data, valid = visits(tmp_path / "train.conll", 150, 0), visits(tmp_path / "valid.conll", 50, 1)
    out = tmp_path / "run"
    run("train", "tagging", "--data", data, "--valid", valid, "--out", out, "--epochs", 6, "--look-ahead", 0,
        "--bidirectional", "--crf", *SMALL)  # fmt: skip
    scores = json.loads(run("evaluate", out, "--json"))["valid.conll"]
    assert scores["model"]["F1"] > 0.95
    assert "Abcde\tB-LOC" in run("tag", out, text="when Abcde fell\n")
    with pytest.raises(DataError, match="cannot be served word by word; use it by `hiddenstate-models tag`"):
        run("export", out, "--out", tmp_path / "bundles")


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_a_resumed_run_learns_what_an_uninterrupted_one_does(tmp_path: Path, task: str) -> None:
    training = TrainingOptions(epochs=2, lanes=8)
    small: dict[str, Any] = {"hidden": "8", "embedding": 4, "characters": 3, "forget": 0.2}
    weights = []
    for name in ("whole", "parts"):
        out = tmp_path / name
        if task == "tagging":
            told = Told([str(visits(tmp_path / "data", 60, 0))], [], TaggingOptions(**small), training)
            assert commands.train(TAGGING, told, out, max_updates=None if name == "whole" else 5) is (name == "whole")
            assert name == "whole" or commands.resume(TAGGING, out)
        else:
            texts = Told([str(reviews(tmp_path / "data", 60, 0))], [], ClassificationOptions(**small), training)
            assert commands.train(CLASSIFICATION, texts, out, max_updates=None if name == "whole" else 5) is (
                name == "whole"
            )
            assert name == "whole" or commands.resume(CLASSIFICATION, out)
        weights.append((out / "best.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_a_run_is_scored_on_what_it_held_out(tmp_path: Path, task: str) -> None:
    data = (reviews if task == "classification" else visits)(tmp_path / "data", 60, 0)
    run("train", task, "--data", data, "--out", tmp_path / "run", "--epochs", 1, *SMALL)
    scores = json.loads(run("evaluate", tmp_path / "run", "--json"))["held out"]
    measure = "accuracy" if task == "classification" else "F1"
    assert scores["model"][measure] == pytest.approx(1 - load_run(tmp_path / "run").best["error"])
    assert len(scores) > 1


def test_labels_never_learnt_are_named(tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.tsv", 40, 0)
    other = tmp_path / "other.tsv"
    other.write_text("fine\t1\nwell\tmaybe\nfine film\t1\n")
    told = Told([str(data)], [str(other)], ClassificationOptions(), TrainingOptions())
    with pytest.raises(DataError, match="the label 'maybe' is none of those learnt"):
        commands.train(CLASSIFICATION, told, tmp_path / "run")


def test_only_models_of_tags_tag(tmp_path: Path) -> None:
    data = reviews(tmp_path / "train.tsv", 60, 0)
    run("train", "classification", "--data", data, "--out", tmp_path / "run", "--epochs", 1, *SMALL)
    with pytest.raises(ModelError, match="labels whole texts"):
        run("tag", tmp_path / "run", text="fine\n")


def test_baselines() -> None:
    sentences = [TaggedSentence(("a", "b", "a"), ("X", "O", "Y")), TaggedSentence(("a",), ("X",))]
    assert TagOfWord.fit(sentences).predict([TaggedSentence(("a", "b", "c"), ("", "", ""))]) == [["X", "O", "X"]]
    texts = [LabelledText("good", "+"), LabelledText("not good", "-"), LabelledText("bad", "-")] * 5
    words = [text.text.split() for text in texts]
    bag = BagOfWords.fit(words, texts, ("+", "-"), penalty=0.01)
    assert bag.predict([["good"], ["not", "good"], ["Bad"], ["unheard"]]) == ["+", "-", "-", "-"]
