"""Search for settings: spaces, trials on disk, pruning, failures, stopping and going on."""

import itertools
import json
import os
import signal
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.models.test_training import documents, write_corpus
from typer.testing import CliRunner

from hiddenstate_models.cli.app import app
from hiddenstate_models.errors import ConfigurationError, DataError, TrainingError
from hiddenstate_models.search.commands import search
from hiddenstate_models.search.space import read_space
from hiddenstate_models.search.study import Found, Study, opened
from hiddenstate_models.training.loop import decisive
from hiddenstate_models.training.next_word import NEXT_WORD, NextWordOptions, NextWordTask
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Told
from hiddenstate_models.training.recipes import RECIPES
from hiddenstate_models.training.runs import find_runs, load_run

__all__ = ["documents"]

SPACE = """
[training]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
[words]
hidden = ["6", "5,6"]
"""
FLAGS = ["--epochs", "2", "--lanes", "8", "--k1", "10", "--k2", "10", "--embedding", "6", "--vocabulary", "16"]
FLAGS += ["--accelerator", "cpu", "--dropout", "0"]


@pytest.fixture(scope="module")
def corpus(documents: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents[:30])


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return path


def run(corpus: Path, space: Path, out: Path, *more: str) -> str:
    arguments = ["search", "next-word", "--data", str(corpus), "--space", str(space), "--out", str(out), *FLAGS, *more]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def found_in(folder: Path, corpus: Path, space: Path) -> list[Found]:
    told = Told([str(corpus)], [], NextWordOptions(), TrainingOptions())
    return Study(folder, read_space(space, NEXT_WORD, ()), "median", told).found()


def test_every_task_has_a_space() -> None:
    for recipe in RECIPES.values():
        names = [dimension.name for dimension in read_space(None, recipe, ())]
        assert {"learning_rate", "dropout", "hidden", "weight_decay"} <= set(names)
        without = read_space(None, recipe, ["dropout", "hidden"])
        assert [one.name for one in without] == [name for name in names if name not in ("dropout", "hidden")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("hidden = ['4']", r"options stand in a table, \[words\] or \[training\], not 'hidden'"),
        ("[words]\nhiden = ['4']", "unknown option 'hiden'; did you mean hidden"),
        ("[words]\nhidden = { low = 1, high = 2 }", "hidden is no number: list its values"),
        ("[words]\nhidden = [4]", "hidden cannot be 4: Input should be a valid string"),
        ("[words]\nhidden = []", "hidden is a list of values or"),
        ("[words]\nembedding = { low = 1.5, high = 2 }", "embedding is a whole number"),
        ("[words]\nembedding = { low = 8, high = 2 }", "embedding needs low < high"),
        ("[words]\nembedding = { low = 0, high = 2, log = true }", "logarithmic scale needs low > 0"),
        ("[words]\nembedding = { low = 1, hihg = 2 }", r"embedding\.high: Field required"),
        ("[training]\nlearning_rate = { low = -1.0, high = 1.0 }", "learning_rate must be greater than 0"),
        ("[training]\noptimizer = ['adam', 'lion']", "optimizer cannot be 'lion'"),
        ("", "leaves nothing to search for"),
        ("[words", "cannot read"),
    ],
)
def test_spaces_that_will_not_do_are_told(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "space.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=complaint):
        read_space(tmp_path / "space.toml", NEXT_WORD, ())


def test_a_flag_is_not_searched_for_too(space: Path) -> None:
    with pytest.raises(ConfigurationError, match="hidden is given by its flag and searched for by"):
        read_space(space, NEXT_WORD, ["hidden"])


def test_a_search_makes_runs_and_tells_the_best(corpus: Path, space: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    output = run(corpus, space, out, "--trials", "3", "--pruner", "none")
    trials = found_in(out, corpus, space)
    assert [trial.state for trial in trials] == ["finished"] * 3, output
    runs = [load_run(out / f"trial-{number}") for number in range(3)]
    assert [one.folder for one in find_runs(out)] == [one.folder for one in runs]
    for trial, one in zip(trials, runs, strict=True):
        assert trial.score == one.progress.best_loss
        assert 1e-3 <= one.record.training["learning_rate"] <= 1e-1
        assert {name: one.settings[name] for name in ("learning_rate", "hidden")} == trial.values
        assert one.record.training["seed"] == 0
    best = min(trials, key=lambda trial: trial.score or 0)
    assert tomllib.loads((out / "best.toml").read_text())["training"]["learning_rate"] == best.values["learning_rate"]
    command = next(line.split() for line in output.splitlines() if "hiddenstate-models train" in line)
    again = CliRunner().invoke(app, [*command[1:-1], str(tmp_path / "best")], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert load_run(tmp_path / "best").progress.best_loss == best.score
    assert "trial-2" in CliRunner().invoke(app, ["list", str(out)], env={"COLUMNS": "200"}).output


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(
    corpus: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes in the second trial's second epoch, whose checkpoint it goes on from."""
    run(corpus, space, tmp_path / "whole", "--trials", "3", "--pruner", "none")
    ends, validate = [0], NextWordTask.validate

    def interrupt(self: NextWordTask, network: Any) -> dict[str, float]:
        ends[0] += 1
        if ends[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return validate(self, network)

    monkeypatch.setattr(NextWordTask, "validate", interrupt)
    flags = ("--trials", "3", "--pruner", "none")
    stopped = run(corpus, space, tmp_path / "stopped", *flags)
    assert "Stopped. Go on by the same command." in stopped
    assert "Best: trial 0" in stopped
    assert load_run(tmp_path / "stopped" / "trial-1").progress.epoch == 1
    assert "3 trials, 1 of them there" in run(corpus, space, tmp_path / "stopped", *flags)
    assert ends[0] == 6, "nothing was trained twice"
    assert found_in(tmp_path / "stopped", corpus, space) == found_in(tmp_path / "whole", corpus, space)
    run(corpus, space, tmp_path / "stopped", *flags)
    assert ends[0] == 6, "there was nothing more to do"


def test_a_trial_killed_before_its_first_checkpoint_begins_anew(corpus: Path, space: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    told = Told([str(corpus)], [], NextWordOptions(), TrainingOptions())
    study = Study(_made(out), read_space(space, NEXT_WORD, ()), "median", told)
    _, values = study.next()
    (out / "trial-0").mkdir()
    (out / "trial-0" / "run.json").write_text("{}")
    run(corpus, space, out, "--trials", "1")
    (trial,) = found_in(out, corpus, space)
    assert (trial.state, trial.values) == ("finished", values)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_trials_that_fall_behind_are_pruned(
    corpus: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are made up, each trial's worse than those before; from the fifth on they end early."""
    losses = itertools.count(1.0)
    monkeypatch.setattr(NextWordTask, "validate", lambda _task, _network: {"loss": next(losses)})
    output = run(corpus, space, tmp_path / "search", "--trials", "6", "--epochs", "3")
    states = [trial.state for trial in found_in(tmp_path / "search", corpus, space)]
    assert states == ["finished"] * 4 + ["pruned"] * 2
    assert load_run(tmp_path / "search" / "trial-5").progress.epoch == 2
    assert "trial 5 pruned" in output
    assert "Best: trial 0" in output


def test_trials_that_cannot_be_trained_are_recorded(corpus: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[training]\nlearning_rate = [1e39, 1e-2]\nwarmup = [0]\n[words]\nhidden = ['6', 'six']\n")
    output = run(corpus, space, tmp_path / "search", "--trials", "6")
    trials = found_in(tmp_path / "search", corpus, space)

    def fails(values: Mapping[str, Any]) -> bool:
        return bool(values["hidden"] == "six" or values["learning_rate"] > 1)

    assert {trial.state for trial in trials} == {"finished", "failed"}
    assert all((trial.state == "failed") == fails(trial.values) for trial in trials)
    reasons = {trial.values["hidden"]: trial.reason for trial in trials if trial.state == "failed"}
    assert "layer sizes are positive integers" in reasons["six"]
    assert "Best: trial" in output
    space.write_text("[words]\nhidden = ['six']\n")
    with pytest.raises(TrainingError, match="no trial could be trained; the last one: layer sizes are"):
        run(corpus, space, tmp_path / "other", "--trials", "2")


def test_a_loss_that_is_no_number_is_a_failed_trial(corpus: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[training]\nlearning_rate = [1e39]\n[words]\nhidden = ["6"]\n')
    with pytest.raises(TrainingError, match=r"no trial could be trained.*no finite number"):
        run(corpus, space, tmp_path / "search", "--trials", "1", "--warmup", "0")
    assert [trial.state for trial in found_in(tmp_path / "search", corpus, space)] == ["failed"]


def test_another_search_is_not_mixed_in(corpus: Path, space: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    run(corpus, space, out, "--trials", "1")
    with pytest.raises(ConfigurationError, match="holds a search in which epochs was 2, not 3: give the same flags"):
        run(corpus, space, out, "--trials", "1", "--epochs", "3")
    space.write_text(SPACE.replace("5,6", "4,6"))
    with pytest.raises(ConfigurationError, match="holds a search in which space was"):
        run(corpus, space, out, "--trials", "1")
    assert "task" in json.loads((out / "search.json").read_text())


def test_a_search_that_trained_nothing_leaves_its_folder_free(corpus: Path, space: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    with pytest.raises(DataError, match="no file matches"):
        run(tmp_path / "nowhere.txt", space, out)
    run(corpus, space, out, "--trials", "1")
    assert [trial.number for trial in found_in(out, corpus, space)] == [0]


def test_two_searches_do_not_share_a_folder(corpus: Path, space: Path, tmp_path: Path) -> None:
    told = Told([str(corpus)], [], NextWordOptions(), TrainingOptions())
    dimensions = read_space(space, NEXT_WORD, ())
    with (
        opened(tmp_path / "search", "next-word", told, dimensions, "median"),
        pytest.raises(ConfigurationError, match="a search is under way"),
        opened(tmp_path / "search", "next-word", told, dimensions, "median"),
    ):
        pass


def test_what_a_search_needs_is_told(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def try_(data: list[str]) -> None:
        told = Told(data, [], NextWordOptions(), TrainingOptions())
        search(NEXT_WORD, told, tmp_path / "search", None, (), trials=1, pruning="median")

    with pytest.raises(ConfigurationError, match="name files with --data"):
        try_([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="a search runs in one process"):
        try_([str(corpus)])
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delitem(sys.modules, "hiddenstate_models.search.study")
    monkeypatch.delattr("hiddenstate_models.search.study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'hiddenstate\[search\]'"):
        try_([str(corpus)])


def test_the_error_decides_where_there_is_one() -> None:
    assert decisive({"loss": 2.0, "error": 0.1}) == 0.1
    assert decisive({"loss": 2.0}) == 2.0
