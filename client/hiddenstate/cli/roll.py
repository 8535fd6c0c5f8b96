"""A picture of a piece: its piano roll."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hiddenstate.cli.console import fail
from hiddenstate.cli.plot import STYLE
from hiddenstate.midi import held_notes
from hiddenstate.predictions import Frame

_INK, _GIVEN, _COMPOSED, _BLACK_KEY = "#222222", "#8c8c8c", "#1f6fb4", "#f3f3f3"
_BLACK = (1, 3, 6, 8, 10)  # of an octave's keys
_MARGIN = 3  # keys above and below what sounds


def draw_roll(frames: Sequence[Frame], file: Path, *, begun: int, frame_seconds: float) -> None:
    """Draws frames over time, one bar a note that is held; the first `begun` frames were given, the rest composed."""
    pitches = [pitch for frame in frames for pitch in frame]
    lowest, highest = (min(pitches), max(pitches)) if pitches else (60, 72)
    bottom, top = lowest - _MARGIN, highest + _MARGIN
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(min(max(6.0, len(frames) / 16), 40.0), 4.5), layout="constrained")
        axes = figure.subplots()
        for pitch in range(bottom, top + 1):
            if pitch % 12 in _BLACK:
                axes.axhspan(pitch - 0.5, pitch + 0.5, color=_BLACK_KEY, zorder=0)
        for color, label, first, last in (
            (_GIVEN, "given", 0, begun),
            (_COMPOSED, "composed", begun, len(frames)),
        ):
            bars = held_notes(frames[first:last])
            if bars:
                start, length, pitch = np.array(bars, np.float64).T
                axes.barh(pitch, length * frame_seconds, 0.8, (first + start) * frame_seconds, color=color, label=label)
        octaves = [pitch for pitch in range(bottom, top + 1) if pitch % 12 == 0]
        axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
        axes.set(xlim=(0, len(frames) * frame_seconds), ylim=(bottom - 0.5, top + 0.5), xlabel="seconds")
        if begun:
            axes.axvline(begun * frame_seconds, color=_INK, linewidth=1, linestyle=":")
            figure.legend(loc="outside upper right", frameon=False, ncols=2)
        try:
            figure.savefig(file, dpi=120)
        except (OSError, ValueError) as error:
            raise fail(f"{file} cannot be drawn: {error}") from None
