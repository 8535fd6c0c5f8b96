"""Music over the SDK and the command, on the real server."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from symusic import Score

from hiddenstate import Client, InvalidInput, NotePrediction
from hiddenstate.midi import read_midi, write_midi

CHORD, NOTE = frozenset({60, 64, 67}), frozenset({72})


def test_frames_are_observed(server: str) -> None:
    with Client(server) as client, client.session("music") as session:
        assert session.model.notes == range(21, 109)
        before = session.peek()
        assert isinstance(before, NotePrediction)
        assert before.notes == {note for note, p in before.probabilities.items() if p > 0.5}
        prediction = session.observe(CHORD)
        sounding = [before.probabilities[note] if note in CHORD else 1 - before.probabilities[note]
                    for note in session.model.notes]  # fmt: skip
        assert prediction.surprise == pytest.approx(-np.log(sounding).sum(), rel=1e-4)
        column = session.observe_many([NOTE, frozenset[int](), CHORD])
        assert column.probabilities.shape == (3, 88)
        assert (column[-1].step, session.step) == (4, 4)
        assert session.rewind(3) == prediction


def test_arrays_and_lists_are_frames_too(server: str) -> None:
    roll = np.zeros((2, 88))
    roll[0, [note - 21 for note in CHORD]] = roll[1, 72 - 21] = 1
    with Client(server) as client, client.session("music") as one, client.session("music") as other:
        column = one.observe_many([CHORD, NOTE])
        np.testing.assert_array_equal(other.observe_many(roll).surprise, column.surprise)
        assert one.observe([60]) == other.observe(roll[0] * 0 + np.eye(88)[60 - 21])


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        ({20}, "notes go from 21 to 108 in this model; 20 is none of them"),
        ({60.5}, "60.5 is none of them"),
        ("C", "not 'C'"),
        (60, "not 60"),
        (None, "not None"),
        (np.zeros(87), r"\[n, 88\] in this model, not \[1, 87\]"),
        (np.full(88, 0.5), "nothing but 0 and 1"),
        (np.full(88, np.nan), "nothing but 0 and 1"),
    ],
)
def test_what_is_no_frame_is_refused(server: str, frame: object, complaint: str) -> None:
    with Client(server) as client, client.session("music") as session:
        with pytest.raises(InvalidInput, match=complaint):
            session.observe(frame)  # type: ignore[call-overload]
        assert session.step == 0


def test_words_and_numbers_are_no_music(server: str) -> None:
    with Client(server) as client, client.session("next-value") as session, pytest.raises(InvalidInput):
        session.observe(CHORD)


def test_generated_frames(server: str) -> None:
    with Client(server) as client, client.session("music") as session, session.fork() as fork:
        session.observe(CHORD)
        frames = list(session.generate(16, seed=7))
        assert len(frames) == 16
        assert all(isinstance(frame, frozenset) and frame <= set(session.model.notes) for frame in frames)
        assert frames == list(session.generate(16, seed=7)) != list(session.generate(16, seed=8))
        assert next(session.generate(1, temperature=0)) == session.peek().notes  # type: ignore[union-attr]
        assert list(session.generate(3, seed=7, commit=True)) == frames[:3]
        assert (session.peek().step, fork.peek().step) == (4, 0)
        fork.observe_many([CHORD, *frames[:3]])
        assert fork.peek() == session.peek()
        with pytest.raises(InvalidInput, match="leave the rest out"):
            session.generate(3, paths=2)


def test_fleets_of_music(server: str) -> None:
    with Client(server) as client, client.fleet("music") as fleet, client.session("music") as session:
        predictions = fleet.observe(["a", "b", "a"], [CHORD, NOTE, NOTE])
        assert not predictions.errors
        assert predictions[2] == session.observe_many([CHORD, NOTE])[1]


def compose(server: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hiddenstate")), "compose", *map(str, arguments)]
    environment = {**os.environ, "HIDDENSTATE_SERVER": server, "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    return done


def test_composing_writes_midi_and_its_picture(server: str, tmp_path: Path) -> None:
    begun = [frozenset[int](), *[CHORD] * 8, *[NOTE] * 8]
    write_midi(tmp_path / "begun.mid", begun)
    tune, roll = tmp_path / "tune.mid", tmp_path / "tune.png"
    done = compose(server, "--seed-from", tmp_path / "begun.mid", "--seed-seconds", 2.5, "--seconds", 4, "--seed", 3,
                   "--tempo", 100, "--out", tune, "--roll", roll)  # fmt: skip
    given, composed = 8, 13  # of 0.3 s
    assert f"{given} frames" in done.stdout
    assert f"{tune}: 6.3 s, {composed} frames composed" in done.stdout
    assert Score.from_file(tune).tempos[0].qpm == pytest.approx(100, abs=0.01)
    frames = read_midi(tune)
    assert frames[:given] == begun[1 : given + 1]
    with Client(server) as client, client.session("music") as session:
        session.observe_many(frames[:given])
        expected = list(session.generate(composed, seed=3))
    while not expected[-1]:
        expected.pop()
    assert frames[given:] == expected
    assert roll.read_bytes().startswith(b"\x89PNG")


def test_composing_says_what_is_wrong(server: str, tmp_path: Path) -> None:
    out = tmp_path / "tune.mid"
    assert "no music model" in compose(server, "--model", "next-word", "--out", out, code=1).stderr
    write_midi(tmp_path / "silent.mid", [])
    assert "holds no notes" in compose(server, "--seed-from", tmp_path / "silent.mid", "--out", out, code=1).stderr
    (tmp_path / "text.mid").write_text("la la la")
    assert "cannot be read as MIDI" in compose(server, "--seed-from", tmp_path / "text.mid", code=1).stderr
    assert not out.exists()
    complaint = compose(server, "--out", tmp_path / "nowhere" / "tune.mid", code=1).stderr
    assert "there is no folder" in complaint
    tmp_path.joinpath("taken").mkdir()
    assert "cannot be written" in compose(server, "--seconds", 1, "--out", tmp_path / "taken", code=1).stderr
