"""Music as frames of notes, from MIDI files and into them. Needs `pip install 'hiddenstate[music]'`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path

from symusic import Note, Score, Tempo, Track

from hiddenstate.errors import InvalidInput
from hiddenstate.predictions import Frame

_VELOCITY = 80
_FRAME_TICKS = 120


def read_midi(file: str | os.PathLike[str], *, frames_per_beat: int = 2) -> list[Frame]:
    """The frames of a file, a quarter note in `frames_per_beat` of them; all tracks but drums.

    Starts and lengths of notes are rounded to frames, of which a note has at least one. Raises InvalidInput.
    """
    try:
        score = Score.from_file(os.fspath(file))
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{os.fspath(file)} cannot be read as MIDI: {error}") from error
    grid = score.resample(frames_per_beat, min_dur=1)
    frames: list[set[int]] = [set() for _ in range(grid.end())]
    for track in grid.tracks:
        for note in () if track.is_drum else track.notes:
            for frame in frames[note.start : note.end]:
                frame.add(note.pitch)
    return [frozenset(frame) for frame in frames]


def write_midi(
    file: str | os.PathLike[str], frames: Iterable[Collection[int]], *, frames_per_beat: int = 2, tempo: float = 120
) -> None:
    """Writes frames as a piano's track, `tempo` in quarter notes a minute; a note that goes on is held.

    Raises OSError where the file cannot be written.
    """
    score, piano = Score(_FRAME_TICKS * frames_per_beat), Track("piano", 0, False)
    for start, length, pitch in held_notes(frames):
        piano.notes.append(Note(start * _FRAME_TICKS, length * _FRAME_TICKS, pitch, _VELOCITY))
    score.tempos.append(Tempo(0, qpm=tempo))
    score.tracks.append(piano)
    Path(file).write_bytes(score.dumps_midi())


def held_notes(frames: Iterable[Collection[int]]) -> list[tuple[int, int, int]]:
    """(first frame, how many frames, MIDI number) of every note, in the order of their ends."""
    sounding: dict[int, int] = {}
    held: list[tuple[int, int, int]] = []
    for time, frame in enumerate(chain(frames, [()])):
        for pitch in sorted(sounding.keys() - set(frame)):
            start = sounding.pop(pitch)
            held.append((start, time - start, pitch))
        for pitch in frame:
            sounding.setdefault(int(pitch), time)
    return held
