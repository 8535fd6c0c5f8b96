"""Music as piano rolls: frame by frame, which of the keys sound.

Rolls are read from the .mat files of Boulanger-Lewandowski et al. (2012) as Bai et al. (2018) share them, with the
arrays traindata, validdata and testdata of pieces [T, 88], and from MIDI files, sampled on a grid of the beat.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hiddenstate_models.errors import DataError

Part = Literal["train", "valid", "test"]
Roll = npt.NDArray[np.int8]

LOWEST_NOTE = 21
"""MIDI number of a piano's lowest key, A0."""
NOTES = 88


@dataclass(frozen=True)
class Piece:
    """A piece by its name: roll [T, 88], 1 where a key sounds."""

    name: str
    roll: Roll


def read_pieces(paths: Iterable[Path], part: Part, *, frames_per_beat: int = 2) -> list[Piece]:
    """The pieces in files, in order: of a .mat file those of `part`, of a MIDI file the only one.

    Raises:
        DataError: a file cannot be read or holds no music; says where.
    """
    pieces: list[Piece] = []
    for path in paths:
        if path.suffix == ".mat":
            pieces += _of_mat(path, part)
        elif path.suffix in (".mid", ".midi"):
            pieces.append(Piece(path.stem, _of_midi(path, frames_per_beat)))
        else:
            raise DataError(f"{path} is no piano roll; name .mat or MIDI files (.mid, .midi)")
    return pieces


def has_parts(path: Path) -> bool:
    """Whether a file says itself what is for training and what for validation."""
    return path.suffix == ".mat"


def transposed(pieces: Sequence[Piece], semitones: int) -> list[Piece]:
    """Every piece, and moved by each of up to so many semitones down and up where no note leaves the keyboard."""
    moved: list[Piece] = []
    for piece in pieces:
        keys = np.flatnonzero(piece.roll.any(axis=0))
        lowest, highest = (int(keys[0]), int(keys[-1])) if len(keys) else (0, NOTES - 1)
        least, most = max(-semitones, -lowest), min(semitones, NOTES - 1 - highest)
        for shift in range(least, most + 1):
            name = f"{piece.name} {shift:+}" if shift else piece.name
            moved.append(Piece(name, np.roll(piece.roll, shift, axis=1)))
    return moved


def _of_mat(path: Path, part: Part) -> list[Piece]:
    from scipy.io import loadmat

    field = f"{part}data"
    try:
        contents = loadmat(str(path))
    except Exception as error:  # a file of another kind fails in many ways inside of scipy
        raise DataError(f"cannot read {path}: {error}") from error
    if field not in contents:
        raise DataError(f"{path} has no array {field!r}; it should hold traindata, validdata and testdata")
    found = contents[field]
    rolls = found.ravel() if found.dtype == object else [found]
    return [Piece(f"{path.stem}/{part}/{i + 1}", _checked(path, i, roll)) for i, roll in enumerate(rolls)]


def _checked(path: Path, index: int, roll: Any) -> Roll:
    array = np.asarray(roll)
    where = f"{path}, piece {index + 1}"
    if array.ndim != 2 or array.shape[1] != NOTES or not len(array):
        raise DataError(f"{where}: a roll of {NOTES} keys is needed, [frames, {NOTES}], not {list(array.shape)}")
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise DataError(f"{where}: a roll holds nothing but 0 and 1")
    return array.astype(np.int8)


def _of_midi(path: Path, frames_per_beat: int) -> Roll:
    """All tracks but drums, starts and lengths of notes rounded to frames, of which a note has at least one."""
    try:
        from symusic import Score
    except ImportError as error:
        raise DataError(f"reading {path} needs symusic: pip install 'hiddenstate[music]'") from error
    try:
        score = Score.from_file(path)
    except Exception as error:
        raise DataError(f"cannot read {path} as MIDI: {error}") from error
    grid = score.resample(frames_per_beat, min_dur=1)
    roll = np.zeros((grid.end(), NOTES), np.int8)
    for track in grid.tracks:
        for note in () if track.is_drum else track.notes:
            if LOWEST_NOTE <= note.pitch < LOWEST_NOTE + NOTES:
                roll[note.start : note.end, note.pitch - LOWEST_NOTE] = 1
    if not roll.any():
        raise DataError(f"{path} holds no notes of a piano")
    return roll
