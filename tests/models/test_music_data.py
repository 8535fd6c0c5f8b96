from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from symusic import Note, Score, Track

from hiddenstate_models.data.music import LOWEST_NOTE, NOTES, Part, Piece, Roll, read_pieces, transposed
from hiddenstate_models.errors import DataError


def roll(*frames: list[int]) -> Roll:
    """A roll from the keys that sound in each frame, numbered from 0."""
    made = np.zeros((len(frames), NOTES), np.int8)
    for frame, keys in zip(made, frames, strict=True):
        frame[keys] = 1
    return made


def written(path: Path, **parts: list[Roll]) -> Path:
    """A file as Boulanger-Lewandowski's are: an array of pieces for each part."""
    arrays = {}
    for part, rolls in parts.items():
        cells = np.empty((1, len(rolls)), object)
        cells[0, :] = rolls
        arrays[part] = cells
    savemat(path, arrays)
    return path


def test_reads_the_part_asked_for(tmp_path: Path) -> None:
    training, validation = [roll([3], [3, 50]), roll([], [7], [87])], [roll([0], [1])]
    path = written(tmp_path / "tunes.mat", traindata=training, validdata=validation, testdata=[roll([9])])
    parts: dict[Part, list[Roll]] = {"train": training, "valid": validation}
    for part, rolls in parts.items():
        pieces = read_pieces([path], part)
        assert [piece.name for piece in pieces] == [f"tunes/{part}/{i + 1}" for i in range(len(rolls))]
        for piece, expected in zip(pieces, rolls, strict=True):
            np.testing.assert_array_equal(piece.roll, expected)


@pytest.mark.parametrize(
    ("rolls", "complaint"),
    [
        ([np.zeros((4, 87), np.int8)], r"piece 1: a roll of 88 keys is needed, \[frames, 88\], not \[4, 87\]"),
        ([roll([1]), 2 * roll([1], [2])], "piece 2: a roll holds nothing but 0 and 1"),
    ],
)
def test_says_which_piece_is_no_roll(tmp_path: Path, rolls: list[Roll], complaint: str) -> None:
    path = written(tmp_path / "tunes.mat", traindata=rolls)
    with pytest.raises(DataError, match=complaint):
        read_pieces([path], "train")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.mat", b"no matrix", "cannot read .*a.mat"),
        ("a.mid", b"no music", "cannot read .*a.mid as MIDI"),
        ("a.wav", b"", "is no piano roll"),
    ],
)
def test_says_which_file_is_no_music(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_pieces([tmp_path / name], "train")


def test_says_which_part_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "tunes.mat", traindata=[roll([1], [2])])
    with pytest.raises(DataError, match="has no array 'validdata'"):
        read_pieces([path], "valid")


def test_reads_midi_on_the_grid_of_the_beat(tmp_path: Path) -> None:
    score = Score(480)
    melody, bass, drums = Track("melody", 0, False), Track("bass", 32, False), Track("drums", 0, True)
    melody.notes.append(Note(0, 480, 60, 90))  # a quarter note
    melody.notes.append(Note(490, 10, 64, 90))  # too short and late for the grid
    bass.notes.append(Note(240, 480, 40, 90))
    bass.notes.append(Note(0, 960, LOWEST_NOTE - 1, 90))  # no key of a piano
    drums.notes.append(Note(0, 960, 36, 90))
    for track in (melody, bass, drums):
        score.tracks.append(track)
    score.dump_midi(tmp_path / "tune.mid")
    c, e, low_e = 60 - LOWEST_NOTE, 64 - LOWEST_NOTE, 40 - LOWEST_NOTE
    (eighths,) = read_pieces([tmp_path / "tune.mid"], "train", frames_per_beat=2)
    assert eighths.name == "tune"
    np.testing.assert_array_equal(eighths.roll[:3], roll([c], [c, low_e], [e, low_e]))
    assert not eighths.roll[3:].any()
    (quarters,) = read_pieces([tmp_path / "tune.mid"], "train", frames_per_beat=1)
    np.testing.assert_array_equal(quarters.roll[0], roll([c])[0])


def test_a_piece_is_moved_as_far_as_the_keyboard_goes() -> None:
    pieces = [Piece("low", roll([1], [40])), Piece("high", roll([86])), Piece("silent", roll([]))]
    moved = {piece.name: piece.roll for piece in transposed(pieces, 2)}
    assert list(moved) == [
        *("low -1", "low", "low +1", "low +2"),
        *("high -2", "high -1", "high", "high +1"),
        "silent",
    ]
    np.testing.assert_array_equal(moved["low -1"], roll([0], [39]))
    np.testing.assert_array_equal(moved["high +1"], roll([87]))
    assert [piece.name for piece in transposed(pieces, 0)] == ["low", "high", "silent"]
