"""Music from training to evaluation and bundle, by the commands that people type."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from symusic import Note, Score, Track
from tests.models.test_music_data import roll, written
from typer.testing import CliRunner

from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.bundle import Bundle
from hiddenstate_models.cli import app, main
from hiddenstate_models.data.music import NOTES, Piece
from hiddenstate_models.errors import DataError
from hiddenstate_models.evaluation.music import ACCURACY, LOSS, baseline_scores
from hiddenstate_models.training import commands
from hiddenstate_models.training.music import MUSIC, MusicOptions
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Told


def scale(length: int, lowest: int) -> list[list[int]]:
    """One key after the other, up an octave and again from below."""
    return [[lowest + i % 12] for i in range(length)]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_learns_a_scale_in_every_key_evaluates_and_exports(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scales = [roll(*scale(40, int(lowest))) for lowest in rng.integers(20, 50, 24)]
    data = written(tmp_path / "scales.mat", traindata=scales[:20], validdata=scales[20:])
    out, bundles = tmp_path / "run", tmp_path / "bundles"
    run("train", "music", "--data", data, "--out", out, "--epochs", 6, "--hidden", 32, "--transpose", 2,
        "--lanes", 8, "--k1", 20, "--k2", 20, "--learning-rate", 0.02, "--warmup", 5, "--dropout", 0)  # fmt: skip
    scores = json.loads(run("evaluate", out, "--json"))["scales.mat"]
    assert list(scores) == ["model", "note frequencies", "last frame again"]
    assert scores["model"][LOSS] < 1.5 < scores["last frame again"][LOSS]
    assert scores["model"][ACCURACY] > 0.8
    run("export", out, "--out", bundles)
    bundle = Bundle.load(bundles / "music" / "1")
    assert bundle.config.scores["scales.mat"]["model"] == scores["model"]
    assert "88 notes from MIDI number 21 on" in (bundle.folder / "card.md").read_text()
    again = json.loads(run("evaluate", bundle.folder, "--data", data, "--json"))["scales.mat"]
    assert again == {"model": scores["model"]}


def test_a_resumed_run_learns_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    for i in range(21):
        score, track = Score(2), Track("piano", 0, False)
        for time, (key,) in enumerate(scale(8, 40 + i)):
            track.notes.append(Note(time, 1, key, 90))
        score.tracks.append(track)
        score.dump_midi(tmp_path / f"{i:02}.mid")
    options = TrainingOptions(epochs=2, lanes=4, k1=8, k2=8)
    music = MusicOptions(hidden="8", transpose=1)
    told = Told([str(tmp_path / "*.mid")], [], music, options)
    assert commands.train(MUSIC, told, tmp_path / "whole")
    assert not commands.train(MUSIC, told, tmp_path / "parts", max_updates=7)
    assert commands.resume(MUSIC, tmp_path / "parts")
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_says_when_there_are_too_few_pieces_to_hold_some_out(tmp_path: Path) -> None:
    score, track = Score(2), Track("piano", 0, False)
    track.notes.append(Note(0, 4, 60, 90))
    score.tracks.append(track)
    score.dump_midi(tmp_path / "only.mid")
    told = Told([str(tmp_path / "only.mid")], [], MusicOptions(), TrainingOptions())
    with pytest.raises(DataError, match="1 piece is too few to hold some out"):
        commands.train(MUSIC, told, tmp_path / "run")


def test_baselines_count_as_by_hand() -> None:
    """Key 5 sounds in every other frame of four; all frames but the first are scored."""
    pieces = [Piece("beat", roll([5], [], [5], []))]
    often = NoteBaseline.frequencies(pieces).probabilities[0]
    assert (often[5], often[0]) == (3 / 6, 1 / 6)
    again = NoteBaseline.repetition(pieces).probabilities
    assert (again[1, 5], again[0, 5], again[0, 0]) == (1 / 4, 2 / 3, 1 / 5)
    scores = baseline_scores(NoteBaseline.frequencies(pieces), pieces)
    assert scores[LOSS] == pytest.approx(np.log(2) - (NOTES - 1) * np.log(5 / 6))
    by_hand = -(2 * np.log(3 / 4) + np.log(2 / 3)) / 3 - (NOTES - 1) * np.log(4 / 5)
    scores = baseline_scores(NoteBaseline.repetition(pieces), pieces)
    assert scores == {LOSS: pytest.approx(by_hand), ACCURACY: 1.0}


def test_errors_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in them are no markup."""
    (tmp_path / "tune.mid").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "symusic", None)
    monkeypatch.setattr(sys, "argv", ["hiddenstate-models", "train", "music", "--data", str(tmp_path / "tune.mid")])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "pip install 'hiddenstate[music]'" in capsys.readouterr().err
