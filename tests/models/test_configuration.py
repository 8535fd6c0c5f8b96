"""Settings from a TOML file: flags override it, it says what is wrong with it, and a run repeats from its own."""

import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hiddenstate_models.cli.app import app
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.training.configuration import read_configuration
from hiddenstate_models.training.next_value import NEXT_VALUE
from hiddenstate_models.training.next_word import NEXT_WORD
from hiddenstate_models.training.run import load_weights


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture
def series(tmp_path: Path) -> Path:
    path = tmp_path / "series.csv"
    path.write_text("x\n" + "".join(f"{(3 * i) % 7 + i % 2}\n" for i in range(200)))
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_flags_override_the_file_and_a_run_repeats_from_its_own(series: Path, tmp_path: Path) -> None:
    config = written(
        tmp_path,
        f"""
        data = ["{series}"]
        [values]
        hidden = "5"
        [training]
        epochs = 2
        lanes = 2
        k1 = 10
        k2 = 20
        accelerator = "cpu"
        learning_rate = 1
        """,
    )
    run("next-value", "--config", config, "--out", tmp_path / "one", "--lanes", 3, "--dropout", 0.2)
    saved = tomllib.loads((tmp_path / "one" / "config.toml").read_text())
    assert saved["task"] == "next-value"
    assert saved["data"] == [str(series)]
    assert saved["values"]["hidden"] == "5"
    assert saved["values"]["dropout"] == 0.2
    assert {name: saved["training"][name] for name in ("epochs", "lanes", "k2", "seed")} == {
        "epochs": 2,
        "lanes": 3,
        "k2": 20,
        "seed": 0,
    }
    run("next-value", "--config", tmp_path / "one" / "config.toml", "--out", tmp_path / "two")
    assert (tmp_path / "one" / "config.toml").read_bytes() == (tmp_path / "two" / "config.toml").read_bytes()
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nlearning_rat = 0.1", r"\[training\]: unknown key 'learning_rat'; did you mean learning_rate\?"),
        ("[word]\nhidden = '5'", r"unknown key 'word'; did you mean words\?"),
        ("lanes = 5", r"unknown key 'lanes'; there are task, data, valid, out, words, training"),
        ("[training]\nlanes = 2.5", r"\[training\]: lanes = 2.5: input should be a valid integer"),
        ("[training]\noptimizer = 'adm'", r"optimizer = 'adm': input should be 'sgd', 'adam'"),
        ("training = 5", r"training must be a table, \[training\]"),
        ("data = 'books.txt'", r"data = 'books.txt': input should be a valid list"),
        ("task = 'next-value'", "is for `train next-value`, not for `train next-word`"),
        ("[training\nlanes = 5", r"cannot read .*run.toml: .*line 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_configuration(written(tmp_path, text), NEXT_WORD)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_configuration(tmp_path / "none.toml", NEXT_VALUE)
