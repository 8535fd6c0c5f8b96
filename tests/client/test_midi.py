"""Frames into MIDI files and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symusic import Score

from hiddenstate import InvalidInput
from hiddenstate.midi import read_midi, write_midi

Frame = frozenset[int]
FRAMES = st.lists(st.sets(st.integers(0, 127), max_size=6).map(frozenset), max_size=20)


@given(frames=FRAMES, frames_per_beat=st.integers(1, 12))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, frames: list[Frame], frames_per_beat: int
) -> None:
    file = tmp_path_factory.mktemp("midi") / "tune.mid"
    write_midi(file, frames, frames_per_beat=frames_per_beat)
    while frames and not frames[-1]:
        frames = frames[:-1]  # a file ends with its last note
    assert read_midi(file, frames_per_beat=frames_per_beat) == frames


def test_a_note_that_goes_on_is_held(tmp_path: Path) -> None:
    write_midi(tmp_path / "tune.mid", [(60, 64), (60,), (), (60,)], frames_per_beat=4, tempo=90)
    score = Score.from_file(tmp_path / "tune.mid")
    assert score.tpq == 480
    notes = sorted((note.start // 120, note.duration // 120, note.pitch) for note in score.tracks[0].notes)
    assert notes == [(0, 1, 64), (0, 2, 60), (3, 1, 60)]
    assert score.tempos[0].qpm == pytest.approx(90, abs=0.01)


@pytest.mark.parametrize("content", [None, b"", b"MThd no music"])
def test_says_which_file_is_no_midi(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tune.mid"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"tune\.mid cannot be read as MIDI"):
        read_midi(file)
