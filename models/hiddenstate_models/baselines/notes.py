"""Guesses of the next frame without a model: how often each note sounds, and how often it sounds on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from hiddenstate_models.data.music import Piece, Roll

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NoteBaseline:
    """A probability for every note, by whether it sounded in the frame before: [2, notes], silent first."""

    probabilities: Floats

    @classmethod
    def frequencies(cls, pieces: Sequence[Piece]) -> Self:
        """How often each note sounds, whatever came before."""
        frames = np.concatenate([piece.roll for piece in pieces])
        share = _smoothed(frames.sum(axis=0), len(frames))
        return cls(np.stack([share, share]))

    @classmethod
    def repetition(cls, pieces: Sequence[Piece]) -> Self:
        """The frame before again, as far as that can be relied on: how often a note sounds on, and sets in."""
        before = np.concatenate([piece.roll[:-1] for piece in pieces])
        after = np.concatenate([piece.roll[1:] for piece in pieces])
        kinds = [before == sounded for sounded in (0, 1)]
        return cls(np.stack([_smoothed((kind & (after == 1)).sum(axis=0), kind.sum(axis=0)) for kind in kinds]))

    def predict(self, roll: Roll) -> Floats:
        """Probabilities [T - 1, notes] of the frames after the first of a roll [T, notes]."""
        before = roll[:-1].astype(np.int64)
        chosen: Floats = np.take_along_axis(self.probabilities, before, axis=0)
        return chosen


def _smoothed(sounding: npt.NDArray[np.int64], frames: npt.NDArray[np.int64] | int) -> Floats:
    """A share with one frame of each kind added (Laplace), so that nothing is impossible."""
    share: Floats = (sounding + 1) / (frames + 2)
    return share
