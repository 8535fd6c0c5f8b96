"""Runs listed and compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.models.test_training import OPTIONS, WORDS, documents, write_corpus
from typer.testing import CliRunner

from hiddenstate_models.cli.app import app
from hiddenstate_models.errors import DataError
from hiddenstate_models.training import commands
from hiddenstate_models.training.next_word import NEXT_WORD
from hiddenstate_models.training.recipe import Told
from hiddenstate_models.training.runs import differences, find_runs, load_run

__all__ = ["documents"]


@pytest.fixture(scope="module")
def runs(documents: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished GRU, and an LSTM stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("runs")
    data = [str(write_corpus(folder, documents))]
    commands.train(
        NEXT_WORD, Told(data, [], replace(WORDS, cell="gru"), replace(OPTIONS, epochs=2)), folder / "b" / "gru"
    )
    commands.train(NEXT_WORD, Told(data, [], WORDS, OPTIONS), folder / "a", max_updates=80)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_every_run(runs: Path) -> None:
    rows = [line.split() for line in run("list", runs).splitlines() if "next-word" in line]
    listed = [load_run(runs / name) for name in ("a", "b/gru")]
    assert [row[0] for row in rows] == ["a", "b/gru"]
    assert [row[2:4] for row in rows] == [["lstm", "6,5"], ["gru", "6,5"]]
    assert [row[4] for row in rows] == [f"{one.record.parameters:,}" for one in listed]
    assert [row[5] for row in rows] == ["1/3", "2/2"]
    assert [row[6] for row in rows] == [f"{one.progress.best_loss:.4g}" for one in listed]
    assert [row[8] for row in rows] == ["stopped", "finished"]


def test_compare_shows_what_differs_and_what_came_of_it(runs: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    lines = run("compare", runs / "a", runs / "b" / "gru", "--plot", plot).splitlines()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for cells in (line.split("│") for line in lines)
        if len(cells) > 3
    }
    assert rows["cell"] == ["lstm", "gru"]
    assert rows["epochs"] == ["3", "2"]
    assert "hidden" not in rows
    losses = [load_run(folder).progress.best_loss for folder in (runs / "a", runs / "b" / "gru")]
    assert rows["validation loss"] == [f"{loss:.4g}" for loss in losses]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert set(differences(find_runs(runs))) == {"cell", "epochs"}


def test_what_is_no_run_is_said(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run lies in"):
        find_runs(tmp_path)
    with pytest.raises(DataError, match="holds no training run"):
        load_run(tmp_path)
    shutil.copytree(runs / "a", tmp_path / "old")
    path = tmp_path / "old" / "checkpoint" / "progress.json"
    record = json.loads(path.read_text())
    record["progress"]["decay"] = 1.0
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="was saved by another version of hiddenstate, which knew decay"):
        load_run(tmp_path / "old")


def test_a_run_without_a_checkpoint_has_not_begun(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "checkpoint")
    assert load_run(tmp_path / "a").state == "not begun"
    assert load_run(tmp_path / "a").best == {}
