"""`hiddenstate compose`: a piece that a music model goes on with, as MIDI and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hiddenstate import Session
from hiddenstate.cli.console import Access, err, fail, note_names, out
from hiddenstate.midi import read_midi, write_midi
from hiddenstate.predictions import Frame

_SHOWN = 20.0  # changes of the progress bar a second, at most


@dataclass(frozen=True)
class Tempo:
    """How frames lie in time."""

    beats_a_minute: float
    frames_per_beat: int

    @property
    def frame_seconds(self) -> float:
        """How long a frame is."""
        return 60 / self.beats_a_minute / self.frames_per_beat

    def frames(self, seconds: float) -> int:
        """How many frames that is, one at least."""
        return max(1, round(seconds / self.frame_seconds))


@dataclass(frozen=True)
class Begun:
    """What the piece begins with: so many seconds of a MIDI file."""

    file: Path
    seconds: float

    def frames(self, tempo: Tempo) -> list[Frame]:
        """Its frames, without silence before the first note."""
        frames = read_midi(self.file, frames_per_beat=tempo.frames_per_beat)
        first = next((i for i, frame in enumerate(frames) if frame), None)
        if first is None:
            raise fail(f"{self.file} holds no notes")
        return frames[first:][: tempo.frames(self.seconds)]


def compose(
    access: Access,
    model: str,
    file: Path,
    *,
    seconds: float,
    begun: Begun | None,
    tempo: Tempo,
    temperature: float,
    seed: int | None,
    roll: Path | None,
) -> None:
    """Has the model go on for `seconds` after what is begun, and writes all of it."""
    for folder in (path.parent for path in (file, roll) if path is not None):
        if not folder.is_dir():
            raise fail(f"there is no folder {folder} to write into")
    frames = begun.frames(tempo) if begun else []
    with access.client() as client:
        description = client.model(model)
        if description.task != "music":
            raise fail(f"{model} is no music model; name one with --model")
        with client.session(model) as session:
            if begun:
                predictions = session.observe_many(frames)
                surprise = predictions.surprise.mean()
                out.print(f"{begun.file}: {len(frames)} frames, {surprise:.2f} nats each", soft_wrap=True)
            written = list(_streamed(session, tempo, seconds, temperature, seed))
    whole = [*frames, *written]
    try:
        write_midi(file, whole, frames_per_beat=tempo.frames_per_beat, tempo=tempo.beats_a_minute)
    except OSError as error:
        raise fail(f"{file} cannot be written: {error.strerror}") from None
    out.print(f"{file}: {len(whole) * tempo.frame_seconds:.1f} s, {len(written)} frames composed", soft_wrap=True)
    if roll is not None:
        from hiddenstate.cli.roll import draw_roll

        draw_roll(whole, roll, begun=len(frames), frame_seconds=tempo.frame_seconds)
        out.print(f"{roll}: its piano roll", soft_wrap=True)


def _streamed(session: Session, tempo: Tempo, seconds: float, temperature: float, seed: int | None) -> Iterator[Frame]:
    """Frames as they are composed, with progress."""
    count = tempo.frames(seconds)
    columns = (TextColumn("composing"), BarColumn(), TextColumn("{task.fields[notes]}"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, refresh_per_second=_SHOWN) as progress:
        task = progress.add_task("composing", total=count, notes="")
        for frame in session.generate(count, temperature=temperature, seed=seed):
            progress.update(task, advance=1, notes=note_names(frame))
            yield frame
